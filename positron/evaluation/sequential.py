"""Decide after each pair of runs whether a candidate is adopted, rejected, or needs another pair.

A candidate is a change of the training settings. The two runs of a pair have the same seed, and one of them has the change. The
gain of a pair is the bits per byte without the candidate minus the bits per byte with it. It is positive if the candidate is
better. The gains of different seeds are assumed to be independent draws from one normal distribution, as in every paired
t-test.

A candidate is tested after each further pair; each such test is called a look. Adoptions are corrected for the number of looks
by Bonferroni's inequality. If each of K looks errs with a probability of at most LEVEL / K, all looks together err with a
probability of at most LEVEL, however the looks depend on each other. LEVEL is the largest probability to adopt a candidate
whose true mean gain is 0 or less. Early rejections are corrected in the same way. For them, the limit is MISS, the largest
probability to reject early a candidate whose true mean gain is the smallest gain worth having.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from positron.evaluation.statistics import one_sided_t_test, t_quantile

LEVEL = 0.01  # largest probability to adopt a candidate whose true mean gain is 0 or negative
MISS = 0.05  # largest probability to reject early a candidate whose true mean gain is the smallest one worth having
FIRST_ADOPTION = 5  # pairs; an adoption with fewer pairs would rest on the assumption more than on the data
FIRST_REJECTION = 3

Verdict = Literal["adopted", "rejected", "open"]


@dataclass(frozen=True)
class Look:
    """Hold an interim result: what the pairs of runs so far show about a candidate, and the decision about the candidate."""

    gain: float  # mean over the pairs: bits per byte without the candidate minus bits per byte with it
    # one-sided p-value times the largest possible number of tests, at most 1; None for fewer than 5 pairs (FIRST_ADOPTION)
    p: float | None
    verdict: Verdict  # "open": another pair is needed
    reason: str  # reason for the verdict, for people


def look(gains: Sequence[float], pairs: int, min_gain: float) -> Look:
    """Decide about a candidate from the gains of the pairs of runs so far; there will be at most `pairs` pairs.

    The gain of a pair is the bits per byte of the run without the candidate, minus those of the run with it. `min_gain` is the
    smallest gain worth having.

    From 3 pairs on (FIRST_REJECTION), the candidate is rejected if the upper confidence limit of its mean gain is below
    `min_gain`. Otherwise, from 5 pairs on (FIRST_ADOPTION), the candidate is adopted if the p-value of the paired t-test,
    multiplied by the largest possible number of such tests, is below 0.01 (LEVEL). Rejection comes first, so it cannot make
    wrong adoptions more frequent. If neither condition holds, the decision is open before the last pair, and the candidate is
    rejected after it.
    """
    n, mean = len(gains), statistics.fmean(gains)
    p = min(1.0, (pairs - FIRST_ADOPTION + 1) * one_sided_t_test(gains)) if n >= FIRST_ADOPTION else None
    if n >= FIRST_REJECTION:
        confidence = 1 - MISS / (pairs - FIRST_REJECTION + 1)
        limit = mean + t_quantile(n - 1, confidence) * statistics.stdev(gains) / math.sqrt(n)
        if limit < min_gain:
            return Look(mean, p, "rejected", f"the gain is below {min_gain:g}: its upper limit is {limit:+.5f}")
    if p is not None and p < LEVEL:
        return Look(mean, p, "adopted", f"p = {p:.2g}, corrected for the number of tests")
    if n == pairs:
        return Look(mean, p, "rejected", f"no gain is shown by {n} pairs")
    return Look(mean, p, "open", f"{n} of at most {pairs} pairs")
