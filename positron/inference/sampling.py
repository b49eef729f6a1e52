"""Choosing the next token: pure functions on logits, in the order temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V): all but the k largest become -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[..., -1, None]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V): keeps the fewest tokens whose probabilities reach p (nucleus sampling, arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # of the likelier tokens; 0 for the likeliest, which always stays
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def sample(
    logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """Logits (B, V) -> token ids (B,). Temperature 0 takes the likeliest. Drawn on the CPU: the same on every device."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float().cpu() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
