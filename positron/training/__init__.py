"""Train a model on batches: optimizer, schedule, device, checkpoints, and the callbacks of the training loop."""
