"""Compute confidence intervals, p-values and sample sizes, with SciPy.

Two variants A and B are compared by pairs of runs. A *pair* is a run of A and a run of B with the same seed. Several functions
take a list with one difference for each pair: the score of the run of B minus the score of the run of A.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_ENUMERATED_PAIRS = 20  # with more pairs, the sign-flip test draws patterns instead of enumerating 2^pairs of them
DRAWN_PATTERNS = 1 << 20
MAX_PAIRS = 100_000  # pairs_needed does not search beyond this number


def t95(dof: int) -> float:
    """Return half the width of a 95 % confidence interval in standard errors, with `dof` degrees of freedom.

    The result is the 97.5 % quantile of Student's t distribution.
    """
    return t_quantile(dof, 0.975)


def t_quantile(dof: int, probability: float) -> float:
    """Return the quantile of Student's t distribution with `dof` degrees of freedom at `probability`."""
    from scipy.special import stdtrit  # imported here, because this takes 0.2 s and only intervals need it

    return float(stdtrit(dof, probability))


def half_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % confidence interval of the mean (Student's t); None for fewer than two values."""
    n = len(values)
    return t95(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the paired t-test; None for fewer than two pairs.

    `differences` has the difference of each pair. If all differences are equal, the p-value is 1 if they are 0, otherwise 0.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def one_sided_t_test(gains: Sequence[float]) -> float:
    """Return the p-value of the one-sided paired t-test of the hypothesis that the mean gain is 0 or less.

    `gains` has the gain of each pair, of which there must be at least two. If all gains are equal, the p-value is 0 if they are
    positive, otherwise 1.
    """
    p = paired_t_test(gains)
    assert p is not None
    if len(set(gains)) == 1:
        return 0.0 if gains[0] > 0 else 1.0
    return p / 2 if statistics.fmean(gains) > 0 else 1 - p / 2


@dataclass(frozen=True)
class SignFlips:
    """Hold the result of a sign-flip test: its p-value, and the number of sign patterns that were compared.

    For the test, see `sign_flip_test`.
    """

    p: float
    patterns: int
    is_exact: bool  # whether the patterns are all 2^pairs patterns

    @property
    def smallest_p(self) -> float:
        """Return the smallest p-value that the test could give with this number of sign patterns.

        It is 2 / patterns if all patterns are compared, because a pattern and its opposite have means at the same distance from
        0. Otherwise it is 1 / (patterns + 1).
        """
        return 2 / self.patterns if self.is_exact else 1 / (self.patterns + 1)


def sign_flip_test(differences: Sequence[float]) -> SignFlips | None:
    """Return the result of the two-sided sign-flip permutation test of a mean, or None for fewer than two differences.

    A difference is the score of a variant B minus the score of a variant A, for example in two runs with the same seed. If the
    variants are equally good, each difference is as likely to be negative as positive.

    A sign pattern gives each difference one of the two signs. The p-value is the share of sign patterns with which the mean is
    at least as far from 0 as the mean of `differences`. For at most 20 differences (MAX_ENUMERATED_PAIRS), all patterns are
    enumerated. For more, 2^20 patterns (DRAWN_PATTERNS) are drawn with a fixed seed, and the pattern of `differences` itself is
    counted too (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    n = len(differences)
    if n < 2:
        return None
    values = np.asarray(differences, dtype=np.float64)
    # Sums of the same numbers in another order differ by rounding; such ties count as equally far from 0.
    observed = abs(float(values.sum())) - 1e-12 * float(np.abs(values).sum())
    if n <= MAX_ENUMERATED_PAIRS:
        sums = values[:1]  # the first sign is fixed, because the opposite pattern has the same distance from 0
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlips(float(np.mean(np.abs(sums) >= observed)), 2 * len(sums), True)
    rng = np.random.default_rng(0)
    extreme = 0
    for _ in range(DRAWN_PATTERNS >> 12):
        signs = rng.integers(0, 2, size=(1 << 12, n), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ values) >= observed))
    return SignFlips((extreme + 1) / (DRAWN_PATTERNS + 1), DRAWN_PATTERNS, False)


def power_of_t_test(effect: float, pairs: int, level: float) -> float:
    """Return the probability that a two-sided paired t-test of `pairs` pairs gives p < `level`.

    `effect` is the true mean difference in units of the true standard deviation of the differences. The differences are assumed
    to be normal, so the statistic of the test has the noncentral t distribution. The probability is an integral over the sample
    variance, computed by Gauss-Legendre quadrature with an error of at most 1e-5. `scipy.special.nctdtr` is not used, because
    it returns NaN far from the centre.
    """
    from scipy.special import chdtri, ndtr

    nodes, weights = np.polynomial.legendre.leggauss(200)
    deviations = np.sqrt(chdtri(pairs - 1, (nodes + 1) / 2) / (pairs - 1))  # of the sample, in units of the true one
    critical, shift = t_quantile(pairs - 1, 1 - level / 2) * deviations, effect * math.sqrt(pairs)
    return float(weights / 2 @ (ndtr(shift - critical) + ndtr(-shift - critical)))


def pairs_needed(differences: Sequence[float], level: float = 0.01, power: float = 0.8) -> int | None:
    """Return the smallest number of pairs with which a paired t-test gives p < `level` with a probability of `power` or more.

    The true mean and standard deviation of the differences are assumed to be those of `differences`. The result is at least 2.
    Returns None if there are fewer than two differences, if all of them are 0, or if more than 100,000 pairs (MAX_PAIRS) would
    be needed.
    """
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return 2 if mean else None
    effect = abs(mean) / deviation
    if power_of_t_test(effect, MAX_PAIRS, level) < power:
        return None
    low, high = 1, MAX_PAIRS  # `low` pairs are too few, `high` are enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_t_test(effect, middle, level) >= power else (middle, high)
    return high
