"""Decide what the rest of a budget is good for, if a run has read its small text as often as is useful."""

from __future__ import annotations

import math

from positron.config import Asked, RunConfig
from positron.system.formatting import counted
from positron.training.budget.course import (
    DROPOUT_PASSES,
    DROPOUT_TIME,
    MEASURING_SHARE,
    RESERVED_SHARE,
    Course,
)
from positron.training.budget.speed import Speed

MIN_TEACHERS, MAX_TEACHERS = 2, 4  # two and four were measured (docs/LOG.md)
TEACHER_TIME = (
    0.45  # the time that a teacher adds to a step of a student, divided by the time of a step without teachers
)
GAIN = "2 to 4 %"  # how much lower the loss is, of several runs as one model or of their student (docs/LOG.md)


def teachers_within(seconds_left: float, run_seconds: float) -> int:
    """Return how many runs of `run_seconds` each, and a student of all of them, can be trained in `seconds_left`.

    The result is at most 4 (MAX_TEACHERS). It is 0 if the time is not enough for two runs (MIN_TEACHERS) and their student.
    """
    teachers = int((seconds_left / run_seconds - 1) / (1 + TEACHER_TIME))
    return min(teachers, MAX_TEACHERS) if teachers >= MIN_TEACHERS else 0


def may_train_generations(config: RunConfig, asked: Asked) -> bool:
    """Tell whether the rest of the budget, if there is one, trains further runs and a student (see generations.py).

    The command must be a single `positron train model=auto budget=` that starts with random weights in one process.
    """
    begins = config.init_from is None and config.ckpt_path is None and not config.train.extend
    return asked.trains_generations and asked.auto_size and begins and config.device.processes == 1


def advice_for_small_text(
    config: RunConfig, asked: Asked, course: Course, speed: Speed, seconds_left: float, text_tokens: float
) -> str:
    """Return what the rest of the budget is used for, or how the user can use more time, as the end of a logged line.

    The rest is `seconds_left`, the time for training, without the time of the run, which follows from `course` and `speed`.
    """
    per_token, usable = 1 / speed.tokens_per_s(course.batch_tokens), 1 - RESERVED_SHARE - MEASURING_SHARE
    if not course.dropout and "model.dropout" not in asked.given:
        more_time = DROPOUT_PASSES * text_tokens * per_token / usable
        return f"with budget={math.ceil(more_time / 60)}min the run reads it more often, with dropout"
    is_chosen = course.dropout != config.model.dropout  # then `speed` was measured without dropout
    run_time = course.tokens * per_token * (DROPOUT_TIME if is_chosen else 1)
    if not may_train_generations(config, asked):
        more_runs = min(int(seconds_left / run_time) - 1, MAX_TEACHERS - 1)
        rest = f", and the rest of the budget is enough for {more_runs} more" if more_runs else ""
        return (
            "more time for this run does not help, but another run with another seed= and name= does: --run A,B uses both as "
            f"one model, with a loss that is {GAIN} lower{rest}"
        )
    if teachers := teachers_within(seconds_left, run_time):
        return (
            f"the rest of the budget then trains about {counted(teachers - 1, 'more run')} with other seeds, and a student "
            f"that learns from all of them, with a loss that is {GAIN} lower"
        )
    minutes = math.ceil(run_time * (1 + MIN_TEACHERS * (1 + TEACHER_TIME)) / usable / 60)
    return f"budget={minutes}min also trains a second run and a student of both, with a loss that is {GAIN} lower"
