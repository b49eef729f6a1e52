"""How fast this machine trains a model of some size, and how far that model comes in a moment: what a budget looks at."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from positron.config import GPTConfig, RunConfig
from positron.evaluation.scoring import score
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.device import CPU_MICRO_TOKENS, Machine, wait_for
from positron.training.eager_step import add_gradient, update
from positron.training.objective.pretrain import PretrainObjective
from positron.training.optim.groups import build_optimizer, set_lr

STEP_TOKENS = 4096  # about; elsewhere than on a CPU steps of four times as many, too, since those are faster there
WARMUP = 20  # steps
FEWEST = 5  # steps, of which the first is not timed


@dataclass(frozen=True)
class Speed:
    """Seconds that a token costs (forward and backward) and a step besides (clipping and the optimizer)."""

    token_s: float
    update_s: float

    def tokens_per_s(self, batch_tokens: int) -> float:
        """Return the tokens per second with `batch_tokens` tokens per optimizer step."""
        return batch_tokens / (self.update_s + batch_tokens * self.token_s)


class Measuring:
    """Train small models for seconds on the run's own text and machine, as the run would."""

    def __init__(self, config: RunConfig, machine: Machine, tokenizer: Tokenizer, folder: Path) -> None:
        self.config, self.machine, self.tokenizer, self.folder = config, machine, tokenizer, folder
        self.multiple = 1 if machine.accelerator == "cpu" else 4

    @contextlib.contextmanager
    def data(self) -> Iterator[PretrainObjective]:
        """Batches of about `multiple` STEP_TOKENS, and little text for validation."""
        context = self.config.model.context_length
        data = PretrainObjective(
            self.config.data,
            self.folder,
            self.tokenizer,
            context=context,
            batch_size=max(1, STEP_TOKENS // context) * self.multiple,
            micro_batch_size=max(1, CPU_MICRO_TOKENS // context),
            seed=self.config.seed,
            val_tokens=20_000,
        )
        try:
            yield data
        finally:
            data.close()

    def train(self, gpt: GPTConfig, data: PretrainObjective, seconds: float, rate: float) -> tuple[Speed, int, GPT]:
        """Train afresh for so long, the learning rate falling from `rate` to 0: the speed, the tokens read, the model.

        Some steps are needed to tell a speed: where each takes long, up to four times as long.
        """
        model = GPT(gpt, seed=self.config.seed).to(self.machine.device)
        model.checkpoint_activations = self.config.device.checkpoint_activations
        optimizer = build_optimizer(model.named_parameters(), self.config.optimizer, fused=True)
        document_start = self.tokenizer.special_id(END_OF_TEXT) if self.config.data.document_mask else None
        gradients: list[tuple[int, float]] = []  # tokens, seconds
        updates: list[float] = []
        spent = 0.0
        while not gradients or spent < seconds or (len(gradients) < FEWEST and spent < 4 * seconds):
            lr = rate * min(1.0, (len(gradients) + 1) / WARMUP) * max(0.0, 1 - spent / seconds)
            set_lr(optimizer.param_groups, lr)
            rows = data.train.batch(len(gradients) + 1)
            if len(gradients) % 2:
                rows = rows[: len(rows) // self.multiple]
            rows = rows.to(self.machine.device)
            gradient_s = self._seconds(lambda: add_gradient(model, rows, self.machine, document_start))  # noqa: B023 (called at once)
            updates.append(self._seconds(lambda: update(model, optimizer, self.config.train.grad_clip)))
            gradients.append((rows[:, 1:].numel(), gradient_s))
            spent += gradient_s + updates[-1]
        return speed_of(gradients, updates), sum(tokens for tokens, _ in gradients), model

    def _seconds(self, action: Callable[[], None]) -> float:
        begun = time.perf_counter()
        action()
        wait_for(self.machine.device)
        return time.perf_counter() - begun

    def bpb(self, model: GPT, data: PretrainObjective) -> float:
        """Score the validation text in bits per byte."""
        with self.machine.autocast():
            return score(model, data.val_x, data.val_y, torch.from_numpy(data.token_bytes)).bpb


def speed_of(gradients: list[tuple[int, float]], updates: list[float]) -> Speed:
    """Compute the speed from (tokens, seconds) of gradients and seconds of updates, without the first, which warms up.

    Where steps had two sizes, a line through both gives a token's cost; at least a fourth of what it is in the larger one,
    since a GPU that small steps leave idle is not infinitely fast.
    """
    by_size: dict[int, list[float]] = {}
    for tokens, gradient_s in gradients[1:] or gradients:
        by_size.setdefault(tokens, []).append(gradient_s)
    times = {tokens: statistics.median(some) for tokens, some in by_size.items()}
    small, large = min(times), max(times)
    token_s = times[large] / large
    if small < large:
        token_s = max(token_s / 4, (times[large] - times[small]) / (large - small))
    return Speed(token_s, statistics.median(updates[1:] or updates) + max(0.0, times[large] - large * token_s))
