"""Checkpoint files: whole or absent, found again without guessing, loaded without executing anything (law 7)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from positron.config import UserError

BEST = "best.ckpt"
_NAME = re.compile(r"step-(\d+)\.ckpt")


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """UserError where the file is missing, corrupt, or not a checkpoint of ours."""
    fault = checkpoint_fault(path)
    if fault:
        raise UserError(f"cannot load the checkpoint {path}: {fault}")
    checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    if "state_dict" not in checkpoint or "bad_steps" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a Positron run")
    _refuse_infinite_weights(checkpoint["state_dict"], path)
    return checkpoint


def _refuse_infinite_weights(state_dict: dict[str, Any], path: Path) -> None:
    """Checkpoints of older versions may hold them: nothing can be continued from, fine-tuned from or measured."""
    tensors = [value for value in state_dict.values() if torch.is_tensor(value) and value.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise UserError(
            f"the weights in {path} are NaN or infinite, because the training diverged: take an earlier checkpoint, "
            "or train again under another name= with a lower optimizer.lr"
        )


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with the file, None for a whole one: the zip's directory and the CRC-32 of every tensor is read."""
    if not path.is_file():
        return "there is no such file"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return f"it is truncated or corrupt ({error})"
    return f"it is corrupt ({broken} does not match its checksum)" if broken else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run by step, oldest first. `best.ckpt` is one of them under a second name."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def step_of(path: Path) -> int:
    """The step of a checkpoint file, by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def best_or_newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The best checkpoint, where it is whole, else the newest that is."""
    return folder / BEST if checkpoint_fault(folder / BEST) is None else newest_checkpoint(folder, say)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The whole checkpoint of the highest step; corrupt ones are passed over with a notice."""
    candidates = [*([folder / BEST] if (folder / BEST).is_file() else []), *checkpoints(folder)]
    for path in reversed(candidates):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        say(f"passing over {path}: {fault}")
    return None
