"""Law 4: the learning rate is a pure function of (step, horizon). No scheduler object, no state, nothing to restore."""

from __future__ import annotations

import math

from positron.config import ScheduleConfig


def lr_at(step: int, horizon: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (from 1) in a run of `horizon` steps.

    Linear warmup to `peak` over `warmup_steps`; then cosine (arXiv:1608.03983) or linear decay to
    `final_ratio * peak` at the horizon, where it stays; constant; or a trapezoid (Haegele et al. 2024,
    arXiv:2405.18392), constant until the last `decay_share` of the horizon and linear from there.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    begin = schedule.warmup_steps
    if schedule.kind == "trapezoid":
        begin = max(begin, min(horizon - 1, round((1 - schedule.decay_share) * horizon)))
        if step <= begin:
            return peak
    progress = min(1.0, (step - begin) / max(1, horizon - begin))
    if schedule.kind == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return peak * (1 - (1 - schedule.final_ratio) * progress)
