"""Plan a run for a time budget: measure this machine, then choose model size, batch, number of steps and learning rate."""
