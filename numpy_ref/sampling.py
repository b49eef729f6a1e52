"""Chapter 15. Sampling: from logits to the next token. Pure functions on logits (V,), applied in this order:

    repetition penalty   tokens seen lately get less likely, each once however often it was seen: z / r where z > 0, z r
                         where z < 0 (CTRL, arXiv:1909.05858; dividing a negative z would make it likelier)
    temperature          z / T: T < 1 sharpens, T > 1 flattens, T = 0 takes the likeliest
    top-k                only the k likeliest stay
    top-p                only the fewest tokens that together reach the probability p stay (arXiv:1904.09751)
    min-p                only tokens with at least p times the likeliest one's probability stay (arXiv:2407.01082)

What does not stay becomes -inf, whose probability is exactly 0; the likeliest token always stays.

Cost: one sort of V numbers for top-p; nothing beside the model. On an FPGA, greedy needs a comparator, sampling a random
number and a running sum.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from numpy_ref.linear import Array
from numpy_ref.loss import softmax


def penalize(logits: Array, recent: Iterable[int], penalty: float, exempt: Iterable[int] = ()) -> Array:
    """`recent` ids get less likely, but for `exempt` ones (special tokens). penalty > 1."""
    seen = sorted(set(recent) - set(exempt))
    out = logits.copy()
    z = out[seen]
    out[seen] = np.where(z > 0, z / penalty, z * penalty)
    return out


def keep_top_k(logits: Array, k: int) -> Array:
    if k >= len(logits):
        return logits
    smallest = np.partition(logits, -k)[-k]
    return np.where(logits < smallest, -np.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    order = np.argsort(-logits, kind="stable")
    probability = softmax(logits[order])
    before = np.cumsum(probability) - probability  # of the likelier tokens; 0 for the likeliest, which always stays
    out = logits.copy()
    out[order[before >= p]] = -np.inf
    return out


def keep_min_p(logits: Array, p: float) -> Array:
    return np.where(logits < logits.max() + np.log(p), -np.inf, logits)


def filtered(
    logits: Array,
    recent: Iterable[int] = (),
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    exempt: Iterable[int] = (),
) -> Array:
    """All filters in their order. logits (V,) -> float64 (V,). temperature > 0."""
    logits = logits.astype(np.float64)
    if repetition_penalty != 1:
        logits = penalize(logits, recent, repetition_penalty, exempt)
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits


def sample(
    logits: Array, rng: np.random.Generator, recent: Iterable[int] = (), *, temperature: float = 1.0, **filters: object
) -> int:
    """One token id from logits (V,)."""
    if temperature == 0:
        penalty = float(filters.get("repetition_penalty", 1.0))  # type: ignore[arg-type]
        exempt: Iterable[int] = filters.get("exempt", ())  # type: ignore[assignment]
        return int(np.argmax(penalize(logits, recent, penalty, exempt) if penalty != 1 else logits))
    p = softmax(filtered(logits, recent, temperature=temperature, **filters))  # type: ignore[arg-type]
    return int(rng.choice(len(p), p=p / p.sum()))
