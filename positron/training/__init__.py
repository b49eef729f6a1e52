"""From batches to a trained model: optimizer, schedule, device, checkpoints, and the callbacks that watch."""
