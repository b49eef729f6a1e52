"""Rank variants of the settings, each trained with several seeds, by the mean score of their runs.

A ranking of single runs would put the variant with the luckiest seed first. Every list of runs that begins with the best run
uses this module.
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

    `missing` is the number of seeds for which this variant has no result. The seeds are those of all compared runs, of whatever
    variant. If every variant has a single run, the seeds are not compared: `missing` is 0 if the run has a result, otherwise 1.
    """

    members: list[T]
    scored: int  # number of runs with a result
    missing: int  # number of seeds without a result
    mean: float | None  # mean score of the runs with a result; None if no run has one
    half: float | None  # half the width of the 95 % interval of the mean over seeds; None for fewer than two results


def seed_groups(
    items: Iterable[T],
    variant: Callable[[T], Hashable],
    seed: Callable[[T], Hashable],
    score: Callable[[T], float | None],
) -> list[SeedGroup[T]]:
    """Return the groups of items with the same variant, the lowest mean score first.

    An item represents a run. Three functions describe the run of an item: `variant` returns the settings except the seed,
    `seed` the seed, and `score` the score, or None if the run has no result.

    A group that lacks the result of a seed comes after all groups that have results for every seed, whatever the means. Its
    mean may be too low, because bad runs fail or are ended early. If each group has a single item, the seeds are not compared.
    Groups without any result come last.
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
