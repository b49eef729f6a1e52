"""Define the Lightning callbacks that run after each training step, one per file."""
