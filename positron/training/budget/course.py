"""Decide how a model of one size is trained in a given time: batch size, number of tokens, and dropout.

A text is read a limited number of times, because with more passes a model memorises it instead of learning from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from positron.config import Asked, RunConfig
from positron.training.budget.speed import Speed

# How many times a text is read at most, without and with dropout. With more passes a model memorises the text (docs/LOG.md).
MAX_PASSES, MAX_PASSES_WITH_DROPOUT = 6.0, 12.0
DROPOUT = 0.1  # used if the time is enough for DROPOUT_PASSES passes; with fewer passes it makes the model worse
DROPOUT_PASSES = 8.0
DROPOUT_TIME = 1.15  # the time of a step with dropout, divided by that of a step without it
MEASURING_SHARE = 0.1  # share of the budget that all measurements together take
MAX_MEASURING_S = 60.0  # seconds that all measurements together take at most
RESERVED_SHARE = 0.05  # share of the budget that is reserved for imports, validation, samples and saving
# The best batch grows with the square root of the tokens of a run (arXiv:2410.21676); it is 4,096 tokens for a run of 4M.
REFERENCE_BATCH, REFERENCE_TOKENS = 4096, 4e6


def batch_for_tokens(tokens: float, context: int) -> int:
    """Return the number of tokens per optimizer step for a run that reads `tokens` tokens in total.

    The number is proportional to the square root of `tokens`: 4,096 for 4 million tokens. It is at least 1,024. It is then
    rounded to a multiple of `context`, the length of a sequence; the result is at least `context`.
    """
    number = max(1024.0, REFERENCE_BATCH * math.sqrt(tokens / REFERENCE_TOKENS))
    return max(1, round(number / context)) * context


@dataclass(frozen=True)
class Course:
    """Hold how a model of one size is trained in the given time."""

    batch_tokens: int  # tokens per optimizer step
    tokens: float  # tokens that the run reads, including repetitions
    dropout: float
    reads_all: bool  # the run ends because it has read its text as often as allowed, and not because the time is over


def course_in(seconds: float, speed: Speed, config: RunConfig, asked: Asked, text_tokens: float) -> Course:
    """Return the batch size, number of tokens and dropout of a run that takes at most `seconds`.

    `speed`: the speed at which the model is trained. `text_tokens`: the number of tokens in the text.

    The text is read at most 6 times (MAX_PASSES), or 12 times with dropout (MAX_PASSES_WITH_DROPOUT).

    Dropout keeps its value if the user gave it or if `config` has a value above 0. Otherwise, this function chooses 0.1
    (DROPOUT) when `seconds` are enough to read the text 8 times (DROPOUT_PASSES), and 0 when they are not.

    A batch size that the user gave is kept, rounded down to whole sequences. Otherwise, it depends on the number of tokens that
    the run reads. This number depends on the speed in tokens per second, which in turn depends on the batch size. Therefore all
    three are computed in a loop of four iterations.
    """
    batch, window = REFERENCE_BATCH, config.window_tokens
    given = config.train.batch_tokens if "train.batch_tokens" in asked.given else "auto"
    dropout, is_set = config.model.dropout, config.model.dropout > 0 or "model.dropout" in asked.given
    tokens, readable = 0.0, 0.0
    for _ in range(4):
        batch = batch if given == "auto" else max(1, given // window) * window
        readable = seconds * speed.tokens_per_s(batch)
        if not is_set:
            dropout = DROPOUT if readable >= DROPOUT_PASSES * text_tokens else 0.0
            readable = readable / DROPOUT_TIME if dropout else readable
        tokens = min(readable, (MAX_PASSES_WITH_DROPOUT if dropout else MAX_PASSES) * text_tokens)
        batch = batch_for_tokens(tokens, window) if given == "auto" else batch
    return Course(batch, tokens, dropout, reads_all=tokens < readable)
