"""Build the optimizer and its parameter groups, and compute the learning rate of each step."""
