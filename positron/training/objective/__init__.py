"""Objectives define what a run learns: batches, loss, validation and sample prompt. `base.py` defines their protocol."""
