"""Choose prompts that the model still answers badly, so that reinforcement learning asks them again.

The model learns nothing from a prompt whose answers all have the same reward. When most answers are right, most prompts have
only right answers. If prompts that got a wrong answer are asked again, a step has more prompts with both right and wrong
answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class HardPrompts:
    """Remember the indices of hard prompts.

    A prompt is hard if at least one of its answers did not get the full reward when the prompt was last asked.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        """Begin with `numbers`, the indices of hard prompts, which the model has answered badly."""
        self._numbers = set(numbers)
        self._newest: tuple[int, dict[int, bool]] = (0, {})  # a step, and whether its prompts are hard

    def after(self, step: int) -> list[int]:
        """Return the indices of the prompts that are hard after optimizer step `step`.

        A prompt is hard if at least one of its answers did not get the full reward when the prompt was last asked.

        The results that step `step` + 1 may have recorded already are ignored. This is necessary if a signal or an error
        interrupts that step after its answers got their rewards: the checkpoint that is then saved belongs to `step`.
        """
        newest, is_hard = self._newest
        if newest > step:
            is_hard = {}
        remaining_prompts = {number for number in self._numbers if is_hard.get(number, True)}
        return sorted(remaining_prompts | {number for number, hard in is_hard.items() if hard})

    def draw(self, step: int, count: int, seed: int) -> list[int]:
        """Draw the indices of `count` different hard prompts for optimizer step `step`; return all if there are fewer.

        Hard prompts are those that the model has answered badly. The result depends only on `step`, `seed` and these prompts.
        """
        hard = self.after(step - 1)
        chosen = np.random.default_rng((seed, step)).permutation(len(hard))[:count]
        return [hard[i] for i in chosen.tolist()]

    def record(self, step: int, numbers: Sequence[int], passed: Sequence[bool]) -> None:
        """Record which prompts of a step are hard.

        `numbers` are the indices of the prompts. `passed[i]` is True if all answers to the prompt `numbers[i]` got the full
        reward; the prompt is hard otherwise. A prompt that occurs twice is hard if one of the two is.
        """
        self._numbers = set(self.after(step - 1))
        failed = {number for number, has_passed in zip(numbers, passed, strict=True) if not has_passed}
        self._newest = step, {number: number in failed for number in numbers}


def of_all_ranks(values: Tensor, rank: int, world_size: int, device: torch.device) -> list[bool]:
    """Return the values of all ranks in the order of the step's prompts.

    `values[i]`, a value of this rank, belongs to the step's prompt number `rank + i * world_size`, counted from 0.
    """
    whole = torch.zeros(len(values) * world_size, device=device)
    whole[rank::world_size] = values.to(whole)
    if world_size > 1:
        torch.distributed.all_reduce(whole)
    return whole.bool().tolist()
