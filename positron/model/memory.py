"""Refuse a model that does not fit into the memory of this machine, before memory is allocated for it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import assert_never

import torch

from positron.config import DeviceConfig, GPTConfig
from positron.system.errors import UserError
from positron.system.formatting import with_prefix
from positron.system.memory import physical_memory

FLOAT_BYTES = 4  # weights, gradients and moments are float32 in every precision
TRAINING_COPIES = 4  # floats per trained parameter: the parameter, its gradient and the optimizer's two moments
ALONE = DeviceConfig()  # one process
LAYER_BYTES = 20_000  # memory of the Python objects of a layer, for any d_model


def machine_memory() -> int | None:
    """Return the memory of this machine in bytes, or the limit of the container if it is lower; None if both are unknown."""
    sizes = [size for size in (physical_memory(),) if size is not None]
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the file exists only in a container
            limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
            sizes += [int(limit)] if limit.isdigit() else []
    return min(sizes, default=None)


def check_memory(
    config: GPTConfig,
    *,
    copies: int,
    accelerator: str = "cpu",
    device: DeviceConfig = ALONE,
    is_new: bool = False,
) -> None:
    """Raise UserError if the memory of this machine is too small for `copies` floats per parameter of the model.

    `copies`: 4 for training (TRAINING_COPIES), 5 for training that keeps a mean of the weights, 1 for training with LoRA, 2 for
    an import, 1 for a model that is only used.
    `device`: the number of processes and their strategy. With fsdp, the processes divide the `copies` floats among themselves.
    Otherwise each process holds all of them, and in training DDP's copy of the gradients, too. Each process creates the whole
    weights in main memory; with an accelerator other than "cpu", main memory holds nothing else. With "cuda", the smallest GPU
    must hold the part of a process. `is_new`: true if the command's settings choose the size of the model; the message then
    advises to reduce it.
    """
    held = copies / device.processes if device.shards_weights else copies + (copies > 1 and device.processes > 1)
    in_main_memory = max(1, held) if accelerator == "cpu" else 1
    fixed = config.n_layer * LAYER_BYTES + _table_bytes(config)
    needed = device.devices * (round(FLOAT_BYTES * config.n_params() * in_main_memory) + fixed)
    among = "" if device.devices == 1 else f", which {device.devices} processes share"
    _check(config, needed, machine_memory(), f"this machine{among}", is_new)
    if accelerator == "cuda":
        total = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(device.devices))
        gpu = "this machine's GPU" if device.devices == 1 else "a GPU of this machine"
        _check(config, round(FLOAT_BYTES * config.n_params() * held), total, gpu, is_new)


def _table_bytes(config: GPTConfig) -> int:
    """Return the bytes that the tables of sines and cosines for the positions need while they are computed in float64.

    Learned positions need no such tables; the result is then 0.
    """
    match config.position:
        case "learned":
            return 0
        case "sinusoidal":
            return 2 * FLOAT_BYTES * config.context_length * config.d_model
        case "rope":
            return 2 * FLOAT_BYTES * config.context_length * config.d_head
        case _:
            assert_never(config.position)


def _check(config: GPTConfig, needed: int, total: int | None, place: str, is_new: bool) -> None:
    remedy = (
        f"reduce model.d_model={config.d_model}, model.n_layer={config.n_layer} or model.context_length={config.context_length}"
        if is_new
        else "use a smaller model, or a machine with more memory"
    )
    if total is not None and needed > total:
        raise UserError(
            f"a model of {with_prefix(config.n_params())} parameters needs {with_prefix(needed)}B of memory, more than the "
            f"{with_prefix(total)}B of {place}: {remedy}"
        )
