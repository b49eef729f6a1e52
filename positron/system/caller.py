"""Leave the state of a Python program that calls Positron as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unchanged_state() -> Iterator[None]:
    """Restore the random generators of Python, NumPy and torch, and torch's number of threads, after the block.

    Each training step seeds these generators. Without this function, a random search that calls `train` in a loop would draw
    the same values after every call.
    """
    import numpy as np
    import torch

    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)
        if mps is not None:
            torch.mps.set_rng_state(mps)
