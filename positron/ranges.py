"""Define ranges of numbers as types, such as `Annotated[int, Range(1)]`, and check the numbers of a dataclass.

This module imports only the standard library; `config.py` imports this module.
"""

from __future__ import annotations

import math
import sys
import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any

MAX_COUNT = 10**12  # steps, tokens or examples: far more than anyone uses, and products of counts fit into 64 bits


@dataclass(frozen=True)
class Range:
    """Hold a range of numbers from `low` to `high`. `without_low` excludes `low` itself, and `without_high` excludes `high`.

    NaN and infinity are in no range.
    """

    low: float
    high: float = MAX_COUNT
    without_low: bool = False
    without_high: bool = False

    def complaint(self, value: float) -> str | None:
        """Return the condition that `value` violates, such as "must be positive", or None if it is in the range."""
        if not math.isfinite(value):
            return "must be a finite number"
        is_low = value <= self.low if self.without_low else value < self.low
        is_high = value >= self.high if self.without_high else value > self.high
        if not is_low and not is_high:
            return None
        if self.high <= 1:
            at_low, at_high = "above" if self.without_low else "at least", "below" if self.without_high else "at most"
            return f"must be {at_low} {self.low:g} and {at_high} {self.high:g}"
        if is_high:
            return f"must be at most {self.high:,}"
        if self.low == 0:
            return "must be positive" if self.without_low else "must not be negative"
        return f"must be at least {self.low:g}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
# Limits far above any real model, so that a size from a damaged or hostile file gives an error instead of an endless wait.
ContextLength = Annotated[int, Range(1, 2**22)]
Width = Annotated[int, Range(1, 2**24)]
Depth = Annotated[int, Range(1, 10_000)]
MlpWidth = Annotated[int, Range(1, 2**26)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, without_low=True)]
Rate = Annotated[
    float, Range(0, sys.float_info.max, without_low=True)
]  # without an upper limit: the loss shows a rate that is too high
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1, without_low=True)]
Ratio = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, without_high=True)]
BelowHalf = Annotated[float, Range(0, 0.5, without_high=True)]


def first_complaint(settings: Any) -> str | None:
    """Return `name=value must be ...` for the first field whose number is not allowed, or None if all numbers are allowed.

    `settings` is a dataclass. The type of a field states the allowed numbers, as `Annotated[int, Range(1)]` does. A number
    whose type has no `Range` must be between -10^12 and 10^12 (MAX_COUNT).
    """
    cls: Any = type(settings)
    for name, hint in _hints(cls).items():
        value = getattr(settings, name)
        if complaint := complaint_about(hint, value):
            return f"{name}={list(value) if isinstance(value, tuple) else value} {complaint}"
    return None


def complaint_about(hint: Any, value: Any) -> str | None:
    """Return the condition that a setting of the type `hint` violates with `value`, or None. See `first_complaint`."""
    if isinstance(value, tuple):
        inner = typing.get_args(hint)
        hints = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        return next(filter(None, map(complaint_about, hints, value)), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    marks = list(_marks(hint))
    if not marks:
        return Range(-MAX_COUNT).complaint(value)
    return next(filter(None, (mark.complaint(value) for mark in marks)), None)


def _marks(hint: Any) -> typing.Iterator[Range]:
    if typing.get_origin(hint) is Annotated:
        yield from (mark for mark in typing.get_args(hint)[1:] if isinstance(mark, Range))
        return
    for part in typing.get_args(hint):
        yield from _marks(part)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}
