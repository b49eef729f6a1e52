"""Show the progress of a run and the time that is left: by a bar on a terminal, else by lines.

After 20 steps, a line with the speed and the expected duration is logged once.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from typing import Any

import lightning as L
import torch

from positron.system.console import shows_bars
from positron.system.progress import clock
from positron.system.threads import OtherPrograms, describe_others
from positron.training.callbacks.clock import Clock
from positron.training.device import peak_memory
from positron.training.module import TrainingModule
from positron.training.timing import SpeedFacts

logger = logging.getLogger(__name__)

FORECAST_STEP = 20  # after this number of steps of the process, speed and duration are logged
WINDOW_S = 60.0  # the time that is left is computed from the steps of the last 60 seconds


class TimeLeft:
    """Predict how many seconds the run still takes, from the mean duration of the steps of the last minute.

    The duration of a step includes the validation and the saving after it.
    """

    def __init__(self, now: float, step: int) -> None:
        self._past = deque([(now, step)])

    def note(self, now: float, step: int) -> None:
        """Record that `step` ended at the time `now`, in seconds."""
        self._past.append((now, step))
        while len(self._past) > 2 and now - self._past[1][0] >= WINDOW_S:
            self._past.popleft()

    def seconds(self, last_step: int) -> float:
        """Return the predicted seconds until `last_step` ends."""
        (since, first), (now, step) = self._past[0], self._past[-1]
        return (now - since) / max(1, step - first) * (last_step - step)


class Progress(L.Callback):
    """Show a bar on a terminal and a line every 15 seconds elsewhere; after 20 steps, log the expected duration of the run."""

    def __init__(self, clock: Clock, *, last_step: int, speed: SpeedFacts, is_alone: bool) -> None:
        """Store the arguments.

        `clock`: the callback that measures the seconds and counts the tokens of training. `last_step`: the step at which this
        process stops. `speed`: the facts from which the model FLOPs utilisation (MFU) is computed. `is_alone`: True if no other
        run of a sweep trains at the same time, so that a bar can be shown.
        """
        self.clock, self.last_step, self.speed, self.is_alone = clock, last_step, speed, is_alone
        self.bar: Any = None
        self._shown = 0.0
        self._started = (0.0, 0)
        self._left = TimeLeft(0.0, 0)
        self._others = OtherPrograms()
        self._val = ""

    def on_train_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Note the time at which training starts and, on a terminal, show a bar."""
        self._started = (time.perf_counter(), trainer.global_step)
        self._left = TimeLeft(*self._started)
        self._others.cores()
        if module.device.type == "cuda":  # the peak of this training, not of the trials before it
            torch.cuda.reset_peak_memory_stats(module.device)
        if shows_bars() and trainer.is_global_zero and self.is_alone:
            with warnings.catch_warnings():
                # a notebook without ipywidgets gets a bar of letters, which is sufficient
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm

            self.bar = tqdm(
                total=self.last_step, initial=trainer.global_step, unit="step", mininterval=0.2, dynamic_ncols=True
            )

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Update the bar or, if there is none, log a line every 15 seconds."""
        if not trainer.is_global_zero:
            return
        step, now = trainer.global_step, time.perf_counter()
        self._left.note(now, step)
        if self.clock.steps == FORECAST_STEP:
            self.speed.peak.look()
            logger.info(self._forecast(module, now))
        if "val/bpb" in module.metrics:
            self._val = f" · val {module.metrics['val/bpb']:.4f} bpb"
        interval = 0.2 if self.bar is not None else 15.0
        first = step == self._started[1] + 1
        if now - self._shown < interval and not trainer.should_stop and not (self.bar is None and first):
            return
        self._shown = now
        loss = module.loss.item()
        text = (
            f"{module.objective.progress(module.metrics, loss)}{self._val} · "
            f"lr {module.lr(step):.1e} · {self._tokens_per_s():,.0f} tok/s"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            busy = describe_others(self._others.cores())
            left = clock(self._left.seconds(self.last_step))
            logger.info(f"step {step}/{self.last_step} · {text} · {left} left" + (f" ({busy})" if busy else ""))

    def _tokens_per_s(self) -> float:
        return self.clock.step_tokens / self.clock.step_s

    def _forecast(self, module: TrainingModule, now: float) -> str:
        speed, busy = self._tokens_per_s(), describe_others(self._others.cores())
        (began, first), last = self._started, self.last_step
        whole = now - began + self._left.seconds(last)
        steps = "the whole run" if (first, last) == (0, module.horizon) else f"steps {first + 1} to {last}"
        return (
            f"{speed:,.0f} tokens/s, {self.speed.mfu(speed):.0%} of the {self.speed.peak.flops / 1e9:,.0f} GFLOP/s that this "
            f"machine reaches in matrix products, {peak_memory(module.device) / 1e9:.1f} GB of memory at most; "
            f"{clock(whole)} for {steps}" + (f"; {busy}, so the training may be faster later" if busy else "")
        )

    def close(self) -> None:
        """Remove the progress bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_end(self, *_: Any) -> None:
        """Remove the progress bar."""
        self.close()

    def on_exception(self, *_: Any) -> None:
        """Remove the progress bar."""
        self.close()
