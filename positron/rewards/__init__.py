"""Score completions for reinforcement learning: built-in rewards, functions of the user, and weighted sums.

A reward is a function of a prompt and a completion, both texts, that returns a number. `open_reward` makes the one that the
settings name, and checks each call: an error, a time limit, or a result that is not a number becomes one line that names the
reward and shows the prompt and the completion. This package imports neither torch nor NumPy.
"""

from __future__ import annotations

from positron.rewards.open import Term, WeightedSum, open_reward
from positron.rewards.reward import Reward

__all__ = ["Reward", "Term", "WeightedSum", "open_reward"]
