"""Save checkpoints. A file appears only when it is complete, so that a crash leaves no damaged checkpoint."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO

from positron.run.checkpoint import BEST, checkpoints, load_checkpoint, run_of, step_of
from positron.run.folder import Run
from positron.run.metrics import best_so_far, read_metrics
from positron.system.disk import replace_by_link, whole_file
from positron.system.errors import Diverged, LeftAtOnce, UserError, is_raised_together
from positron.training.callbacks.divergence import diverged, has_finite_state
from positron.training.module import TrainingModule


class WholeCheckpointIO(CheckpointIO):
    """Write checkpoints to a temporary file that is then renamed.

    Lightning's own writer builds the whole file in memory, does not call fsync, and reports no error for a read-only folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the file `path` appears only when it is complete.

        Raises UserError if it contains a value that `load_checkpoint` would refuse, such as the state of a user's callback.
        """
        path = Path(path)
        others = {key: _plain(value, key) for key, value in checkpoint.items() if key != "state_dict"}
        with whole_file(path, run_of(path)) as file:
            torch.save({**checkpoint, **others}, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without executing code in it. Raises UserError if it is damaged.

        By default, the tensors are read into main memory: the run may have been trained on a device that this machine does not
        have, and Lightning copies the tensors to the device of the training.
        """
        return load_checkpoint(Path(path), "cpu" if map_location is None else map_location, to_continue=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(L.Callback):
    """Save a checkpoint every `every` steps, after each new best validation, at the last step, and when an error ends a run."""

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep_last: int,
        best: float | None,
        note_saved: Callable[[int], None],
        note_best: Callable[[int, float], None],
    ) -> None:
        """Store the arguments.

        A checkpoint is saved every `every` steps. `keep_last` is the number of newest checkpoints to keep.

        `best`: the lowest validation loss so far, in bits per byte, or None if the newest checkpoint counts as the best one
        whatever its validation loss.

        `note_saved(step)` is called after each checkpoint. It records the step in run.json, so that the progress of a run that
        is killed is known. `note_best(step, bits_per_byte)` is called after each new best validation. It records both numbers
        in run.json, because metrics.jsonl may be damaged later.
        """
        self.folder, self.every, self.keep_last, self.best = folder, every, keep_last, best
        self.note_saved, self.note_best = note_saved, note_best
        self.saved_step = -1
        self.complete_step = -1  # the last step after which all callbacks before this one have measured and written

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Save a checkpoint if the step is a multiple of `every`, has the best validation so far, or is the last one.

        Raises Diverged if the weights or the moments of the optimizer are not finite.
        """
        step = trainer.global_step
        bpb = module.metrics.get("val/bpb", float("inf"))
        is_best = self.best is not None and bpb < self.best
        if is_best or step % self.every == 0 or trainer.should_stop:
            if not has_finite_state(trainer, module):
                raise diverged(trainer, f"weights are NaN or infinite after step {step}")
            path = self.save(trainer)
            if is_best:
                self.best = bpb
                if trainer.is_global_zero:
                    replace_by_link(path, self.folder / BEST)  # remains when `path` is deleted
                    self.note_best(step, bpb)
        self.complete_step = step

    def save(self, trainer: L.Trainer) -> Path:
        """Save a checkpoint of this step, delete all but the newest `keep_last` checkpoints, and return the new one's path.

        best.ckpt is not deleted. If the attribute `best` is None, the newest checkpoint counts as the best one, so best.ckpt is
        replaced by the new checkpoint.
        """
        path = self.folder / f"step-{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(path)
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            if self.best is None:
                replace_by_link(path, self.folder / BEST)  # remains when `path` is deleted
            self.note_saved(trainer.global_step)
            # later steps exist if their files are damaged and the run continued before them; the run will write them again
            earlier = [old for old in checkpoints(self.folder) if step_of(old) <= trainer.global_step]
            for old in earlier[: -self.keep_last]:
                with contextlib.suppress(PermissionError):  # Windows deletes no open file; the next call tries again
                    old.unlink()
        return path

    def on_exception(self, trainer: L.Trainer, module: TrainingModule, exception: BaseException) -> None:  # type: ignore[override]
        """Save the last complete step when an exception ends the run, unless this process has saved it already.

        A step is complete when its metrics, its validation and its samples are written: a run that continued after a step that
        a callback cut off would never measure this step. Only for a Diverged whose `can_save` is True, that step is saved,
        because the run cannot be continued.

        Nothing is saved if the weights are partly updated or not finite, or if the exception is a KeyboardInterrupt, a
        LeftAtOnce (the user asked for an end without saving), or another Diverged. Several processes have to save together, so
        they save only after an error that all of them raise. If the step cannot be saved after a UserError, such as that of a
        full disk, the UserError says why.
        """
        if trainer.global_step <= max(self.saved_step, 0) or module.updating:
            return
        if trainer.world_size > 1 and not is_raised_together(exception):
            return
        if isinstance(exception, (KeyboardInterrupt, LeftAtOnce)):
            return
        is_complete = trainer.global_step == self.complete_step
        can_save = exception.can_save if isinstance(exception, Diverged) else is_complete
        if can_save and has_finite_state(trainer, module):
            with contextlib.suppress(*([UserError] if isinstance(exception, UserError) else [])):
                self.save(trainer)


def complete_best(run: Run, newest: Path, *, keeps_best: bool) -> None:
    """Make best.ckpt the checkpoint `newest` if a process was killed between saving it and doing so.

    `keeps_best`: False if the newest checkpoint counts as the best one whatever its validation loss.
    """
    step, best = step_of(newest), run.checkpoint_folder / BEST
    if keeps_best and best_so_far(read_metrics(run.metrics_path), run.facts(), step)[1] != step:
        return
    with contextlib.suppress(UserError):  # missing or damaged
        if load_checkpoint(best)["global_step"] == step:
            return
    replace_by_link(newest, best)


def _plain(value: Any, place: str) -> Any:
    """Return a value of a checkpoint with Python's numbers in place of NumPy's, which `load_checkpoint` refuses.

    `place` says where the value is, such as callbacks.MyCallback.best. Raises UserError if it contains another value that
    `load_checkpoint` refuses.
    """
    if type(value) is dict:
        return {_plain(key, f"a key of {place}"): _plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(inner, f"{place}[{index}]") for index, inner in enumerate(value))
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, torch.Tensor) or type(plain) in (int, float, bool, str, type(None)) or _can_be_loaded(plain):
        return plain
    raise UserError(
        f"cannot save a checkpoint: {place} is a {type(value).__name__}, which could not be loaded again: convert it to "
        "tensors, numbers, texts, lists, tuples or dicts, for example in state_dict()"
    )


def _can_be_loaded(value: Any) -> bool:
    """Tell whether a value that is not of the usual types, such as a set, can be loaded without executing code."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # pickle raises many kinds of errors
        return False
    return True
