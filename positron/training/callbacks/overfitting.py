"""Tell the user that a model overfits."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from positron.training.module import TrainingModule

logger = logging.getLogger(__name__)

RISES = 3  # validations in a row above the best one, the last of them by RISE, before it is called overfitting
RISE = 0.005


class Overfitting(L.Callback):
    """Say once that validation rises while training still falls, and which checkpoint is kept."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """`rows`: those of the run so far."""
        self._best, self._best_step, self._best_loss, self._since = float("inf"), 0, float("inf"), 0
        for row in rows:
            if row.get("val/bpb") is not None and row.get("train/loss") is not None:
                self._note(row["step"], row["val/bpb"], row["train/loss"])
        self._has_said = self._since >= RISES

    def _note(self, step: int, bpb: float, loss: float) -> None:
        self._since += 1
        if bpb < self._best:
            self._best, self._best_step, self._best_loss, self._since = bpb, step, loss, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Log one line when validation has risen often enough while training still falls."""
        bpb = module.metrics.get("val/bpb")
        if bpb is None:
            return
        loss = module.loss.item()
        self._note(trainer.global_step, bpb, loss)
        if self._since < RISES or self._has_said or bpb < (1 + RISE) * self._best or loss >= self._best_loss:
            return
        self._has_said = True
        logger.info(
            f"the model overfits: {bpb:.4f} validation bits per byte, after {self._best:.4f} at step {self._best_step}, "
            "while the training loss still falls. The text is small for this model and this many steps. best.ckpt keeps "
            f"step {self._best_step}; generate, chat and evaluate use it"
        )
