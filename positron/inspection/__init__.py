"""Look inside a run: attention, logit lens, ablations, weights of earlier steps, and exact probabilities of stories."""
