"""End a run at its last step, before its time limit, or after a signal."""

from __future__ import annotations

import signal
import time
from typing import Any

import lightning as L

from positron.training.module import TrainingModule
from positron.training.signals import Signals


class Stopping(L.Callback):
    """End the run at `last_step`, or earlier: after a signal, or when another step could exceed `max_seconds`.

    The seconds count from `started`, a value of time.monotonic(). After a signal, the step in progress is given up before its
    next micro-batch, and the last complete step is saved. If there are several processes, they all stop together at the end
    of a step.
    """

    def __init__(self, *, last_step: int, max_seconds: float | None, started: float, signals: Signals) -> None:
        self.last_step, self.max_seconds, self.started, self.signals = last_step, max_seconds, started, signals
        self._longest_step = 0.0
        self._last_end = 0.0

    def on_train_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Install the signal handlers and note the time at which the first step starts."""
        self.signals.install()
        self.signals.can_save = True
        self._last_end = time.monotonic()
        if trainer.world_size == 1:
            module.before_micro_batch = self.signals.leave

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Stop the trainer after the last step, after a signal, or if another step could exceed the time limit."""
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._last_end)  # validation and saving included
        self._last_end = now
        stop = self.max_seconds is not None and now - self.started + 1.5 * self._longest_step > self.max_seconds
        if trainer.world_size > 1:
            # a callback of the user may have stopped the trainer of one process before this hook
            stop = trainer.strategy.reduce_boolean_decision(stop or trainer.should_stop, all=False)
            if trainer.strategy.reduce_boolean_decision(bool(self.signals.received), all=False):
                self.signals.received = self.signals.received or signal.SIGTERM  # another process received it
                stop = True
        if stop or trainer.global_step >= self.last_step:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Raise Interrupted if a signal was received."""
        self.signals.leave()


class CommonEnd(L.Callback):
    """Stop the trainers of all processes after a step if a callback of the user has stopped the trainer of one of them.

    The other processes would otherwise wait forever for the one that has ended. `has_callbacks`: whether the user has given
    callbacks to this process. Without any, the processes exchange nothing.
    """

    def __init__(self, has_callbacks: bool) -> None:
        self.is_needed = has_callbacks

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Find out whether any process has callbacks of the user; a program may give them to one process only."""
        self.is_needed = trainer.strategy.reduce_boolean_decision(self.is_needed, all=False)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop the trainer of this process if that of any process is stopped."""
        if self.is_needed:
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
