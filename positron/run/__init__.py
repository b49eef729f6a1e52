"""Read and write a run folder: paths, facts, metrics, samples, checkpoints and provenance; load its model."""
