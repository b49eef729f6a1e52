"""Look inside a run: attention, logit lens, ablations, earlier steps, and the exact probabilities of the stories."""
