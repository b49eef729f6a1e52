"""Other programs that show a run while it trains: wandb, TensorBoard."""
