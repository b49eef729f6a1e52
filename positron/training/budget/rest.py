"""Decide what the rest of a budget is good for, if a run has read its small text as often as is useful."""

from __future__ import annotations

from positron.config import Asked, RunConfig, seconds
from positron.training.budget.course import (
    DROPOUT_PASSES,
    DROPOUT_TIME,
    MEASURING_SHARE,
    RESERVED_SHARE,
    Course,
)
from positron.training.budget.speed import Speed

MAX_MEMBERS = 4  # how many runs the advice for a small text combines at most; four were measured (docs/LOG.md)
MAX_TEACHERS = 2  # the student of four runs is hardly better (docs/LOG.md)
TEACHER_TIME = 0.45  # the time that a teacher adds to the training of a student, divided by the time without teachers


def generations_time(run_seconds: float, teachers: int) -> float:
    """Return the seconds in which `teachers` runs of `run_seconds` each, and a student of all of them, can be trained."""
    return (teachers + 1 + TEACHER_TIME * teachers) * run_seconds


def teachers_within(seconds_left: float, run_seconds: float) -> int:
    """Return of how many runs a student can be trained, if all of them together may take `seconds_left`.

    Each run takes `run_seconds`. The result is 2 (MAX_TEACHERS), 1 or 0; 0 means that no student can be trained.
    """
    fitting = (n for n in range(1, MAX_TEACHERS + 1) if generations_time(run_seconds, n) <= seconds_left)
    return max(fitting, default=0)


def may_train_generations(config: RunConfig, asked: Asked) -> bool:
    """Tell whether the rest of the budget, if it is long enough, trains a student (see generations.py).

    The command must be a single `positron train model=auto budget=` that starts with random weights in one process.
    """
    begins = config.init_from is None and config.ckpt_path is None and not config.train.extend
    return asked.trains_generations and asked.auto_size and begins and config.device.processes == 1


def _minutes_for(needed: float, config: RunConfig, seconds_left: float) -> int:
    """Return a longer budget, in minutes, of which at least `needed` seconds are left for training.

    `seconds_left`: how much of the budget of `config` is left for training. A longer budget spends at least as much time on
    measurements and imports as this budget.
    """
    assert config.budget is not None
    budget = seconds(config.budget, "budget")
    longer = max(budget, needed + budget - seconds_left, needed / (1 - RESERVED_SHARE - MEASURING_SHARE))
    return int(longer // 60) + 1


def advice_for_small_text(
    config: RunConfig, asked: Asked, course: Course, speed: Speed, seconds_left: float, text_tokens: float
) -> str:
    """Return what the rest of the budget is used for, or how the user can use more time, as the end of a logged line.

    The rest is `seconds_left`, the time for training, without the time of the run, which follows from `course` and `speed`.
    """
    per_token = 1 / speed.tokens_per_s(course.batch_tokens)
    if not course.dropout and "model.dropout" not in asked.given:
        minutes = _minutes_for(DROPOUT_PASSES * text_tokens * per_token, config, seconds_left)
        return f"with budget={minutes}min the run reads it more often, with dropout"
    is_chosen = course.dropout != config.model.dropout  # then `speed` was measured without dropout
    run_time = course.tokens * per_token * (DROPOUT_TIME if is_chosen else 1)
    if not may_train_generations(config, asked):
        more_runs = min(int(seconds_left / run_time) - 1, MAX_MEMBERS - 1)
        rest = f", and the rest of the budget is enough for {more_runs} more" if more_runs else ""
        return (
            "more time for this run does not help, but another run with another seed= and name= does: --run A,B uses both as "
            f"one model, with a loss that is 2 to 4 % lower{rest}"
        )
    match teachers_within(seconds_left, run_time):
        case 0:
            minutes = _minutes_for(generations_time(run_time, 1), config, seconds_left)
            return f"budget={minutes}min also trains a student, with a loss that is 2 to 3 % lower"
        case 1:
            return (
                "the rest of the budget then trains a student that learns from it, with a loss that is 2 to 3 % lower"
            )
        case _:
            return (
                "the rest of the budget then trains a second run with another seed, and a student that learns from both, with "
                "a loss that is about 3 % lower"
            )
