"""Compute the learning rate from the step and the planned number of steps, which is called the horizon.

There is no scheduler object whose state a checkpoint would have to store (invariant 4 of docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import math
from typing import assert_never

from positron.config import ScheduleConfig


def lr_at(step: int, horizon: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Compute the learning rate of optimizer step `step`, counted from 1, in a run of `horizon` steps.

    The rate rises linearly to `peak` over `warmup_steps` steps. Then the kinds of schedule differ. `cosine` (arXiv:1608.03983)
    and `linear` decay to `final_ratio * peak` at the horizon and stay there. `constant` stays at `peak`. `trapezoid` (Haegele
    et al. 2024, arXiv:2405.18392) stays at `peak` and decays linearly to `final_ratio * peak` in the last `decay_share` of
    the steps.
    """
    warmup = schedule.warmup_steps
    assert schedule.final_ratio is not None  # ScheduleConfig fills it in
    match schedule.kind:
        case "cosine":
            decayed = (1 - math.cos(math.pi * _progress(step, warmup, horizon))) / 2
        case "linear":
            decayed = _progress(step, warmup, horizon)
        case "constant":
            decayed = 0.0
        case "trapezoid":
            decay_start = max(warmup, min(horizon - 1, round((1 - schedule.decay_share) * horizon)))
            decayed = _progress(step, decay_start, horizon)
        case _:
            assert_never(schedule.kind)
    return peak * step / warmup if step <= warmup else peak * (1 - (1 - schedule.final_ratio) * decayed)


def _progress(step: int, start: int, end: int) -> float:
    """Return the share of the steps from `start` to `end` that is done at `step`: 0 before `start`, 1 after `end`."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
