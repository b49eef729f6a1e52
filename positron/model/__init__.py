"""The network: `gpt.py` is the whole model, `kernels/` holds the fast paths of its parts."""
