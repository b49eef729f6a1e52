"""What happens around a training step, one callback per file."""
