"""Define the types of rewards."""

from __future__ import annotations

from collections.abc import Callable

Reward = Callable[[str, str], float]  # (prompt, completion) -> number

# (prompt, completion) -> how many characters of the completion decide its reward, whatever follows; None if only its end does
Decided = Callable[[str, str], int | None]
