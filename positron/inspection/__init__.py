"""Look inside a run: attention, logit lens, ablations, the history of its training, and the true probabilities."""
