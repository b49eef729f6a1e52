"""The run folder: its paths, facts, metrics, samples, checkpoints and provenance, and the model that it holds."""
