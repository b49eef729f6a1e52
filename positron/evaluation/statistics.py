"""Compute quantiles for intervals and tests, with SciPy."""

from __future__ import annotations


def t95(dof: int) -> float:
    """Return the 97.5 % quantile of Student's t with `dof` degrees of freedom: half a 95 % interval in standard errors."""
    from scipy.special import stdtrit  # here: 0.2 s, for those only who show an interval

    return float(stdtrit(dof, 0.975))
