"""Decode with an ensemble: several models, whose next-token probabilities are averaged.

Each model has its own key/value cache. For each token, one model is computed after the other. The alternative, to stack the
weights of all models, so that one operator computes all models at once (torch.vmap), took more than twice as long. This was
measured with three models of 15M parameters on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from positron.inference.decoder import Decoder
from positron.model.ensemble import mean_logits

Result = TypeVar("Result")


class EnsembleDecoder:
    """Compute next-token logits whose softmax is the mean of the next-token distributions of several decoders, the members.

    Methods and attributes have the same meaning as in `Decoder`. `context_length` is the smallest of the members' context
    lengths.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        self.members = tuple(members)
        self.device, self.dtype = members[0].device, members[0].dtype
        self.context_length = min(member.context_length for member in members)
        self.vocab_size = members[0].vocab_size
        self.lengths = list(members[0].lengths)  # set in all members before they compute, since callers change it

    @property
    def row_bytes(self) -> int:
        """Return the size of one row in the caches of all members together, in bytes."""
        return sum(member.row_bytes for member in self.members)

    def with_empty_cache(self, batch: int) -> EnsembleDecoder:
        """Return a copy of this decoder that shares its weights, but has its own empty caches for `batch` sequences."""
        return EnsembleDecoder([member.with_empty_cache(batch) for member in self.members])

    def prefill(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Replace the content of the cache rows `rows` by b prompts and return the logits after each prompt, (b, V)."""
        return self._mean(lambda member: member.prefill(rows, prompts))

    def read(self, ids: list[int], row: int = 0) -> Tensor:
        """Append T tokens to a row of the caches and return the logits after each of them, (T, V)."""
        return self._mean(lambda member: member.read(ids, row))

    @torch.inference_mode()
    def read_piece(self, prompt: list[int], row: int) -> Tensor | None:
        """Append the next piece of `prompt` to a row, which already holds the first `self.lengths[row]` tokens of `prompt`.

        A piece is a part of the prompt that is read at once (see `piece_end`). When the whole prompt has been read, returns the
        logits after the prompt, (V,). Before that, returns None: the caller must call `read_piece` again.
        """
        logits = self._each(lambda member: member.read_piece(prompt, row))
        complete = [x for x in logits if x is not None]  # the pieces of all members end at the same positions
        return mean_logits(complete) if complete else None

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row of the caches: ids (B,) -> next-token logits (B, V)."""
        return self._mean(lambda member: member.step(ids))

    def step_some(self, ids: Tensor, rows: list[int]) -> Tensor:
        """Append one token to each of the b cache rows `rows`: ids (b,) -> next-token logits (b, V)."""
        return self._mean(lambda member: member.step_some(ids, rows))

    @torch.inference_mode()
    def _mean(self, logits_of: Callable[[Decoder], Tensor]) -> Tensor:
        return mean_logits(self._each(logits_of))

    def _each(self, result_of: Callable[[Decoder], Result]) -> list[Result]:
        results = []
        for member in self.members:
            member.lengths = list(self.lengths)
            results.append(result_of(member))
        self.lengths = list(self.members[0].lengths)
        return results
