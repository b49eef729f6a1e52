"""Separate a call of Positron from the Python program that calls it: neither changes the state of the other.

Without a launcher such as torchrun, Lightning starts further processes of a training by starting the program again. Such a
process leaves out all trainings before the one for which it was started, and ends after that one.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from positron.system.errors import Diverged, Interrupted
from positron.system.exits import errors_as_one_line
from positron.system.ranks import STARTER, STARTERS_PRECISION

_STARTED_FOR = "POSITRON_STARTED_FOR"  # the training for which Lightning starts the program again
_SET_FOR_PROCESSES = (
    *("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"),  # by Lightning
    *("OMP_NUM_THREADS", STARTER, STARTERS_PRECISION, _STARTED_FOR),
)

_calls: Counter[Path] = Counter()


@contextmanager
def unchanged_state() -> Iterator[None]:
    """Run the block in torch's initial state, and restore the state of the calling program after it.

    In the block, new tensors are float32 and on the CPU, gradients are recorded and autocast is off, and a CPU does not round
    the factors of float32 products. Otherwise, a program that has chosen something else, such as
    torch.set_default_dtype(torch.bfloat16) or torch.set_float32_matmul_precision("medium"), would silently train other weights.

    The random generators of Python, NumPy and torch, torch's number of threads, and the share of each CUDA GPU's memory that
    torch may take, are restored, too. Each training step seeds these generators: a random search that calls `train` in a loop
    would draw the same values after every call.
    """
    import numpy as np
    import torch

    from positron.system.torch_settings import exact_products, float32_tensors

    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    shares = {gpu: torch.cuda.get_per_process_memory_fraction(gpu) for gpu in gpus}
    # entered only if it changes something, because torch calls Python in each operation of such a block
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    try:
        with (
            float32_tensors.changed(),
            exact_products.changed(),
            torch.inference_mode(False),
            torch.enable_grad(),
            _without_autocast(),
            on_cpu,
            torch.random.fork_rng(devices=gpus),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        for gpu in range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ():
            share = shares.get(gpu, 1.0)
            if torch.cuda.get_per_process_memory_fraction(gpu) != share:  # device.share= of a training
                torch.cuda.set_per_process_memory_fraction(share, gpu)


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


def name_training(folder: Path) -> str:
    """Return a name for the training that begins now in `folder`, which has the same name in a process started for it."""
    _calls[folder] += 1
    return f"{_calls[folder]} {folder}"


def is_for_another(training: str) -> bool:
    """Tell whether Lightning has started this program again for another training than `training`."""
    return _is_started_again() and os.environ[_STARTED_FOR] != training


def _is_started_again() -> bool:
    return _STARTED_FOR in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


@contextmanager
def other_processes(training: str) -> Iterator[None]:
    """Remove what the other processes of `training` leave: variables of the environment, and the group of torch.distributed.

    If Lightning has started this process for the training, the end of the block exits, so that the rest of the program runs
    only once.
    """
    if _is_started_again():
        with errors_as_one_line():
            yield
        raise SystemExit(0)
    before = {name: os.environ.get(name) for name in _SET_FOR_PROCESSES}
    os.environ[_STARTED_FOR] = training
    try:
        yield
    except (Interrupted, Diverged):
        _disconnect(before)
        raise
    else:
        _disconnect(before)
    finally:  # after another error, a process may still wait for this one, and torch would wait for it
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _disconnect(before: dict[str, str | None]) -> None:
    """Disconnect this process from those that Lightning has started; `before` is the environment before it did so."""
    from torch import distributed

    if "LOCAL_RANK" in os.environ and before["LOCAL_RANK"] is None and distributed.is_initialized():
        distributed.destroy_process_group()
