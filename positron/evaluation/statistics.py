"""Quantiles for intervals and tests, by SciPy."""

from __future__ import annotations


def t95(dof: int) -> float:
    """Return the 97.5 % quantile of Student's t: half of a 95 % interval, in standard errors."""
    from scipy.special import stdtrit  # here: 0.2 s, for those only who show an interval

    return float(stdtrit(dof, 0.975))
