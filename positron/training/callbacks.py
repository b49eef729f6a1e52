"""What happens around a training step, one callback per concern.

Their order in `callbacks` matters: the clock first, then who decides to stop, then who measures, who writes, who saves.
Everything that belongs to step s is done in `on_train_batch_end` of step s, so a checkpoint of step s has it all.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from positron.data.modules import InstructData, PretrainData
from positron.evaluation.score import Score
from positron.system.formatting import counted
from positron.training.device import wait_for
from positron.training.module import PretrainModule
from positron.training.signals import Signals


class Clock(L.Callback):
    """Seconds spent in training steps, without validation, samples and saving; `time_s` goes on across resumes."""

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self.time_s = 0.0  # of the whole run
        self.step_s = 0.0  # of this process
        self.steps = 0
        self._begun = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"time_s": self.time_s}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.time_s = state_dict["time_s"]

    def on_train_batch_start(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step % self.log_every == 0:
            wait_for(module.device)  # the only place where the host waits for an accelerator
        passed = time.perf_counter() - self._begun
        self.time_s += passed
        self.step_s += passed
        self.steps += 1


class Stopping(L.Callback):
    """Ends the run: at `last_step`, before `max_seconds` are over, or after a signal.

    The first signal leaves the step in progress before its next micro-batch, so that the last whole step is saved. With
    several ranks all agree at the end of a step.
    """

    def __init__(self, *, last_step: int, max_seconds: float | None, begun: float, signals: Signals) -> None:
        self.last_step, self.max_seconds, self.begun, self.signals = last_step, max_seconds, begun, signals
        self.out_of_time = False
        self._longest_step = 0.0
        self._last_end = 0.0

    def on_train_start(self, trainer: L.Trainer, module: PretrainModule) -> None:  # type: ignore[override]
        self.signals.install()
        self.signals.can_save = True
        self._last_end = time.monotonic()
        if trainer.world_size == 1:
            module.before_micro_batch = self.signals.leave

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._last_end)  # validation and saving included
        self._last_end = now
        if self.max_seconds is not None and trainer.global_step < self.last_step:
            self.out_of_time = now - self.begun + 1.5 * self._longest_step > self.max_seconds
        stop = self.out_of_time
        if trainer.world_size > 1:
            stop = self.out_of_time = trainer.strategy.reduce_boolean_decision(stop, all=False)
            if trainer.strategy.reduce_boolean_decision(bool(self.signals.received), all=False):
                self.signals.received = self.signals.received or signal.SIGTERM  # another rank's
                stop = True
        if stop or trainer.global_step >= self.last_step:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: PretrainModule) -> None:  # type: ignore[override]
        self.signals.leave()


@torch.no_grad()
def validate(trainer: L.Trainer, module: PretrainModule, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Score:
    """Score of the validation text, summed over all ranks."""
    module.eval()
    total = torch.zeros(3, dtype=torch.float32 if module.device.type == "mps" else torch.float64, device=module.device)
    for i, (x, y) in enumerate(batches):
        sums = trainer.strategy.validation_step((x.to(module.device), y.to(module.device)), i)
        assert isinstance(sums, torch.Tensor)
        total += sums
    if trainer.world_size > 1:
        total = trainer.strategy.reduce(total, reduce_op="sum")
    module.train()
    nats, n_bytes, tokens = total.tolist()
    return Score(nats=nats, bytes=round(n_bytes), tokens=round(tokens))


class Validation(L.Callback):
    """Every `every` steps and at the last one: val/loss, val/bpb, val/perplexity."""

    def __init__(self, data: PretrainData | InstructData, *, every: int, say: Callable[[str], None]) -> None:
        self.data, self.every, self.say = data, every, say

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step % self.every and not trainer.should_stop:
            return
        score = validate(trainer, module, self.data.val_dataloader())
        module.metrics |= {"val/loss": score.loss, "val/bpb": score.bpb, "val/perplexity": score.perplexity}
        floor_bits = self.data.val.bits
        if floor_bits is not None and score.bytes == self.data.val.n_bytes and score.is_below(floor_bits):
            self.say(
                f"WARNING: {score.bpb:.4f} bits per byte is below the corpus's own information, "
                f"{floor_bits / score.bytes:.4f}: the model has seen the validation text, or sees the future"
            )


RISES = 3  # validations in a row above the best one, the last of them by RISE, before it is called overfitting
RISE = 0.005


class Overfitting(L.Callback):
    """Say once that validation rises while training still falls, and which checkpoint is kept."""

    def __init__(self, rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
        """`rows`: those of the run so far."""
        self.say = say
        self._best, self._best_step, self._best_loss, self._since = float("inf"), 0, float("inf"), 0
        for row in rows:
            if row.get("val/bpb") is not None and row.get("train/loss") is not None:
                self._note(row["step"], row["val/bpb"], row["train/loss"])
        self._has_said = self._since >= RISES

    def _note(self, step: int, bpb: float, loss: float) -> None:
        self._since += 1
        if bpb < self._best:
            self._best, self._best_step, self._best_loss, self._since = bpb, step, loss, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        bpb = module.metrics.get("val/bpb")
        if bpb is None:
            return
        loss = module.loss.item()
        self._note(trainer.global_step, bpb, loss)
        if self._since < RISES or self._has_said or bpb < (1 + RISE) * self._best or loss >= self._best_loss:
            return
        self._has_said = True
        self.say(
            f"the model overfits: {bpb:.4f} validation bits per byte, after {self._best:.4f} at step {self._best_step}, "
            "while the training loss still falls. The text is small for this model and this many steps. best.ckpt keeps "
            f"step {self._best_step}; generate, chat and evaluate use it"
        )


class Patience(L.Callback):
    """Ends the run after `limit` validations in a row without a new best one; the best checkpoint is kept anyway."""

    def __init__(self, limit: int, rows: list[dict[str, Any]]) -> None:
        """`rows`: those of the run so far, so that a resumed run is as patient as one that was never stopped."""
        self.limit, self.best, self.since = limit, float("inf"), 0
        for row in rows:
            if row.get("val/bpb") is not None:
                self._note(row["val/bpb"])

    def _note(self, bpb: float) -> None:
        self.since = 0 if bpb < self.best else self.since + 1
        self.best = min(self.best, bpb)

    @property
    def is_over(self) -> bool:
        return self.since >= self.limit

    @property
    def why(self) -> str:
        return f"after {counted(self.since, 'validation')} without a better one than {self.best:.4f} bits per byte"

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        if "val/bpb" in module.metrics:
            self._note(module.metrics["val/bpb"])
            if self.is_over:
                trainer.should_stop = True
