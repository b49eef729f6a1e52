"""End a run whose validation loss no longer falls (early stopping)."""

from __future__ import annotations

from typing import Any

import lightning as L

from positron.run.measure import BITS_PER_BYTE
from positron.system.formatting import counted
from positron.training.module import TrainingModule


class Patience(L.Callback):
    """End the run after `limit` validations in a row without a new best one. The best checkpoint is kept.

    Only validations at multiples of `every` steps count. A run is also validated at the step at which it is stopped; this
    validation does not count, so that a run that is stopped and continued ends at the same step as an uninterrupted run.
    """

    def __init__(self, limit: int, every: int, rows: list[dict[str, Any]]) -> None:
        """Begin with the validations in `rows`, the rows of metrics.jsonl so far.

        The run ends after `limit` validations in a row without a new best one. Only validations at multiples of `every` steps
        count.
        """
        self.limit, self.every, self.best, self.since = limit, every, float("inf"), 0
        for bpb in BITS_PER_BYTE.curve(rows, every).values():
            self._note(bpb)

    def _note(self, bpb: float) -> None:
        self.since = 0 if bpb < self.best else self.since + 1
        self.best = min(self.best, bpb)

    @property
    def is_over(self) -> bool:
        """Tell whether the run has to end, because the best validation is at least `limit` validations ago."""
        return self.since >= self.limit

    @property
    def why(self) -> str:
        """Return the reason for the end of the run, as part of a message."""
        return f"after {counted(self.since, 'validation')} without a better one than {self.best:.4f} bits per byte"

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Stop the trainer after `limit` validations in a row without a new best one.

        A step without a validation is skipped, and also a step that is not a multiple of `every`.
        """
        if "val/bpb" in module.metrics and trainer.global_step % self.every == 0:
            self._note(module.metrics["val/bpb"])
            if self.is_over:
                trainer.should_stop = True
