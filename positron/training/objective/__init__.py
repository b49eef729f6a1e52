"""What a run learns: batches, loss, validation, and what its samples begin with. `base.py` is the protocol."""
