"""Checkpoint files: whole or absent, found again without guessing, loaded without executing anything.

Invariant 7 of docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from positron.run.paths import CHECKPOINTS
from positron.system.console import one_line
from positron.system.disk import open_inside
from positron.system.errors import UserError

logger = logging.getLogger(__name__)

BEST = "best.ckpt"
_NAME = re.compile(r"step-(\d{1,12})\.ckpt")
_NEEDED = {"state_dict": dict, "bad_steps": int, "global_step": int, "tokenizer_hash": str, "gpt_config": dict}
_NEEDED_TO_CONTINUE = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}


def load_checkpoint(path: Path, map_location: Any = "cpu", *, to_continue: bool = False) -> dict[str, Any]:
    """Load weights and plain values. UserError where the file is missing, corrupt, or not a checkpoint of Positron.

    `to_continue`: what training needs beside the weights must be in it, too.
    """
    fault = checkpoint_fault(path)
    if fault:
        raise UserError(f"cannot load the checkpoint {path}: {fault}")
    try:
        with open_inside(path, "rb", run_of(path)) as file:
            checkpoint: Any = torch.load(file, map_location=map_location, weights_only=True)
    except OSError as error:
        raise UserError(f"cannot load the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises whatever its reader meets, with the advice to execute the file
        raise UserError(
            f"cannot load the checkpoint {path}: it holds something else than tensors and plain values, or is damaged; "
            "nothing in it was executed"
        ) from error
    fault = _fault_of_contents(checkpoint, {**_NEEDED, **(_NEEDED_TO_CONTINUE if to_continue else {})})
    if fault:
        raise UserError(f"{path} is not a whole checkpoint of a Positron run: {fault}")
    _refuse_infinite_weights(checkpoint["state_dict"], path)
    return dict(checkpoint)


def _fault_of_contents(checkpoint: Any, needed: dict[str, type]) -> str | None:
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}"
    for key, kind in needed.items():
        if key not in checkpoint:
            return f"it has no {key}"
        if not isinstance(checkpoint[key], kind) or isinstance(checkpoint[key], bool):
            return f"its {key} is a {type(checkpoint[key]).__name__}, not a {kind.__name__}"
    for name, weights in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(weights, torch.Tensor) or weights.is_sparse:
            return one_line(f"its state_dict holds {name}, which is not an array of weights", 200)
    if checkpoint["global_step"] < 0 or checkpoint["bad_steps"] < 0:
        return "its global_step or bad_steps is negative"
    return None


def run_of(path: Path) -> Path:
    """The folder below which links are not followed: that of the run, for a file in its checkpoints/."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def _refuse_infinite_weights(state_dict: dict[str, Any], path: Path) -> None:
    """Checkpoints of older versions may hold them: nothing can be continued from, fine-tuned from or measured."""
    tensors = [value for value in state_dict.values() if torch.is_tensor(value) and value.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise UserError(
            f"the weights in {path} are NaN or infinite, because the training diverged: take an earlier checkpoint, "
            "or train again under another name= with a lower optimizer.lr"
        )


def checkpoint_fault(path: Path) -> str | None:
    """Tell what is wrong with the file, None for a whole one; reads the zip's directory and the CRC-32 of each tensor.

    Raises UserError for a symbolic link inside a run folder.
    """
    try:
        with open_inside(path, "rb", run_of(path)) as file, zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "it is corrupt (a part of it is compressed, which checkpoints are not)"
            broken = archive.testzip()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged headers, NotImplementedError among them
        return one_line(f"it is truncated or corrupt ({error})", 300)
    return one_line(f"it is corrupt ({broken} does not match its checksum)", 300) if broken else None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run by step, oldest first. `best.ckpt` is one of them under a second name."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def step_of(path: Path) -> int:
    """The step of a checkpoint file, by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def best_or_newest(folder: Path) -> Path | None:
    """Return the best checkpoint, or, loudly, the newest whole one if the best is damaged; None where there is none.

    Raises UserError where all are damaged.
    """
    best, fault = folder / BEST, None
    if best.exists() or best.is_symlink():
        fault = checkpoint_fault(best)
        if fault is None:
            return best
    newest = newest_checkpoint(folder) if fault is None else _newest_whole(checkpoints(folder))[0]
    saved = checkpoints(folder)
    if newest is None and (fault or saved):
        name, reason = (BEST, fault) if fault else (saved[-1].name, checkpoint_fault(saved[-1]))
        raise UserError(
            f"no checkpoint in {folder} can be used ({name}: {reason}): restore one from a copy, or train the run again"
        )
    if newest is not None and fault is not None:
        logger.warning(
            f"{best} cannot be used: {fault}. Using {newest.name} instead, which may not be the best model of "
            f"this run; restore {BEST} from a copy, or delete it to make this the choice"
        )
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the highest step; corrupt ones are passed over with a notice."""
    best = folder / BEST
    newest, faults = _newest_whole([*([best] if best.exists() else []), *checkpoints(folder)])
    for path, fault in faults.items():
        logger.info(f"passing over {path}: {fault}")
    return newest


def _newest_whole(saved: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Return the last of the files that is whole, and what is wrong with those after it."""
    faults: dict[Path, str] = {}
    for path in reversed(saved):
        fault = checkpoint_fault(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults
