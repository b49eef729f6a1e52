"""Choosing the next token: pure functions on logits.

Repetition penalty, temperature, top-k, top-p, min-p: each sees what the ones before it left. A token that was dropped
has a logit of -inf, and no later filter brings it back; the likeliest token always stays. `numpy_ref/sampling.py` is
the same on NumPy arrays, and a test holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def penalize(logits: Tensor, recent: Iterable[int], penalty: float, exempt: Iterable[int] = ()) -> Tensor:
    """(V,): each of the `recent` ids once, however often it was seen, but for `exempt` (special) ones, gets less likely.

    z / penalty where z > 0, z * penalty where z < 0 (CTRL, arXiv:1909.05858): dividing a negative one would raise it.
    """
    seen = torch.tensor(sorted(set(recent) - set(exempt)), dtype=torch.long, device=logits.device)
    z = logits[seen]
    return logits.index_copy(0, seen, torch.where(z > 0, z / penalty, z * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V): all but the k largest become -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[..., -1, None]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V): keeps the fewest tokens whose probabilities reach p (nucleus sampling, arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # of the likelier tokens; 0 for the likeliest, which always stays
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(B, V): keeps the tokens with at least p times the likeliest one's probability (arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), float("-inf"))


def filtered(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits (B, V), temperature > 0 -> float64 (B, V) with -inf for what must not be drawn."""
    logits = logits.double() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits


def sample(logits: Tensor, *, temperature: float, generator: torch.Generator, **filters: float | None) -> Tensor:
    """Logits (B, V) -> token ids (B,). Temperature 0 takes the likeliest. Drawn on the CPU: the same on every device.

    `filters`: the other arguments of `filtered`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    kept = filtered(logits.cpu(), temperature=temperature, **filters)  # type: ignore[arg-type]
    return torch.multinomial(kept.softmax(dim=-1), 1, generator=generator)[:, 0]
