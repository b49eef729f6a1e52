"""Read and write a run folder: paths, facts, metrics, samples, checkpoints, provenance, and loading its model."""
