"""Compute the learning rate as a function of (step, horizon): no scheduler object, no state, nothing to restore.

Invariant 4 of docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import math
from typing import assert_never

from positron.config import ScheduleConfig


def lr_at(step: int, horizon: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (from 1) in a run of `horizon` steps.

    Linear warmup to `peak` over `warmup_steps`; then cosine (arXiv:1608.03983) or linear decay to
    `final_ratio * peak` at the horizon, where it stays; constant; or a trapezoid (Haegele et al. 2024,
    arXiv:2405.18392), constant until the last `decay_share` of the horizon and linear from there.
    """
    warmup = schedule.warmup_steps
    assert schedule.final_ratio is not None  # ScheduleConfig fills it in
    match schedule.kind:
        case "cosine":
            fallen = (1 - math.cos(math.pi * _progress(step, warmup, horizon))) / 2
        case "linear":
            fallen = _progress(step, warmup, horizon)
        case "constant":
            fallen = 0.0
        case "trapezoid":
            begin = max(warmup, min(horizon - 1, round((1 - schedule.decay_share) * horizon)))
            fallen = _progress(step, begin, horizon)
        case _:
            assert_never(schedule.kind)
    return peak * step / warmup if step <= warmup else peak * (1 - (1 - schedule.final_ratio) * fallen)


def _progress(step: int, begin: int, end: int) -> float:
    """Return how much of the way from `begin` to `end` lies behind, 0 before and 1 after."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
