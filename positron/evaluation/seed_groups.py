"""Rank variants that were trained with several seeds by their mean, so that the luckiest seed is not taken for the best.

Every list of runs that begins with the best run uses this module.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from positron.evaluation.statistics import half_interval

T = TypeVar("T")


@dataclass(frozen=True)
class SeedGroup(Generic[T]):
    """Hold the runs of one variant, which differ only in their seed.

    `mean` is the mean score of the runs that have a result; None if no run has one. `scored` is the number of runs with a
    result. `missing` is the number of seeds, among the seeds of all variants, for which this variant has no result; if no
    variant has several runs, `missing` is 0 with a result and 1 without. `half` is half the width of the 95 % interval of the
    mean; None for fewer than two results.
    """

    members: list[T]
    scored: int  # number of runs with a result
    missing: int  # number of seeds, among the seeds of all variants, for which this variant has no result
    mean: float | None
    half: float | None  # half the width of the 95 % interval of the mean over seeds; None for fewer than two results


def seed_groups(
    items: Iterable[T],
    variant: Callable[[T], Hashable],
    seed: Callable[[T], Hashable],
    score: Callable[[T], float | None],
) -> list[SeedGroup[T]]:
    """Return the groups of items with the same variant, the lowest mean score first.

    An item represents a run. `variant`, `seed` and `score` return these values of an item; items with equal variants form a
    group, and the score is None for an item without a result. A group without a result for some seed comes after the groups
    that have results for all seeds, because a variant whose bad runs failed or were ended early looks better than it is.
    """
    by_variant: dict[Hashable, list[T]] = {}
    for item in items:
        by_variant.setdefault(variant(item), []).append(item)
    seeds = {seed(item) for members in by_variant.values() for item in members}
    are_repeated = any(len(members) > 1 for members in by_variant.values())
    groups = []
    for members in by_variant.values():
        scores = [value for item in members if (value := score(item)) is not None]
        complete = {seed(item) for item in members if score(item) is not None}
        missing = len(seeds - complete) if are_repeated else int(not scores)
        mean = statistics.fmean(scores) if scores else None
        groups.append(SeedGroup(members, len(scores), missing, mean, half_interval(scores)))
    return sorted(groups, key=lambda group: (group.mean is None, group.missing > 0, group.mean or 0.0))
