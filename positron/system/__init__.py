"""Files, downloads, terminals, threads and errors: what every package uses, and what knows nothing of models."""
