"""Define two types of functions: `Reward` scores a completion, and `Decided` tells whether the score can still change.

The score can change while the completion is being generated, as long as further text may make it better or worse.
"""

from __future__ import annotations

from collections.abc import Callable

Reward = Callable[[str, str], float]  # (prompt, completion) -> number

# (prompt, completion) -> number of characters of the completion after which no further text can change the reward, or None if
# further text could still change it
Decided = Callable[[str, str], int | None]
