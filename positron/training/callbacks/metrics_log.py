"""Write metrics.jsonl, which has a row of measured values for each logged step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from torch import Tensor

from positron.run.metrics import append_row
from positron.run.paths import RunPaths
from positron.system.disk import is_number
from positron.system.errors import UserError
from positron.training.callbacks.clock import Clock
from positron.training.device import peak_memory
from positron.training.module import TrainingModule
from positron.training.timing import SpeedFacts
from positron.training.trackers.tracker import Tracker


class MetricsLog(L.Callback):
    """Append a row of measured values to metrics.jsonl, and pass the row to the trackers (wandb, TensorBoard).

    This happens after each step that is a multiple of at least one of the `intervals`, after each step with a validation, after
    the step at which the training ends or is stopped, and when an error or a signal ends the training and its last complete
    step is saved. So metrics.jsonl has a row for each checkpoint.
    """

    def __init__(
        self, folder: Path, clock: Clock, trackers: list[Tracker], *, intervals: set[int], speed: SpeedFacts
    ) -> None:
        """Store the arguments.

        `folder`: the folder of the run, which contains metrics.jsonl. `clock`: the callback that counts the seconds and tokens
        of training. `trackers`: the other receivers of each row, such as TensorBoard. `speed` computes the metric speed/mfu,
        the model FLOPs utilisation.

        `intervals`: a row is written after each step that is a multiple of one of these numbers, among which is the interval of
        the checkpoints. They must be the same on all ranks, because all ranks together compute the terms of the loss of a row.
        """
        self.intervals, self.speed = intervals, speed
        self.path, self.clock, self.trackers = RunPaths(folder).metrics_path, clock, trackers
        self._since = (0, 0.0)  # tokens and seconds of this process at the last row
        self._row_step = 0  # step of the last row
        self._last_step = 0  # step after which this callback was called last, whether or not it wrote a row

    def on_train_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Note the step at which this process begins, whose row an earlier process has written."""
        self._row_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Append a row to metrics.jsonl and pass it to the trackers, if this step is to be logged."""
        step = self._last_step = trainer.global_step
        due = any(step % interval == 0 for interval in self.intervals)
        if due or "val/bpb" in module.metrics or trainer.should_stop:
            self._append(trainer, module, module.objective.loss_terms())

    def on_save_checkpoint(self, trainer: L.Trainer, module: TrainingModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Append the row of the last complete step if it has none, because an error or a signal ended the next step.

        The row has no terms of the loss: the step that was given up may have changed their sums. No row is written if a user's
        callback saves a checkpoint of a step that this callback has not seen yet.
        """
        if trainer.global_step == self._last_step > self._row_step:
            self._append(trainer, module, {})

    def _append(self, trainer: L.Trainer, module: TrainingModule, terms: dict[str, Tensor]) -> None:
        step = self._row_step = trainer.global_step
        if trainer.world_size > 1:
            terms = {name: trainer.strategy.reduce(term, reduce_op="mean") for name, term in terms.items()}
        if not trainer.is_global_zero:
            return
        tokens, seconds = self.clock.step_tokens - self._since[0], self.clock.step_s - self._since[1]
        self._since = (self.clock.step_tokens, self.clock.step_s)
        tokens_per_s = tokens / seconds
        if "val/bpb" in module.metrics:
            self.speed.peak.look()
        row = {
            "step": step,
            "tokens": self.clock.tokens,
            "time_s": round(self.clock.time_s, 3),
            **{name: loss.item() for name, loss in {"train/loss": module.loss, **terms}.items()},
            "train/lr": module.lr(step),
            "train/grad_norm": module.grad_norm.item(),
            "train/skipped_steps": int(module.bad_steps),
            "speed/tokens_per_s": round(tokens_per_s, 1),
            "speed/mfu": round(self.speed.mfu(tokens_per_s), 4),
            "memory/peak_gb": round(peak_memory(module.device) / 1e9, 3),
            **{name: _number(name, value) for name, value in module.metrics.items()},
        }
        append_row(self.path, row)
        for tracker in self.trackers:
            tracker.log(row, step)


def _number(name: str, value: Any) -> float | None:
    """Return the value of a metric as a number that metrics.jsonl can hold, or None if it is None; a bool becomes 0 or 1.

    A user's callback may have added a value of any type. Raises UserError if it is not a single number.
    """
    if value is None or is_number(value):
        return cast("float | None", value)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"the metric {name} is not a number, but a value of type {type(value).__name__}: correct the callback that adds it "
            "to module.metrics"
        ) from error
