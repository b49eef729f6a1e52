"""Define what a run learns: its batches, loss, validation and sample prompt.

The interface is the class `Objective` in `base.py`, a `typing.Protocol`. Other modules contain its implementations.
"""
