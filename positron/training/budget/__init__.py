"""A time budget: measure this machine and this text, then choose size, batch, horizon and learning rate."""
