"""Sampling: from logits to the next token.

Each step is a pure function of the logits (V,) and its options. The steps are applied in this order:

    repetition penalty   make recent tokens less likely by a penalty r > 1: z / r where z > 0, z r where z < 0, because z / r
                         would make a negative z likelier; r acts once, however often a token occurs (CTRL, arXiv:1909.05858)
    temperature          z / T: T < 1 sharpens, T > 1 flattens, T = 0 takes the likeliest token
    top-k                keep the k likeliest tokens
    top-p                keep the smallest set of tokens whose probabilities sum to at least p (arXiv:1904.09751)
    min-p                keep tokens with at least p times the probability of the likeliest token (arXiv:2407.01082)

The logits of tokens that are not kept become -inf, so their probability is exactly 0. The likeliest token is always kept.

Cost: one sort of V numbers for top-p, little beside the model. On an FPGA, greedy decoding needs a comparator; sampling needs a
random number and a running sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from numpy_ref.linear import Array
from numpy_ref.loss import softmax


def penalize(logits: Array, recent: Iterable[int], penalty: float, exempt: Iterable[int] = ()) -> Array:
    """Apply the repetition penalty to the `recent` ids, except `exempt` ids such as special tokens: logits (V,) -> (V,).

    Positive logits are divided by `penalty`, others are multiplied by it. A penalty above 1 makes these tokens less likely.
    """
    seen = sorted(set(recent) - set(exempt))
    out = logits.copy()
    z = out[seen]
    out[seen] = np.where(z > 0, z / penalty, z * penalty)
    return out


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k largest of the logits (V,), and all that are equal to the k-th largest; set the others to -inf."""
    if k >= len(logits):
        return logits
    smallest = np.partition(logits, -k)[-k]
    return np.where(logits < smallest, -np.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the likeliest tokens until their probabilities sum to at least p; set the other logits (V,) to -inf."""
    order = np.argsort(-logits, kind="stable")  # (V,)
    probability = softmax(logits[order])
    before = (
        np.cumsum(probability) - probability
    )  # sum over all likelier tokens; 0 for the likeliest token, which is always kept
    out = logits.copy()
    out[order[before >= p]] = -np.inf
    return out


def keep_min_p(logits: Array, p: float) -> Array:
    """Keep the tokens with at least p times the largest probability; set the other logits (V,) to -inf."""
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
    """Return logits (V,), in float64, after repetition penalty, temperature, top-k, top-p and min-p, applied in this order.

    The repetition penalty changes the logits of the ids in `recent`, except those in `exempt`. The logits are then divided by
    `temperature`, which must be above 0. The logits of tokens that top-k, top-p or min-p remove become -inf; None switches one
    of these three off.
    """
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
    logits: Array, rng: np.random.Generator, recent: Iterable[int] = (), *, temperature: float = 1.0, **filters: Any
) -> int:
    """Draw one token id from logits (V,); with temperature 0, return the likeliest token after the repetition penalty.

    `filters` are the other arguments of `filtered`.
    """
    if temperature == 0:
        penalty = float(filters.get("repetition_penalty", 1.0))
        exempt: Iterable[int] = filters.get("exempt", ())
        return int(np.argmax(penalize(logits, recent, penalty, exempt) if penalty != 1 else logits))
    p = softmax(filtered(logits, recent, temperature=temperature, **filters))
    return int(rng.choice(len(p), p=p / p.sum()))
