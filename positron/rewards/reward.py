"""Define two types of functions: `Reward`, which scores a completion, and `Decided`, which tells when the score is final."""

from __future__ import annotations

from collections.abc import Callable

Reward = Callable[[str, str], float]  # (prompt, completion) -> number

# (prompt, completion) -> number of characters of the completion after which no further text can change the reward, or None if
# further text could still change it
Decided = Callable[[str, str], int | None]
