"""Save checkpoints: completely or not at all, and never over an existing one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO

from positron.run.checkpoint import BEST, checkpoints, load_checkpoint, run_of
from positron.system.disk import open_inside, whole_file
from positron.system.errors import Diverged, LeftAtOnce, UserError
from positron.training.callbacks.divergence import diverged, has_finite_state
from positron.training.module import TrainingModule


class WholeCheckpointIO(CheckpointIO):
    """Write checkpoints through a temporary file.

    Lightning's own writer keeps the whole file in memory, does not call fsync, and reports no error for a read-only folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint completely or not at all."""
        path = Path(path)
        with whole_file(path, run_of(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it. Raises UserError if it is damaged."""
        return load_checkpoint(Path(path), map_location, to_continue=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(L.Callback):
    """Save every `every` steps, at the best validation, at the last step, and when anything ends the run early."""

    def __init__(
        self, folder: Path, *, every: int, keep_last: int, best: float, note_best: Callable[[int, float], None]
    ) -> None:
        """`note_best` records step and bits per byte of the best model outside metrics.jsonl, which may be damaged later."""
        self.folder, self.every, self.keep_last, self.best = folder, every, keep_last, best
        self.note_best = note_best
        self.saved_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Save if the step is due, the best so far or the last. Raises Diverged if weights are not finite."""
        step = trainer.global_step
        bpb = module.metrics.get("val/bpb", float("inf"))
        if bpb < self.best or step % self.every == 0 or trainer.should_stop:
            if not has_finite_state(trainer, module):
                raise diverged(trainer, f"weights are NaN or infinite after step {step}")
            path = self.save(trainer)
            if bpb < self.best and trainer.is_global_zero:
                self._mark_best(path)
                self.note_best(step, bpb)
            self.best = min(self.best, bpb)

    def save(self, trainer: L.Trainer) -> Path:
        """Save the current step, delete the oldest checkpoints, and return the path."""
        path = self.folder / f"step-{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(path)
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[: -self.keep_last]:
                old.unlink()
        return path

    def on_exception(self, trainer: L.Trainer, module: TrainingModule, exception: BaseException) -> None:  # type: ignore[override]
        """Save the last complete step when an exception ends the run.

        Nothing is saved if weights may be half updated or are not finite, if the error is a UserError such as a full disk,
        if the user asked to leave at once, or if there are several ranks, because all of them would have to take part.
        """
        if trainer.global_step <= max(self.saved_step, 0) or module.updating or trainer.world_size > 1:
            return
        if isinstance(exception, (UserError, KeyboardInterrupt, LeftAtOnce)):
            return
        if isinstance(exception, Diverged) and not exception.can_save:
            return
        if has_finite_state(trainer, module):
            self.save(trainer)

    def _mark_best(self, path: Path) -> None:
        """Link the step file as the best checkpoint, which survives its removal; copy it where links are not supported."""
        link = self.folder / f".{BEST}.tmp"
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
            link.replace(self.folder / BEST)
        except OSError:
            with whole_file(self.folder / BEST) as file, open_inside(path, "rb") as source:
                shutil.copyfileobj(source, file)
