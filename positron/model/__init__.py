"""Define the network: `gpt.py` is the whole model, and `kernels/` has faster implementations of some of its parts."""
