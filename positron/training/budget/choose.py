"""One dial: time. `budget=10m` measures this machine and this text, then picks size, batch, horizon and learning rate.

What is expected of a model of N weights (in matrix products) after D tokens, in bits per byte:

    scale * (E + A / N^ALPHA + B / D'^BETA),    D' = U + U R* (1 - exp(-R / R*)),  R = max(0, D / U - 1)

the law of Hoffmann et al. 2022 (arXiv:2203.15556, eq. 2), in which a text of U tokens that is read again R times counts for
less and less (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5). Its constants are those of real TinyStories (docs/LOG.md
tells how they were found); `scale` is this text's, found by training a small model for a moment. D is what the machine
reads in the time that is left, at the speed at which it was just seen to train a model of that size.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.config import Asked, GPTConfig, RunConfig, seconds
from positron.run.checkpoint import newest_checkpoint
from positron.run.folder import Run
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text.tokenizer import Tokenizer
from positron.training.budget.pilot import Measuring, Speed
from positron.training.device import Machine, is_out_of_memory
from positron.training.optim.groups import suitable_rate

logger = logging.getLogger(__name__)

E, A, ALPHA, B, BETA, R_STAR = 0.32, 2700.0, 0.75, 41.9, 0.30, 2.0
# Over a text: after these, more time makes a model learn it by heart (Muennighoff et al.; docs/LOG.md).
MOST_PASSES = 4.0
# That a larger model has to promise where it reads no more: the law knows nothing of learning by heart.
LEAST_GAIN = 0.01
SIZES = ((2, 64), (2, 128), (2, 192), (2, 256), (2, 384), (3, 384), (4, 512), (6, 640), (8, 768), (12, 768), (12, 1024))
D_HEAD = 64
MEASURING = 0.1  # of the budget at most, and
LONGEST_MEASURING = 60.0  # seconds
AFTERWARDS = 0.05  # of the budget: validation, samples, saving, the imports before it
BATCH_AT = 4096, 4e6  # tokens of a step at so many tokens in all; the best grows with their root (arXiv:2410.21676)
FORGETTING = 1.0  # learning rate x weight decay x steps: a run's weights forget their beginning alike in all
MOST_FORGETTING = 0.1  # in one step, of the fastest weights: a run of a few steps would decay to nothing

# What a budget decides, unless the command line gives it (Asked.given).
SIZE = ("model.n_layer", "model.d_model", "model.n_head")
EVERY = ("train.log_every", "train.val_every", "train.save_every", "train.sample_every")
RATES = ("optimizer.lr", "optimizer.weight_decay", "schedule.warmup_steps")
DECIDED = (*SIZE, "train.max_steps", "train.batch_tokens", *EVERY, "train.val_tokens", *RATES)


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

    def applied(self, config: RunConfig, asked: Asked) -> RunConfig:
        """Set these numbers in a configuration wherever the user has given none."""
        steps = self.max_steps
        values = {
            "model.n_layer": self.n_layer,
            "model.d_model": self.d_model,
            "model.n_head": self.n_head,
            "train.max_steps": steps,
            "train.batch_tokens": self.batch_tokens,
            "train.log_every": max(1, steps // 100),
            "train.val_every": max(1, steps // 10),
            "train.save_every": max(1, steps // 10),
            "train.sample_every": max(1, steps // 4),
            "train.val_tokens": min(config.train.val_tokens, max(10_000, steps * self.batch_tokens // 300)),
            "optimizer.lr": self.lr,
            "optimizer.weight_decay": self.weight_decay,
            "schedule.warmup_steps": max(1, min(100, steps // 10)),
        }
        return filled(config, asked, values)


def filled(config: RunConfig, asked: Asked, values: dict[str, Any]) -> RunConfig:
    """Set `values`, by dotted key, wherever the user has given none."""
    for group in ("model", "train", "optimizer", "schedule"):
        free = [key for key in values if key.startswith(f"{group}.") and key not in asked.given]
        part = dataclasses.replace(getattr(config, group), **{key.split(".")[1]: values[key] for key in free})
        config = dataclasses.replace(config, **{group: part})
    return config


def as_begun(config: RunConfig, asked: Asked, run: Run) -> RunConfig:
    """Restore what the budget chose when the run began, so that nothing is measured or chosen twice.

    A horizon that is to be extended keeps its new value. Raises UserError for train.extend=true if there is no checkpoint.
    """
    extends = config.train.max_steps != "auto"
    if config.budget is None or (extends and not config.train.extend):
        return config
    if not run.exists or newest_checkpoint(run.checkpoint_folder) is None:
        if extends:
            raise UserError(
                f"train.extend=true, but {run.folder} has no checkpoint: the budget chooses its first steps"
            )
        return config
    saved, kept = run.config(), set(DECIDED)
    if extends:
        kept.remove("train.max_steps")
    if not asked.auto_size:
        kept.difference_update(SIZE)
    return filled(config, asked, {key: saved[group][name] for key in kept for group, name in [key.split(".")]})


def expected_bpb(weights: float, tokens: float, text_tokens: float, scale: float = 1.0) -> float:
    """Compute the expected bits per byte after `tokens` tokens of a text of `text_tokens`: the formula above."""
    counted = tokens
    if tokens > text_tokens:
        counted = text_tokens * (1 + R_STAR * (1 - math.exp((1 - tokens / text_tokens) / R_STAR)))
    return float(scale * (E + A / weights**ALPHA + B / counted**BETA))


def rate_for(config: RunConfig, asked: Asked, d_model: int) -> float:
    """Return the peak learning rate: the user's, or the default for the optimizer and the width."""
    if "optimizer.lr" in asked.given:
        return config.optimizer.lr
    return suitable_rate(config.optimizer, d_model)


