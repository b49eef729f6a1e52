"""Count the seconds and the tokens of training."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from torch import Tensor

from positron.training.device import wait_for
from positron.training.module import TrainingModule


class Clock(L.Callback):
    """Count the seconds and tokens of training steps, without validation, samples and saving. Checkpoints store the sums.

    A GPU computes in the background. After each step that is a multiple of one of the `intervals`, and after `last_step`, the
    callback waits for the GPU, so that the GPU's time is counted. These must be the steps whose values are logged.

    The tokens of a step are the input positions of its forward passes, with padding, on all devices. `batch_tokens`: the number
    of tokens of a step if all its windows are full. This number is used only for a checkpoint of an older version, which does
    not store the number of tokens.
    """

    def __init__(self, intervals: set[int], last_step: int, batch_tokens: int) -> None:
        self.intervals, self.last_step, self.batch_tokens = intervals, last_step, batch_tokens
        self.time_s = 0.0  # seconds of the whole run, including earlier processes
        self.step_s = 0.0  # seconds of this process
        self.steps = 0  # steps of this process
        self._started = 0.0
        self._tokens = self._step_tokens = 0
        self._new: list[
            int | Tensor
        ] = []  # tokens of the last steps, not yet in the sums: a GPU may still compute them

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the whole run, including earlier processes."""
        self._add_up()
        return self._tokens

    @property
    def step_tokens(self) -> int:
        """Return the number of tokens of the steps of this process."""
        self._add_up()
        return self._step_tokens

    def _add_up(self) -> None:
        new = sum(int(tokens) for tokens in self._new)
        self._new.clear()
        self._tokens += new
        self._step_tokens += new

    def state_dict(self) -> dict[str, float]:
        """Return the seconds and tokens of training so far, for the checkpoint."""
        return {"time_s": self.time_s, "tokens": self.tokens}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the number of tokens to an estimate, because checkpoints of older versions of Positron do not store the number.

        The estimate assumes that all windows of the earlier steps were full. Lightning then calls `load_state_dict`, which
        replaces the estimate if the checkpoint stores the number.
        """
        self._tokens = checkpoint["global_step"] * self.batch_tokens

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continue counting from the sums in the checkpoint."""
        self.time_s = state_dict["time_s"]
        self._tokens = int(state_dict.get("tokens", self._tokens))

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time at which the step starts."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the seconds and the tokens of this step to the sums, and count the step."""
        step = trainer.global_step
        if step == self.last_step or any(step % interval == 0 for interval in self.intervals):
            wait_for(module.device)  # so that the time of the steps that are still being computed is counted
        passed = time.perf_counter() - self._started
        self.time_s += passed
        self.step_s += passed
        self.steps += 1
        self._new.append(module.tokens)
