"""Send the metrics of a run to programs that display them: wandb, TensorBoard."""
