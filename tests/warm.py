"""Write the built-in stories once in a process, and in all processes that are forked from it."""

from __future__ import annotations

import functools
from typing import Any

from positron.stories import grammar


@functools.lru_cache(maxsize=10_000)
def generate(*arguments: Any, **options: Any) -> grammar.Story:
    """Write a story, or return the one that was written from these arguments before."""
    return grammar.generate(*arguments, **options)
