"""Choose model size, batch, number of steps and learning rate for a time budget, `budget=10m`.

Each candidate size is trained for a few seconds to measure its speed. The speed gives the number of tokens D that the model
can read in the budget. A power law forecasts the loss L, in bits per byte, of a model that has N weights in matrix products
and reads D tokens. The candidates are ranked by L:

    L = E + A / N^ALPHA + B / D'^BETA,    D' = U + U R* (1 - exp(-R / R*)),  R = D / U - 1

The formula for L is from Hoffmann et al. 2022 (arXiv:2203.15556, eq. 2). U is the length of the part of the text that the model
reads at least once: D tokens, or the whole text if it has fewer tokens. R is the number of times that the model reads these
U tokens again. A repeated token teaches less than a new one, so all D tokens together are worth only D' tokens of new text
(Muennighoff et al. 2023, arXiv:2305.16264, eq. 5).

The constants E, A, ALPHA, B, BETA and R* (R_STAR) were fitted to runs on TinyStories (docs/LOG.md). On other texts, L is used
only to rank model sizes, because its value is wrong there: on the built-in stories, runs reached 0.24 bits per byte where L was
0.60. Therefore L is never shown to users; `expectation.py` predicts the loss that they see.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from positron.config import Asked, GPTConfig, RunConfig, seconds
from positron.run.budget_choice import with_free_values
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text.tokenizer import Tokenizer
from positron.training.budget.course import (
    MAX_MEASURING_S,
    MEASURING_SHARE,
    RESERVED_SHARE,
    Course,
    course_in,
)
from positron.training.budget.expectation import log_expectation
from positron.training.budget.rest import advice_for_small_text
from positron.training.budget.speed import Speed, SpeedMeasurement
from positron.training.device import Machine, is_out_of_memory
from positron.training.objective.pretrain import PretrainObjective
from positron.training.optim.groups import suitable_rate

logger = logging.getLogger(__name__)

E, A, ALPHA, B, BETA, R_STAR = 0.32, 2700.0, 0.75, 41.9, 0.30, 2.0
# A larger model that reads the whole text as often as allowed is chosen only if it lowers the loss by this share. Otherwise the
# power law, which does not describe memorisation, would choose the largest model for a text of a few kilobytes.
MIN_GAIN = 0.01
SIZES = ((2, 64), (2, 128), (2, 192), (2, 256), (2, 384), (3, 384), (4, 512), (6, 640), (8, 768), (12, 768), (12, 1024))
D_HEAD = 64
VALIDATION_TOKENS_PER_S = 20  # tokens of a validation per second of the budget
HOUR = 3600.0  # seconds; the prediction says what an hour more is expected to give
MAX_STEP_DECAY = 0.1  # the largest share of a weight that one step removes; it matters only for runs of a few steps


@dataclass(frozen=True)
class Choice:
    """Hold the settings that were chosen for a time budget. They are recorded in the run's config.json.

    `batch_tokens`: tokens per optimizer step. `lr`: the peak learning rate.
    """

    n_layer: int
    d_model: int
    n_head: int
    batch_tokens: int
    max_steps: int
    lr: float
    weight_decay: float
    dropout: float

    def applied(self, config: RunConfig, asked: Asked) -> RunConfig:
        """Return `config` with the values that the budget chose, except for the settings that the user gave (`asked.given`).

        Further settings are computed from the chosen values: the number of warmup steps, the number of validation tokens, and
        the intervals at which a run logs, validates, saves and generates samples.
        """
        assert config.budget is not None
        steps = self.max_steps
        values = {
            "model.n_layer": self.n_layer,
            "model.d_model": self.d_model,
            "model.n_head": self.n_head,
            "model.dropout": self.dropout,
            "train.max_steps": steps,
            "train.batch_tokens": self.batch_tokens,
            "train.log_every": max(1, steps // 100),
            "train.val_every": max(1, steps // 10),
            "train.save_every": max(1, steps // 10),
            "train.sample_every": max(1, steps // 4),
            "train.val_tokens": min(config.train.val_tokens, validation_tokens(seconds(config.budget, "budget"))),
            "optimizer.lr": self.lr,
            "optimizer.weight_decay": self.weight_decay,
            "schedule.warmup_steps": max(1, min(100, steps // 10)),
        }
        return with_free_values(config, asked, values)


def validation_tokens(budget: float) -> int:
    """Return the number of tokens on which a run with a budget of `budget` seconds validates.

    It depends on nothing else, so that the losses of several runs with the same budget are comparable. On two CPU cores, the
    validations of a run take one or two percent of its time.
    """
    return max(10_000, int(VALIDATION_TOKENS_PER_S * budget))


def forecast_bpb(weights: float, tokens: float, text_tokens: float) -> float:
    """Return the loss in bits per byte that a power law forecasts for a model that is trained on TinyStories.

    The formula is in the docstring of this file, where the result is called L. `weights`: the number of weights in matrix
    products. `tokens`: the number of tokens that the run reads, including repetitions. `text_tokens`: the number of tokens of
    the text.
    """
    unique = tokens  # D'
    if tokens > text_tokens:
        unique = text_tokens * (1 + R_STAR * (1 - math.exp((1 - tokens / text_tokens) / R_STAR)))
    return float(E + A / weights**ALPHA + B / unique**BETA)


def rate_for(config: RunConfig, asked: Asked, d_model: int) -> float:
    """Return the peak learning rate: optimizer.lr= if it is given, otherwise the default for the optimizer and the width."""
    if "optimizer.lr" in asked.given:
        return config.optimizer.lr
    return suitable_rate(config.optimizer, d_model)


def decay_for(rate: float, steps: int, passes: float, embedding_ratio: float) -> float:
    """Return the weight decay for a run of `steps` steps that reads its text `passes` times.

    With weight decay, weights are a moving average of the updates of about the last n steps, where n = 1 / (learning rate x
    weight decay). The result is the weight decay for which these n steps are one pass over the text, or the whole run if the
    run is shorter than a pass. With a smaller n, the model would forget parts of the text. With a larger n, it would memorise
    more of the text (Wang and Aitchison, arXiv:2405.13698; docs/LOG.md).

    In each step, weight decay removes the share (learning rate x weight decay) of every weight. The result is limited, so that
    this share is at most 0.1 (MAX_STEP_DECAY), even for the embeddings, whose learning rate may be higher. `rate`: the learning
    rate of the other weights. `embedding_ratio`: the learning rate of the embeddings divided by `rate`.
    """
    return min(max(1.0, passes) / steps, MAX_STEP_DECAY / max(1.0, embedding_ratio)) / rate


def sizes(config: RunConfig, asked: Asked, vocab_size: int) -> list[GPTConfig]:
    """Return the candidate models, smallest first, or only the configured model if `asked.auto_size` is False.

    Raises UserError if no candidate is compatible with the given width and numbers of heads.
    """
    model = config.model
    if not asked.auto_size:
        return [model.with_vocab(vocab_size)]
    shapes: set[tuple[int, int, int]] = set()  # layers, width, heads
    for size in SIZES:
        n_layer, d_model = (
            getattr(model, name) if f"model.{name}" in asked.given else number
            for name, number in zip(("n_layer", "d_model"), size, strict=True)
        )
        n_head = model.n_head if "model.n_head" in asked.given else max(1, d_model // D_HEAD)
        if d_model % n_head == 0 and n_head % (model.n_kv_head or n_head) == 0:
            shapes.add((n_layer, d_model, n_head))
    if not shapes:
        names = ("d_model", "n_head", "n_kv_head")
        # SIZES says nothing about n_kv_head, so an n_kv_head restricts the sizes even if a recipe has set it
        is_set = {name: f"model.{name}" in asked.given for name in names} | {"n_kv_head": model.n_kv_head is not None}
        settings = " and ".join(f"model.{name}={getattr(model, name)}" for name in names if is_set[name])
        given = " and ".join(f"model.{name}" for name in names if f"model.{name}" in asked.given)
        raise UserError(
            f"model=auto finds no model size with {settings}: model.d_model must be a multiple of model.n_head (default: "
            f"model.d_model // {D_HEAD}), and model.n_head a multiple of model.n_kv_head; "
            + (f"leave out {given}" if given else "give model.n_kv_head=null")
        )
    return [
        dataclasses.replace(model, n_layer=n, d_model=d, n_head=h).with_vocab(vocab_size)
        for n, d, h in sorted(shapes, key=lambda shape: (shape[0] * shape[1] ** 2, shape))
    ]


@dataclass(frozen=True)
class Candidate:
    """Hold a model size, how it is trained in the budget, and the loss by which candidates are compared."""

    gpt: GPTConfig
    speed: Speed
    course: Course
    forecast: float  # the result of `forecast_bpb`, meaningful only in comparison with other candidates


def choose(
    config: RunConfig,
    asked: Asked,
    machine: Machine,
    tokenizer: Tokenizer,
    folder: Path,
    objective: Callable[..., PretrainObjective] = PretrainObjective,
) -> Choice:
    """Train models of several sizes for a short time to measure their speed, and return the best choice for the budget.

    The measurements together take about a tenth of `config.budget`, at most about a minute. Their time is part of the budget:
    the choice is made for the time that is left.

    `asked`: the settings that the user gave, which the budget does not change. `folder` contains the prepared text, and
    `objective` opens it.
    """
    assert config.budget is not None
    started = time.monotonic()
    budget = seconds(config.budget, "budget")
    seconds_each = min(MAX_MEASURING_S, MEASURING_SHARE * budget) / len(SIZES)
    measurement = SpeedMeasurement(config, machine, tokenizer, folder, objective)
    given = config.budget if isinstance(config.budget, str) else f"{budget:g}s"
    logger.info(f"budget={given}: measuring how fast this machine trains")

    def seconds_left() -> float:
        return max(budget / 2, budget * (1 - RESERVED_SHARE) - (time.monotonic() - started))

    candidates: list[Candidate] = []
    with measurement.data() as data:
        text_tokens = data.train.text_tokens
        for gpt in sizes(config, asked, tokenizer.vocab_size):
            try:
                speed = measurement.train(gpt, data, seconds_each, rate_for(config, asked, gpt.d_model))
            except RuntimeError as error:
                if not candidates or not is_out_of_memory(error):
                    raise
                logger.info(
                    f"  a model with {counted(gpt.n_layer, 'layer')} of width {gpt.d_model} does not fit in the memory, so "
                    "larger sizes are not measured"
                )
                break
            candidates.append(_candidate(gpt, speed, seconds_left(), config, asked, text_tokens))
            if larger_gains_nothing(candidates):
                break
        choice = _settle(config, asked, candidates, seconds_left(), text_tokens)
        is_plain = config.init_from is None and config.distill is None and data.bytes_per_token is not None
        # the built-in stories do not follow the formula
        if asked.auto_size and is_plain and config.data.source != "stories":
            more = seconds_left() + HOUR
            longer = [_candidate(each.gpt, each.speed, more, config, asked, text_tokens) for each in candidates]
            val_tokens = choice.applied(config, asked).train.val_tokens
            tokens_of_longer = min(longer, key=lambda candidate: candidate.forecast).course.tokens
            log_expectation(data, val_tokens, choice.max_steps * choice.batch_tokens, tokens_of_longer)
    return choice


def _candidate(
    gpt: GPTConfig, speed: Speed, seconds: float, config: RunConfig, asked: Asked, text_tokens: float
) -> Candidate:
    """Return the candidate with the size of `gpt` that is trained for `seconds`."""
    course = course_in(seconds, speed, config, asked, text_tokens)
    return Candidate(gpt, speed, course, forecast_bpb(gpt.matmul_params(), course.tokens, text_tokens))


def larger_gains_nothing(candidates: list[Candidate]) -> bool:
    """Tell whether to measure no larger models, because they would be worse or hardly better.

    `candidates`: the models measured so far, smallest first. The forecast loss of a model is its attribute `forecast`, an
    estimate of its loss at the end of the training. Returns True in two cases:

    - Each of the last two models has a higher forecast loss than the model before it.
    - The last model has time to read the text as often as allowed: 6 times (MAX_PASSES), or 12 times with dropout
      (MAX_PASSES_WITH_DROPOUT). But its forecast loss is less than 1 % (MIN_GAIN) below that of the previous model, or above
      it.
    """
    last = candidates[-1]
    if len(candidates) > 2 and last.forecast > candidates[-2].forecast > candidates[-3].forecast:
        return True
    is_small_gain = len(candidates) > 1 and last.forecast > (1 - MIN_GAIN) * candidates[-2].forecast
    return last.course.reads_all and is_small_gain


def _log_ranking(candidates: list[Candidate]) -> None:
    """Log a line for each candidate, with its rank if there are several."""
    ranking = sorted(candidate.forecast for candidate in candidates)
    if len(candidates) > 1:
        logger.info(
            "model sizes (layers x width), ranked by a power law that was fitted to TinyStories (rank 1: lowest loss):"
        )
    for candidate in candidates:
        gpt, course = candidate.gpt, candidate.course
        rank = f": rank {ranking.index(candidate.forecast) + 1}" if len(candidates) > 1 else ""
        logger.info(
            f"  {gpt.n_layer:>2} x {gpt.d_model:<4} {gpt.n_params() / 1e6:6.2f}M parameters, "
            f"{candidate.speed.tokens_per_s(course.batch_tokens):>9,.0f} tokens/s, {course.tokens / 1e6:7.2f}M tokens "
            f"in steps of {course.batch_tokens:,}{rank}"
        )


def _settle(
    config: RunConfig, asked: Asked, candidates: list[Candidate], seconds_left: float, text_tokens: float
) -> Choice:
    """Log the candidate sizes; return the settings of the best size for the `seconds_left` of the budget.

    `asked`: the settings that the user gave, which the budget does not change. `text_tokens`: the number of tokens in the
    training text.
    """
    _log_ranking(candidates)
    best = min(candidates, key=lambda candidate: candidate.forecast)
    if best is candidates[-1] and larger_gains_nothing(candidates):
        best = candidates[-2]
    gpt = best.gpt
    course = course_in(seconds_left, best.speed, config, asked, text_tokens)
    batch, passes = course.batch_tokens, course.tokens / text_tokens
    steps = max(1, int(course.tokens / batch))
    rate = rate_for(config, asked, gpt.d_model)
    decay = decay_for(rate, steps, passes, config.optimizer.embedding_ratio)
    choice = Choice(gpt.n_layer, gpt.d_model, gpt.n_head, batch, steps, rate, decay, course.dropout)
    reasons = ["a smaller model would learn less"] if best is not candidates[0] else []
    if best is not candidates[-1]:
        gain = "learn hardly more" if course.reads_all else "read too little text in this time"
        reasons.append(f"a larger model would {gain}")
    logger.info(
        f"chosen: {counted(gpt.n_layer, 'layer')} of width {gpt.d_model}, {counted(steps, 'step')} of {batch:,} tokens, "
        f"learning rate {rate:.2g}, weight decay {choice.applied(config, asked).optimizer.weight_decay:.3f}"
        + (f", dropout {course.dropout:g}" if course.dropout else "")
        + (f"; {', and '.join(reasons)}" if reasons else "")
    )
    if course.reads_all:
        advice = advice_for_small_text(config, asked, course, best.speed, seconds_left, text_tokens)
        logger.info(
            f"the text is small: the run reads it {passes:.0f} times and ends before the budget is used up. Give more text for "
            f"a better model; {advice}"
        )
    return choice
