"""Define what a run learns: its batches, loss, validation and sample prompt. `base.py` has the protocol."""
