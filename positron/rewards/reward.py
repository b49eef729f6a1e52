"""Define what a reward is."""

from __future__ import annotations

from collections.abc import Callable

Reward = Callable[[str, str], float]  # (prompt, completion) -> number
