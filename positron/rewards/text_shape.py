"""Reward properties of a text that do not depend on its prompt: its length, and a regular expression that occurs in it."""

from __future__ import annotations

import re

from positron.rewards.reward import Reward


def length_reward(target: int) -> Reward:
    """Return the reward 1 - |characters - target| / target, but at least 0."""

    def length(prompt: str, completion: str) -> float:
        return max(0.0, 1 - abs(len(completion) - target) / target)

    return length


def regex_reward(pattern: str) -> Reward:
    """Return a reward that is 1 if the regular expression occurs anywhere in the completion, else 0.

    Python searches some patterns, such as `(a+)+b`, in a time that is exponential in the length of the text. The search
    handles signals meanwhile, so the time limit of `limits.call_within` ends it.
    """
    compiled = re.compile(pattern)

    def regex(prompt: str, completion: str) -> float:
        return float(compiled.search(completion) is not None)

    return regex
