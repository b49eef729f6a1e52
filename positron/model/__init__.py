"""The network: `gpt.py` is the whole model, `attention.py` and `loss.py` its two fast paths."""
