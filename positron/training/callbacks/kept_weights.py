"""Keep weights of several steps, so that `positron look` can show what the model had learned by each of these steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L

from positron.run.kept_weights import history_steps, write_kept_weights
from positron.run.load import bare_names
from positron.training.callbacks.divergence import has_finite_state
from positron.training.module import TrainingModule
from positron.training.sharded_tensors import whole_state

logger = logging.getLogger(__name__)


class WeightHistory(L.Callback):
    """Write the weights to files at some steps of the training.

    `count` steps are chosen from step 0 (before the training) to the planned last step, both included. The intervals between
    them grow. If `count` is 1, only the planned last step is chosen. If `count` is 0, nothing is written. The weights are also
    written at the last step of a run that early stopping ends before the planned last step.

    This callback must run before the one that saves checkpoints. If the process is killed between these callbacks, the
    continued run trains the step again and writes its weights again. In the other order, the weights of the step would be
    missing.
    """

    def __init__(self, folder: Path, *, count: int, horizon: int, is_last: Callable[[L.Trainer], bool]) -> None:
        """Choose the `count` steps, from 0 to `horizon`, whose weights are written (see `history_steps`).

        `horizon` is the planned last step; a smaller `train.stop_at` does not change the choice. `folder` is the folder for the
        weights. `is_last` tells whether the current step is the last step of the run.
        """
        self.folder, self.steps, self.is_last = folder, history_steps(count, horizon), is_last

    def on_train_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Write the initial weights if the training begins at step 0, and step 0 is one of the chosen steps (`self.steps`)."""
        if trainer.global_step == 0 and 0 in self.steps:
            self._write(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: object) -> None:  # type: ignore[override]
        """Write the weights after each of the chosen steps (`self.steps`), and after the last step of the run.

        Nothing is written if no steps were chosen (train.keep_history=0), or if a weight or a moment of the optimizer is NaN or
        infinite.
        """
        is_due = trainer.global_step in self.steps or (trainer.should_stop and self.is_last(trainer))
        if self.steps and is_due and has_finite_state(trainer, module):
            self._write(trainer, module)

    def _write(self, trainer: L.Trainer, module: TrainingModule) -> None:
        with module.average.in_use():
            weights = bare_names(
                {name: value.detach().cpu() for name, value in whole_state(module.model.state_dict()).items()}
            )
            if trainer.is_global_zero:
                write_kept_weights(self.folder, trainer.global_step, weights)
