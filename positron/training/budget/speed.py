"""Measure how fast this machine trains a model of a given size."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from positron.config import GPTConfig, RunConfig
from positron.model.gpt import GPT
from positron.text.tokenizer import Tokenizer
from positron.training.device import CPU_MICRO_TOKENS, Machine, wait_for
from positron.training.eager_step import add_gradient, update
from positron.training.objective.pretrain import PretrainObjective
from positron.training.optim.groups import build_optimizer, set_lr

STEP_TOKENS = 4096  # approximate tokens of a measured step; on a GPU, every other step is four times as large
MIN_STEPS = 5  # steps of a measurement at least; the first step is slower and is not counted


@dataclass(frozen=True)
class Speed:
    """Hold the speed of training a model.

    `token_s`: seconds per token for the forward and backward pass. `update_s`: seconds per optimizer step that do not depend on
    the number of tokens: for clipping, the update, and the constant part of the forward and backward pass.
    """

    token_s: float
    update_s: float

    def tokens_per_s(self, batch_tokens: int) -> float:
        """Return the tokens per second with `batch_tokens` tokens per optimizer step."""
        return batch_tokens / (self.update_s + batch_tokens * self.token_s)


class SpeedMeasurement:
    """Measure the training speed of models by training each for a few seconds on the text and the device of the run."""

    def __init__(
        self,
        config: RunConfig,
        machine: Machine,
        tokenizer: Tokenizer,
        folder: Path,
        objective: Callable[..., PretrainObjective] = PretrainObjective,
    ) -> None:
        self.config, self.machine, self.tokenizer, self.folder = config, machine, tokenizer, folder
        self.objective = objective
        self.multiple = 1 if machine.accelerator == "cpu" else 4

    @contextlib.contextmanager
    def data(self) -> Iterator[PretrainObjective]:
        """Yield an objective that reads the run's text in batches of about 4,096 tokens (STEP_TOKENS), or 16,384 on a GPU.

        When the `with` block ends, the objective is closed, which ends a download of the text.
        """
        window = self.config.window_tokens
        data = self.objective(
            self.config.data,
            self.folder,
            self.tokenizer,
            context=self.config.model.context_length,
            batch_size=max(1, STEP_TOKENS // window) * self.multiple,
            micro_batch_size=max(1, CPU_MICRO_TOKENS // window),
            seed=self.config.seed,
            val_tokens=1,  # nothing is validated
        )
        try:
            yield data
        finally:
            data.close()

    def train(self, gpt: GPTConfig, data: PretrainObjective, seconds: float, rate: float) -> Speed:
        """Train a new model for `seconds` at the learning rate `rate`, and return its speed.

        If `seconds` are too short for 5 steps (MIN_STEPS), the training continues until 5 steps are done or 4 x `seconds` have
        passed.
        """
        model = GPT(gpt, seed=self.config.seed).to(self.machine.device)
        model.checkpoint_activations = self.config.device.checkpoint_activations
        is_bf16 = self.machine.precision == "bf16"
        optimizer = build_optimizer(model.named_parameters(), self.config.optimizer, fused=True, bf16=is_bf16)
        set_lr(optimizer.param_groups, rate)
        gradients: list[tuple[int, float]] = []  # tokens, seconds
        updates: list[float] = []
        spent = 0.0
        while not gradients or spent < seconds or (len(gradients) < MIN_STEPS and spent < 4 * seconds):
            rows = data.train.batch(len(gradients) + 1)
            if len(gradients) % 2:
                rows = rows[: len(rows) // self.multiple]
            rows = rows.to(self.machine.device)
            gradient_s = self._seconds(lambda: add_gradient(model, rows, self.machine, data.loss))  # noqa: B023 (called at once)
            updates.append(self._seconds(lambda: update(model, optimizer, self.config.train.grad_clip)))
            gradients.append((rows[:, 1:].numel(), gradient_s))
            spent += gradient_s + updates[-1]
        return speed_of(gradients, updates)

    def _seconds(self, action: Callable[[], None]) -> float:
        started = time.perf_counter()
        action()
        wait_for(self.machine.device)
        return time.perf_counter() - started


def speed_of(gradients: list[tuple[int, float]], updates: list[float]) -> Speed:
    """Compute the speed from the measured steps. The first step, which is slower, is used only if there is no other.

    `gradients`: for each step, the (tokens, seconds) of its forward and backward pass. `updates`: for each step, the seconds of
    the optimizer's update.

    If all steps have the same number of tokens, the seconds per token are (median seconds) / tokens.

    On a GPU, large steps alternate with small steps, which have fewer tokens. The seconds per token are then the quotient
    (median seconds of large steps - median seconds of small steps) / (tokens of a large step - tokens of a small step).
    This quotient can be too small, because a small step leaves a GPU partly idle. Therefore it is raised to at least a fourth
    of (median seconds of large steps) / (tokens of a large step).

    The constant part of the forward and backward pass is (median seconds of large steps) - (seconds per token) x (tokens of a
    large step), or 0 if this is negative. The field `update_s` of the result is the median of `updates` plus this part.
    """
    by_size: dict[int, list[float]] = {}
    for tokens, gradient_s in gradients[1:] or gradients:
        by_size.setdefault(tokens, []).append(gradient_s)
    times = {tokens: statistics.median(durations) for tokens, durations in by_size.items()}
    small, large = min(times), max(times)
    token_s = times[large] / large
    if small < large:
        token_s = max(token_s / 4, (times[large] - times[small]) / (large - small))
    return Speed(token_s, statistics.median(updates[1:] or updates) + max(0.0, times[large] - large * token_s))
