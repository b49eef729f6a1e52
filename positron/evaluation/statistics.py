"""Compute quantiles for intervals and tests, with SciPy."""

from __future__ import annotations


def t95(dof: int) -> float:
    """Return half the width of a 95 % interval in standard errors: the 97.5 % quantile of Student's t with `dof` degrees."""
    from scipy.special import stdtrit  # imported here, because this takes 0.2 s and only intervals need it

    return float(stdtrit(dof, 0.975))
