"""Reward a property of the completion that does not depend on the prompt: its length, or a match of a regular expression."""

from __future__ import annotations

import re

from positron.rewards.reward import Reward


def length_reward(target: int) -> Reward:
    """Return a reward that is 1 at a length of `target` characters: max(0, 1 - |length - target| / target)."""

    def length(prompt: str, completion: str) -> float:
        return max(0.0, 1 - abs(len(completion) - target) / target)

    return length


def regex_reward(pattern: str) -> Reward:
    """Return a reward that is 1 if the regular expression matches anywhere in the completion, else 0.

    For some patterns, such as `(a+)+b`, the search takes a time that is exponential in the length of the text. The time
    limit of `limits.call_within` can interrupt it.
    """
    compiled = re.compile(pattern)

    def regex(prompt: str, completion: str) -> float:
        return float(compiled.search(completion) is not None)

    return regex
