"""Find, check and load checkpoint files without executing anything in them (invariant 7 of docs/ARCHITECTURE.md)."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from positron.run.paths import CHECKPOINTS
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.disk import open_inside
from positron.system.errors import UserError

logger = logging.getLogger(__name__)

BEST = "best.ckpt"
# the weights with which a training continues, in a checkpoint whose state_dict is a mean of weights
WITHOUT_MEAN = "weights_without_mean"
_REMEDY = "use another checkpoint, or restore this one from a copy"
_NAME = re.compile(r"step-(\d{1,12})\.ckpt")
_NEEDED: dict[str, type] = {
    "state_dict": dict,
    "bad_steps": int,
    "global_step": int,
    "tokenizer_hash": str,
    "gpt_config": dict,
}
_NEEDED_TO_CONTINUE: dict[str, type] = {
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}


def load_checkpoint(path: Path, map_location: Any = "cpu", *, to_continue: bool = False) -> dict[str, Any]:
    """Load the tensors and plain values of a checkpoint.

    `map_location`: as in `torch.load`. With `to_continue`, the checkpoint must also contain the states of the optimizer, the
    learning-rate schedule, Lightning's loops and the callbacks. Raises UserError if the file is missing, corrupt or not a
    checkpoint of Positron, if it lacks a required part, or if a weight is not finite.
    """
    fault = checkpoint_fault(path)
    if fault and not path.exists():
        raise UserError(
            f"the checkpoint {path} does not exist: correct the path, or restore the file from a copy{_saved_beside(path)}"
        )
    if fault:
        raise UserError(f"cannot load the checkpoint {path}: {fault}; {_REMEDY}")
    try:
        with open_inside(path, "rb", run_of(path)) as file:
            checkpoint: Any = torch.load(file, map_location=map_location, weights_only=True)
    except OSError as error:
        raise UserError(f"cannot load the checkpoint {path}: {error.strerror or error}; {_REMEDY}") from error
    except Exception as error:  # torch raises many kinds of errors, and advises to execute the file
        raise UserError(
            f"cannot load the checkpoint {path}: it is damaged, or contains something other than tensors and plain "
            f"values; nothing in it was executed; {_REMEDY}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of a Positron run, because it has no state_dict; {_REMEDY} "
            f"({command('import', 'PATH')} converts a model of another program to a run)"
        )
    fault = _fault_of_contents(checkpoint, _NEEDED)
    if fault:
        raise UserError(f"{path} is not a complete checkpoint of a Positron run: {fault}; {_REMEDY}")
    fault = _fault_of_contents(checkpoint, _NEEDED_TO_CONTINUE) or _fault_of_mean(checkpoint) if to_continue else None
    if fault:
        raise UserError(
            f"training cannot be continued from {path}: {fault}; use another checkpoint, or give init_from=RUN instead of "
            "ckpt_path= to start with only the weights of a run"
        )
    _refuse_infinite_weights(checkpoint["state_dict"], path)
    return dict(checkpoint)


def _saved_beside(path: Path) -> str:
    """Return a note that names the newest checkpoints beside the missing file `path`; empty if there are none."""
    names = [other.name for other in checkpoints(path.parent)[-3:]] + [BEST] * (path.parent / BEST).exists()
    return one_line(f" (its folder contains {', '.join(names)})") if names else ""


def _fault_of_contents(checkpoint: Any, needed: dict[str, type]) -> str | None:
    for key, kind in needed.items():
        if key not in checkpoint:
            return f"it has no {key}"
        if not isinstance(checkpoint[key], kind) or isinstance(checkpoint[key], bool):
            return f"its {key} is a {type(checkpoint[key]).__name__}, not a {kind.__name__}"
    for name, weights in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(weights, torch.Tensor) or weights.is_sparse:
            return one_line(f"its state_dict contains {name}, which is not a dense tensor", 200)
    if checkpoint["global_step"] < 0 or checkpoint["bad_steps"] < 0:
        return "its global_step or bad_steps is negative"
    return None


def _fault_of_mean(checkpoint: dict[str, Any]) -> str | None:
    weights, means = checkpoint.get(WITHOUT_MEAN, {}), checkpoint["state_dict"]
    if not isinstance(weights, dict):
        return f"its {WITHOUT_MEAN} is a {type(weights).__name__}, not a dict"
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or name not in means or value.shape != means[name].shape:
            return one_line(f"its {WITHOUT_MEAN} contains {name}, which does not fit its state_dict", 200)
    return None


def run_of(path: Path) -> Path:
    """Return the folder of the run if the file `path` is in a run's `checkpoints/`, otherwise the folder of the file.

    When the file is opened, symbolic links below the returned folder are refused.
    """
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def _refuse_infinite_weights(state_dict: dict[str, Any], path: Path) -> None:
    """Raise UserError for NaN or infinite weights, which older versions of Positron could save."""
    tensors = [value for value in state_dict.values() if torch.is_tensor(value) and value.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise UserError(
            f"the weights in {path} are NaN or infinite because the training diverged: train again "
            "under another name= with a lower optimizer.lr="
        )


def checkpoint_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None if it is undamaged.

    Checks the directory of the zip file and the CRC-32 of each tensor. Raises UserError for a symbolic link inside a run
    folder.
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
        jargon = isinstance(error, zipfile.BadZipFile)  # a checkpoint is a zip archive, which no user has to know
        return "it is truncated or corrupt" if jargon else one_line(f"it is truncated or corrupt ({error})", 300)
    return one_line(f"it is corrupt ({broken} does not match its checksum)", 300) if broken else None


def checkpoints(folder: Path) -> list[Path]:
    """Return the files `step-*.ckpt` in `folder`, the folder of a run's checkpoints, oldest first.

    `best.ckpt` is left out, because it is a hard link to one of these files, or a copy of one.
    """
    numbered = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint file, `step-*.ckpt`."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def best_or_newest(folder: Path) -> Path | None:
    """Return the best checkpoint in `folder`, or the newest one if no best was saved; None if there are no checkpoints.

    If the best checkpoint is damaged, logs a warning and returns the newest undamaged one. Raises UserError if every
    checkpoint is damaged.
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
            f"every checkpoint in {folder} is damaged, for example {name}: {reason}; restore one from a copy, or train again "
            "under another name="
        )
    if newest is not None and fault is not None:
        logger.warning(
            f"{best} cannot be used: {fault}. Using {newest.name} instead, which may not be the best model of this run; to "
            f"avoid this warning, restore {BEST} from a copy, or delete {BEST}: then the newest checkpoint is used"
        )
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the undamaged checkpoint of the latest step in `folder`, or `best.ckpt` if all others are damaged or missing.

    Logs each damaged checkpoint that is skipped. Returns None if all checkpoints are damaged or there are none.
    """
    best = folder / BEST
    newest, faults = _newest_whole([*([best] if best.exists() else []), *checkpoints(folder)])
    for path, fault in faults.items():
        logger.info(f"skipping {path}: {fault}")
    return newest


def _newest_whole(saved: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Return the last undamaged file of the list `saved`, and a dict with the faults of all files after it in this list.

    The dict maps the path of a damaged file to a text that says what is wrong with the file. If all files are damaged, the
    first value is None.
    """
    faults: dict[Path, str] = {}
    for path in reversed(saved):
        fault = checkpoint_fault(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults
