"""Models that no machine like this one can hold are refused with their size, before anything is allocated for them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import assert_never

import torch

from positron.config import GPTConfig
from positron.system.errors import UserError

FLOAT = 4  # bytes; weights, gradients and moments are float32 in every precision
TRAINED = 4  # numbers per trained parameter: itself, its gradient and the optimizer's two moments
LAYER_BYTES = 20_000  # of Python objects for each layer, however narrow


def machine_memory() -> int | None:
    """Return the bytes that programs can have on this machine, or in this container; None where the system is silent."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows; a system without these names
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError):  # no container
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        sizes += [int(limit)] if limit.isdigit() else []
    return min(sizes, default=None)


def refuse_what_cannot_fit(config: GPTConfig, *, copies: int, accelerator: str = "cpu", processes: int = 1) -> None:
    """Raise UserError where `copies` floats for each parameter are more than all the memory of the machine.

    `copies`: TRAINED, or 1 where the model is only used. Weights are made in main memory, whatever the accelerator.
    """
    total = machine_memory()
    fixed = config.n_layer * LAYER_BYTES + _table_bytes(config)
    _refuse(config, FLOAT * config.n_params() * (copies if accelerator == "cpu" else 1) + fixed, total, "this machine")
    if accelerator == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory * processes
        _refuse(config, FLOAT * config.n_params() * copies, total, "its GPU" if processes == 1 else "its GPUs")


def _table_bytes(config: GPTConfig) -> int:
    """Bytes of positions that are no parameters; they are computed in float64."""
    match config.position:
        case "learned":
            return 0
        case "sinusoidal":
            return 2 * FLOAT * config.context_length * config.d_model
        case "rope":
            return 2 * FLOAT * config.context_length * config.d_head
        case _:
            assert_never(config.position)


def _refuse(config: GPTConfig, needed: int, total: int | None, where: str) -> None:
    if total is not None and needed > total:
        raise UserError(
            f"a model of {_si(config.n_params())} parameters needs {_si(needed)}B of memory and {where} has {_si(total)}B: "
            f"give less than model.d_model={config.d_model}, model.n_layer={config.n_layer} or "
            f"model.context_length={config.context_length}"
        )


def _si(number: float) -> str:
    """Three digits and a unit: `4.00 T`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} E"
