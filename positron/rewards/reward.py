"""Define the types of rewards."""

from __future__ import annotations

from collections.abc import Callable

Reward = Callable[[str, str], float]  # (prompt, completion) -> number

# (prompt, completion) -> number of characters after which nothing that follows changes the reward; None if the end decides it
Decided = Callable[[str, str], int | None]
