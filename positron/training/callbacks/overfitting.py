"""Warn the user that a model overfits."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from positron.training.module import TrainingModule

logger = logging.getLogger(__name__)

MIN_VALIDATIONS_ABOVE_BEST = 3  # the message needs this number of validations in a row without a new best one
MIN_RISE = 0.005  # the message needs a last validation that is above the best one by this share


class Overfitting(L.Callback):
    """Log one message, which names the best checkpoint, if the validation loss rises while the training loss falls."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Restore the best validation so far from `rows`, the rows of metrics.jsonl."""
        self._best, self._best_step, self._best_loss, self._since = float("inf"), 0, float("inf"), 0
        for row in rows:
            if row.get("val/bpb") is not None and row.get("train/loss") is not None:
                self._note(row["step"], row["val/bpb"], row["train/loss"])
        self._has_said = self._since >= MIN_VALIDATIONS_ABOVE_BEST

    def _note(self, step: int, bpb: float, loss: float) -> None:
        self._since += 1
        if bpb < self._best:
            self._best, self._best_step, self._best_loss, self._since = bpb, step, loss, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Log that the model overfits, if this step was validated and the losses show overfitting; log this only once."""
        bpb = module.metrics.get("val/bpb")
        if bpb is None:
            return
        loss = module.loss.item()
        self._note(trainer.global_step, bpb, loss)
        has_risen = self._since >= MIN_VALIDATIONS_ABOVE_BEST and bpb >= (1 + MIN_RISE) * self._best
        if self._has_said or not has_risen or loss >= self._best_loss:
            return
        self._has_said = True
        logger.info(
            f"the model overfits: {bpb:.4f} validation bits per byte, up from {self._best:.4f} at step {self._best_step}, "
            "while the training loss still falls. The text is too small for this model and this number of steps: give more "
            f"text, a smaller model= or a smaller train.max_steps=. generate, chat and evaluate use step {self._best_step}, "
            "which is kept as best.ckpt"
        )
