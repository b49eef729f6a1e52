"""Count the seconds of training."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from positron.training.device import wait_for
from positron.training.module import TrainingModule


class Clock(L.Callback):
    """Count the seconds of training steps, without validation, samples and saving. Checkpoints store the sum, `time_s`.

    A GPU computes in the background. Every `log_every` steps, the callback waits for it, so that its time is counted.
    """

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self.time_s = 0.0  # seconds of the whole run, including earlier processes
        self.step_s = 0.0  # seconds of this process
        self.steps = 0  # steps of this process
        self._started = 0.0

    def state_dict(self) -> dict[str, float]:
        """Return the seconds of training so far, for the checkpoint."""
        return {"time_s": self.time_s}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continue counting from the seconds in the checkpoint."""
        self.time_s = state_dict["time_s"]

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time at which the step starts."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the seconds of this step to `time_s` and `step_s`, and count the step."""
        if trainer.global_step % self.log_every == 0:
            wait_for(module.device)  # the only place where the host waits for an accelerator
        passed = time.perf_counter() - self._started
        self.time_s += passed
        self.step_s += passed
        self.steps += 1
