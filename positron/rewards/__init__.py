"""Score completions for reinforcement learning: built-in rewards, functions of the user, and weighted sums.

A reward is a function of a prompt and a completion, both texts, that returns a number. `open_reward` makes the reward that is
chosen in the settings. Each call of this reward is checked: if the call fails, takes too long, or does not return a number, the
user sees a one-line error that names the reward and shows the prompt and the completion. This package imports neither torch nor
NumPy.
"""

from __future__ import annotations

from positron.rewards.open import Term, WeightedSum, open_reward
from positron.rewards.reward import Reward

__all__ = ["Reward", "Term", "WeightedSum", "open_reward"]
