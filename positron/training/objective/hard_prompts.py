"""Choose prompts that the model still answers badly, so that reinforcement learning asks them again.

A prompt whose answers all have the same reward teaches nothing. When most answers are right, most prompts are of this kind;
asking some of the other ones again makes the same number of answers teach more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class HardPrompts:
    """Remember the prompts whose answers did not all pass when they were last asked, by their indices."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        """Begin with the hard prompts `numbers`."""
        self._numbers = set(numbers)
        self._newest: tuple[int, dict[int, bool]] = (0, {})  # a step, and whether its prompts are hard

    def after(self, step: int) -> list[int]:
        """Return the hard prompts after optimizer step `step`.

        If a signal ended the next step after its prompts were recorded, they are left out.
        """
        newest, is_hard = self._newest
        if newest > step:
            is_hard = {}
        kept = {number for number in self._numbers if is_hard.get(number, True)}
        return sorted(kept | {number for number, hard in is_hard.items() if hard})

    def draw(self, step: int, count: int, seed: int) -> list[int]:
        """Return `count` different prompts that are hard before step `step`, or all of them if there are fewer."""
        hard = self.after(step - 1)
        chosen = np.random.default_rng((seed, step)).permutation(len(hard))[:count]
        return [hard[i] for i in chosen.tolist()]

    def record(self, step: int, numbers: Sequence[int], passed: Sequence[bool]) -> None:
        """Record for each prompt of a step whether all its answers passed."""
        self._numbers = set(self.after(step - 1))
        self._newest = step, dict(zip(numbers, (not each for each in passed), strict=True))


def of_all_ranks(values: Tensor, rank: int, world_size: int, device: torch.device) -> list[bool]:
    """Return the values of all ranks in the order of the prompts; `values` are those of every `world_size`-th prompt."""
    whole = torch.zeros(len(values) * world_size, device=device)
    whole[rank::world_size] = values.to(whole)
    if world_size > 1:
        torch.distributed.all_reduce(whole)
    return whole.bool().tolist()
