"""Define the Lightning callbacks of the training loop. Each file defines one callback."""
