"""One dial: time. `budget=10m` measures this machine and this text, then picks size, batch, horizon and learning rate.

What is expected of a model of N weights (in matrix products) after D tokens, in bits per byte:

    scale * (E + A / N^ALPHA + B / D'^BETA),    D' = U + U R* (1 - exp(-R / R*)),  R = max(0, D / U - 1)

the law of Hoffmann et al. 2022 (arXiv:2203.15556, eq. 2), in which a text of U tokens that is read again R times counts for
less and less (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5). Its constants are those of real TinyStories (docs/LOG.md
tells how they were found); `scale` is this text's, found by training a small model for a moment. D is what the machine
reads in the time that is left, at the speed at which it was just seen to train a model of that size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from positron.config import GPTConfig, RunConfig, seconds
from positron.data.pretrain import PretrainData
from positron.evaluation.scoring import score
from positron.model.gpt import GPT
from positron.runs import Run
from positron.text.tokenizer import Tokenizer
from positron.training.bare import add_gradient, update
from positron.training.device import CPU_MICRO_TOKENS, Machine, wait_for
from positron.training.optimizer import build_optimizer, set_lr

E, A, ALPHA, B, BETA, R_STAR = 0.32, 2700.0, 0.75, 41.9, 0.30, 2.0
# Over a text: after these, more time makes a model learn it by heart (Muennighoff et al.; docs/LOG.md).
MOST_PASSES = 4.0

SIZES = ((2, 64), (2, 128), (2, 192), (2, 256), (2, 384), (3, 384), (4, 512), (6, 640), (8, 768), (12, 768), (12, 1024))
D_HEAD = 64
MEASURING = 0.1  # of the budget at most, and
LONGEST_MEASURING = 60.0  # seconds
AFTERWARDS = 0.05  # of the budget: validation, samples, saving, the imports before it
BATCH_AT = 4096, 4e6  # tokens of a step at so many tokens in all; the best grows with their root (arXiv:2410.21676)
RATE = 7e-3  # of Muon's steps, which fit every width; twice as much is as good within 0.2 %
ADAMW_RATE = 1.0  # for a width of 1, falling with the width
FORGETTING = 1.0  # learning rate x weight decay x steps: a run's weights forget their beginning alike in all


@dataclass(frozen=True)
class Choice:
    """What a budget became; it stands in the run's config.json."""

    n_layer: int
    d_model: int
    n_head: int
    batch_tokens: int
    max_steps: int
    lr: float
    weight_decay: float

    def applied(self, config: RunConfig) -> RunConfig:
        """The same run with these numbers in the places of `auto`."""
        every = max(1, self.max_steps // 10)
        model = dataclasses.replace(config.model, n_layer=self.n_layer, d_model=self.d_model, n_head=self.n_head)
        train = dataclasses.replace(
            config.train,
            max_steps=self.max_steps,
            batch_tokens=self.batch_tokens,
            log_every=max(1, self.max_steps // 100),
            val_every=every,
            save_every=every,
            sample_every=max(1, self.max_steps // 4),
            val_tokens=min(config.train.val_tokens, max(10_000, self.max_steps * self.batch_tokens // 300)),
        )
        optimizer = dataclasses.replace(config.optimizer, lr=self.lr, weight_decay=self.weight_decay)
        schedule = dataclasses.replace(config.schedule, warmup_steps=max(1, min(100, self.max_steps // 10)))
        return dataclasses.replace(config, model=model, train=train, optimizer=optimizer, schedule=schedule)


def as_begun(config: RunConfig, run: Run) -> RunConfig:
    """With what the budget became when the run was begun, if it was: nothing is measured or chosen twice."""
    if config.budget is None or config.train.max_steps != "auto" or not run.exists:
        return config
    saved = run.settings()
    model, train, optimizer = saved.model, saved.train, saved.optimizer
    if train.max_steps == "auto" or train.batch_tokens == "auto":
        return config
    size = model.n_layer, model.d_model, model.n_head
    return Choice(*size, train.batch_tokens, train.max_steps, optimizer.lr, optimizer.weight_decay).applied(config)


def expected_bpb(weights: float, tokens: float, text_tokens: float, scale: float = 1.0) -> float:
    counted = tokens
    if tokens > text_tokens:
        counted = text_tokens * (1 + R_STAR * (1 - math.exp((1 - tokens / text_tokens) / R_STAR)))
    return scale * (E + A / weights**ALPHA + B / counted**BETA)


def peak_rate(optimizer: str, d_model: int) -> float:
    return RATE if optimizer == "muon" else ADAMW_RATE / d_model


def suitable_batch(tokens: float, context: int) -> int:
    """Tokens of an optimizer step for a run of so many tokens: a whole number of sequences, at least 1,024 tokens."""
    batch, at = BATCH_AT
    wanted = max(1024.0, batch * math.sqrt(tokens / at))
    return max(1, round(wanted / context)) * context


@dataclass(frozen=True)
class Speed:
    """Seconds that a token costs (forward and backward) and a step besides (clipping and the optimizer)."""

    token_s: float
    update_s: float

    def tokens_in(self, seconds: float, context: int, text_tokens: float) -> tuple[int, float]:
        """The batch that suits a run of so long, and the tokens read in it; each decides the other."""
        batch = BATCH_AT[0]
        for _ in range(4):
            tokens = min(seconds * batch / (self.update_s + batch * self.token_s), MOST_PASSES * text_tokens)
            batch = suitable_batch(tokens, context)
        return batch, tokens


@dataclass(frozen=True)
class Candidate:
    """A size, what it would read in the budget, and what is expected of it then."""

    gpt: GPTConfig
    speed: Speed
    batch_tokens: int
    tokens: float
    bpb: float


class Measuring:
    """Trains for moments on the run's own text, on the machine it is for."""

    def __init__(self, config: RunConfig, machine: Machine, tokenizer: Tokenizer, folder: Path) -> None:
        self.config, self.machine, self.tokenizer, self.folder = config, machine, tokenizer, folder

    def sizes(self) -> list[GPTConfig]:
        """Those to choose from, smallest first; the model's own where that was given."""
        model = self.config.model
        some = [model]
        if self.config.auto_size:
            some = [dataclasses.replace(model, n_layer=n, d_model=d, n_head=d // D_HEAD) for n, d in SIZES]
        return [each.with_vocab(self.tokenizer.vocab_size) for each in some]

    @contextlib.contextmanager
    def data(self) -> Iterator[PretrainData]:
        """Batches of about BATCH_AT tokens, and little text for validation."""
        context = self.config.model.context_length
        data = PretrainData(
            self.config.data,
            self.folder,
            self.tokenizer,
            context=context,
            batch_size=max(1, BATCH_AT[0] // context),
            micro_batch_size=max(1, CPU_MICRO_TOKENS // context),
            seed=self.config.seed,
            val_tokens=20_000,
            say=lambda line: None,
        )
        try:
            yield data
        finally:
            data.train.close()

    def train(self, gpt: GPTConfig, data: PretrainData, seconds: float) -> tuple[Speed, int, GPT]:
        """Train afresh for so long, the rate falling to 0: the speed, the tokens read, and the model."""
        model = GPT(gpt, seed=self.config.seed).to(self.machine.device)
        optimizer = build_optimizer(model.named_parameters(), self.config.optimizer, fused=True)
        rate = peak_rate(self.config.optimizer.kind, gpt.d_model)
        gradient_s: list[float] = []
        update_s: list[float] = []
        while not gradient_s or sum(gradient_s) + sum(update_s) < seconds:
            done = (sum(gradient_s) + sum(update_s)) / seconds
            lr = rate * min(1.0, (len(gradient_s) + 1) / 20) * (1 - done)
            set_lr(optimizer.param_groups, lr, self.config.optimizer)
            rows = data.train.batch(len(gradient_s) + 1).to(self.machine.device)
            gradient_s.append(self._seconds(lambda: add_gradient(model, rows, self.machine)))  # noqa: B023 (called at once)
            update_s.append(self._seconds(lambda: update(model, optimizer, self.config.train.grad_clip)))
        tokens = rows[:, 1:].numel()
        speed = Speed(_middle(gradient_s) / tokens, _middle(update_s))
        return speed, tokens * len(gradient_s), model

    def _seconds(self, action: Callable[[], None]) -> float:
        begun = time.perf_counter()
        action()
        wait_for(self.machine.device)
        return time.perf_counter() - begun

    def bpb(self, model: GPT, data: PretrainData) -> float:
        with self.machine.autocast():
            return score(model, data.val_x, data.val_y, torch.from_numpy(self.tokenizer.token_bytes())).bpb


def _middle(times: list[float]) -> float:
    rest = sorted(times[1:]) or times  # the first one pays for kernels and buffers
    return rest[len(rest) // 2]


def choose(
    config: RunConfig, machine: Machine, tokenizer: Tokenizer, folder: Path, say: Callable[[str], None]
) -> Choice:
    """Measure for a tenth of `config.budget`, a minute at most. The time counts from here, with the text prepared."""
    assert config.budget is not None
    begun = time.monotonic()
    budget, context = seconds(config.budget, "budget"), config.model.context_length
    moments = min(LONGEST_MEASURING, MEASURING * budget)
    measuring = Measuring(config, machine, tokenizer, folder)
    say(f"budget={config.budget}: measuring speeds, and how hard this text is")

    def left() -> float:
        return max(budget / 2, budget * (1 - AFTERWARDS) - (time.monotonic() - begun))

    with measuring.data() as data:
        text_tokens = data.train.text_tokens
        pilot = measuring.sizes()[:2][-1]
        _, read, model = measuring.train(pilot, data, moments / 2)
        scale = measuring.bpb(model, data) / expected_bpb(pilot.matmul_params(), read, text_tokens)
        found: list[Candidate] = []
        for gpt in measuring.sizes():
            speed, _, _ = measuring.train(gpt, data, moments / 16)
            batch, tokens = speed.tokens_in(left(), context, text_tokens)
            bpb = expected_bpb(gpt.matmul_params(), tokens, text_tokens, scale)
            found.append(Candidate(gpt, speed, batch, tokens, bpb))
            if len(found) > 2 and found[-1].bpb > found[-2].bpb > found[-3].bpb:
                break  # larger ones only get slower
    return _settle(found, left(), text_tokens, config.optimizer.kind, say)


def _settle(
    found: list[Candidate], left: float, text_tokens: float, optimizer: str, say: Callable[[str], None]
) -> Choice:
    """The best of what was measured for the `left` seconds, with the table of it."""
    for each in found:
        say(
            f"  {each.gpt.n_layer:>2} x {each.gpt.d_model:<4} {each.gpt.n_params() / 1e6:6.2f}M parameters, "
            f"{each.tokens / left:>9,.0f} tokens/s, {each.tokens / 1e6:7.2f}M tokens in steps of {each.batch_tokens:,}: "
            f"{each.bpb:.3f} bits per byte expected"
        )
    best = min(found, key=lambda each: each.bpb)
    gpt = best.gpt
    batch, tokens = best.speed.tokens_in(left, gpt.context_length, text_tokens)
    steps = max(1, int(tokens / batch))
    rate = peak_rate(optimizer, gpt.d_model)
    choice = Choice(gpt.n_layer, gpt.d_model, gpt.n_head, batch, steps, rate, FORGETTING / (rate * steps))
    reasons = ["a smaller one holds less"] if best is not found[0] else []
    reasons += ["a larger one would read too little in this time"] if best is not found[-1] else []
    say(
        f"chosen: {gpt.n_layer} layers of {gpt.d_model}, {steps:,} steps of {batch:,} tokens, learning rate {rate:.2g}, weight "
        f"decay {choice.weight_decay:.3f}; about {best.bpb:.2f} bits per byte expected"
        + (f": {', and '.join(reasons)}" if reasons else "")
    )
    if tokens >= MOST_PASSES * text_tokens:
        say(
            f"the text is read {MOST_PASSES:g} times, and not all of the time is needed: more text would help, more time not"
        )
    return choice