def decay_for(rate: float, steps: int, embedding_ratio: float) -> float:
    """Return the weight decay for which learning rate x decay x steps is FORGETTING, limited to MOST_FORGETTING per step."""
    return min(FORGETTING / steps, MOST_FORGETTING / max(1.0, embedding_ratio)) / rate


def suitable_batch(tokens: float, context: int) -> int:
    """Return the tokens per optimizer step for a run of `tokens`: whole sequences, about 1,024 tokens or more."""
    batch, at = BATCH_AT
    wanted = max(1024.0, batch * math.sqrt(tokens / at))
    return max(1, round(wanted / context)) * context


def tokens_in(seconds: float, speed: Speed, config: RunConfig, asked: Asked, text_tokens: float) -> tuple[int, float]:
    """Return the tokens per optimizer step and the tokens of a run of `seconds`; each determines the other."""
    batch, context = BATCH_AT[0], config.model.context_length
    given = config.train.batch_tokens if "train.batch_tokens" in asked.given else "auto"
    for _ in range(4):
        batch = batch if given == "auto" else max(1, given // context) * context
        tokens = min(seconds * speed.tokens_per_s(batch), MOST_PASSES * text_tokens)
        batch = suitable_batch(tokens, context) if given == "auto" else batch
    return batch, tokens


def sizes(config: RunConfig, asked: Asked, vocab_size: int) -> list[GPTConfig]:
    """Return the candidate models, smallest first; only the configured one unless the size is to be chosen.

    Raises UserError if no candidate suits the given numbers of heads.
    """
    model = config.model
    if not asked.auto_size:
        return [model.with_vocab(vocab_size)]
    found: dict[tuple[int, int, int], None] = {}  # a set in order
    for size in SIZES:
        n_layer, d_model = (
            getattr(model, name) if f"model.{name}" in asked.given else number
            for name, number in zip(("n_layer", "d_model"), size, strict=True)
        )
        n_head = model.n_head if "model.n_head" in asked.given else max(1, d_model // D_HEAD)
        if d_model % n_head == 0 and n_head % (model.n_kv_head or n_head) == 0:
            found[n_layer, d_model, n_head] = None
    if not found:
        raise UserError(
            f"no size of model=auto has heads that model.n_head or model.n_kv_head={model.n_kv_head} fit: "
            f"widths are {SIZES[0][1]} to {SIZES[-1][1]}, a head for every {D_HEAD}"
        )
    return [
        dataclasses.replace(model, n_layer=n, d_model=d, n_head=h).with_vocab(vocab_size)
        for n, d, h in sorted(found, key=lambda size: size[0] * size[1] ** 2)
    ]


@dataclass(frozen=True)
class Candidate:
    """Hold a model size, the tokens it would read in the budget, and the expected bits per byte."""

    gpt: GPTConfig
    speed: Speed
    batch_tokens: int
    tokens: float
    bpb: float


def choose(config: RunConfig, asked: Asked, machine: Machine, tokenizer: Tokenizer, folder: Path) -> Choice:
    """Measure for a tenth of `config.budget`, at most a minute, and choose. The budget begins here, after preparation."""
    assert config.budget is not None
    begun = time.monotonic()
    budget = seconds(config.budget, "budget")
    moments = min(LONGEST_MEASURING, MEASURING * budget)
    measuring, candidates = Measuring(config, machine, tokenizer, folder), sizes(config, asked, tokenizer.vocab_size)
    given = config.budget if isinstance(config.budget, str) else f"{budget:g}s"
    logger.info(f"budget={given}: measuring speeds, and how hard this text is")

    def left() -> float:
        return max(budget / 2, budget * (1 - AFTERWARDS) - (time.monotonic() - begun))

    found: list[Candidate] = []
    with measuring.data() as data:
        text_tokens = data.train.text_tokens
        pilot = candidates[:2][-1]
        _, read, model = measuring.train(pilot, data, moments / 2, rate_for(config, asked, pilot.d_model))
        scale = measuring.bpb(model, data) / expected_bpb(pilot.matmul_params(), read, text_tokens)
        for gpt in candidates:
            try:
                speed, _, _ = measuring.train(gpt, data, moments / 16, rate_for(config, asked, gpt.d_model))
            except RuntimeError as error:
                if not found or not is_out_of_memory(error):
                    raise
                logger.info(f"  {gpt.n_layer} x {gpt.d_model} does not fit this machine's memory")
                break
            batch, tokens = tokens_in(left(), speed, config, asked, text_tokens)
            bpb = expected_bpb(gpt.matmul_params(), tokens, text_tokens, scale)
            found.append(Candidate(gpt, speed, batch, tokens, bpb))
            if no_larger(found, text_tokens):
                break
    return _settle(config, asked, found, left(), text_tokens)


def no_larger(found: list[Candidate], text_tokens: float) -> bool:
    """Tell whether larger models need not be measured: they would be worse, or would gain too little."""
    if len(found) > 2 and found[-1].bpb > found[-2].bpb > found[-3].bpb:
        return True
    whole = found[-1].tokens >= MOST_PASSES * text_tokens
    return whole and len(found) > 1 and found[-1].bpb > (1 - LEAST_GAIN) * found[-2].bpb


def _settle(config: RunConfig, asked: Asked, found: list[Candidate], left: float, text_tokens: float) -> Choice:
    """Log the table of candidates and return the best choice for the `left` seconds."""
    for each in found:
        logger.info(
            f"  {each.gpt.n_layer:>2} x {each.gpt.d_model:<4} {each.gpt.n_params() / 1e6:6.2f}M parameters, "
            f"{each.speed.tokens_per_s(each.batch_tokens):>9,.0f} tokens/s, {each.tokens / 1e6:7.2f}M tokens in steps of "
            f"{each.batch_tokens:,}: {each.bpb:.3f} bits per byte expected"
        )
    best = min(found, key=lambda each: each.bpb)
    if best is found[-1] and no_larger(found, text_tokens):
        best = found[-2]
    gpt = best.gpt
    batch, tokens = tokens_in(left, best.speed, config, asked, text_tokens)
    steps = max(1, int(tokens / batch))
    rate = rate_for(config, asked, gpt.d_model)
    decay = decay_for(rate, steps, config.optimizer.embedding_ratio)
    choice = Choice(gpt.n_layer, gpt.d_model, gpt.n_head, batch, steps, rate, decay)
    whole = tokens >= MOST_PASSES * text_tokens
    reasons = ["a smaller one holds less"] if best is not found[0] else []
    if best is not found[-1]:
        reasons.append("a larger one would " + ("learn hardly more" if whole else "read too little in this time"))
    logger.info(
        f"chosen: {counted(gpt.n_layer, 'layer')} of {gpt.d_model}, {counted(steps, 'step')} of {batch:,} tokens, "
        f"learning rate {rate:.2g}, weight "
        f"decay {choice.applied(config, asked).optimizer.weight_decay:.3f}; about {best.bpb:.2f} bits per byte expected"
        + (f": {', and '.join(reasons)}" if reasons else "")
    )
    if whole:
        logger.info(
            f"the text is read {MOST_PASSES:g} times, and not all of the time is needed: more text would help, more time not"
        )
    return choice
