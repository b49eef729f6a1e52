"""Separate a call of Positron from the Python program that calls it: neither changes the state of the other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def unchanged_state() -> Iterator[None]:
    """Run the block in torch's initial state, and restore the state of the calling program after it.

    In the block, new tensors are float32 and on the CPU, gradients are recorded and autocast is off. Otherwise, a program that
    has chosen another default, such as torch.set_default_dtype(torch.bfloat16), would silently train other weights.

    The random generators of Python, NumPy and torch, and torch's number of threads, are restored, too. Each training step seeds
    these generators: a random search that calls `train` in a loop would draw the same values after every call.
    """
    import numpy as np
    import torch

    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    dtype = torch.get_default_dtype()
    # entered only if it changes something, because torch calls Python in each operation of such a block
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    try:
        torch.set_default_dtype(torch.float32)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _without_autocast(),
            on_cpu,
            torch.random.fork_rng(devices=gpus),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Turn autocast off in the block, as if the calling program had opened no autocast block."""
    import torch

    devices = [device for device in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(device)]
    # The end of an outermost autocast block clears the cache of converted weights. In a block of the calling program, no
    # block of Positron would be outermost, and after a training step the converted weights would be those before it.
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in devices:
            torch.set_autocast_enabled(device, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()
