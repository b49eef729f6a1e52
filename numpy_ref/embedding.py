"""Chapter 4. Embeddings: from token ids to vectors, and what tells a token where it stands.

Token embedding. y_n = W[id_n], a row of a table (V, C). As a product it would be onehot(id) W, so the linear layer's
dW = onehot^T dy applies: row v of dW is the sum of dy over all places where token v stood. Ids are no numbers that could
move a little; they have no gradient.

Learned positions are a second table (T, C) whose row t is added to the token at place t: its gradient is the sum of dy
over the batch.

Sinusoidal positions (arXiv:1706.03762, section 3.5) are the same table, fixed: sin and cos of t 10000^(-2i/C). They are
scaled to a root mean square of 0.02, that of new token embeddings; a sine's own is 1 / sqrt 2, so by 0.02 sqrt 2.

Smearing. y_t = x_t + w * x_{t-1}, channel by channel, with learned w (C,), 0 at first, and nothing before the first
token. A token then knows which one came before it, so that a single attention layer can look for "what followed this
word earlier" (an induction head, arXiv:2209.11895), for which two layers have to be composed otherwise. x_t takes part in
y_t and in y_{t+1}, so dx_t = dy_t + w * dy_{t+1}, and dw is the sum of dy_t * x_{t-1}.

Cost: no FLOPs forward, N C additions backward; bytes only, in rows of 4 C. The backward is the awkward part: adding
equal ids' rows one by one (`np.add.at`) is slow, so the rows are sorted by id first and each group is summed at once.
On an FPGA: a lookup in memory, nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from numpy_ref.linear import Array, Cache

INIT_STD = 0.02


def embedding_forward(idx: Array, weight: Array) -> tuple[Array, Cache]:
    """idx (...) integers, weight (V, C) -> (..., C). IndexError for an id outside of the table."""
    if idx.size and (idx.min() < 0 or idx.max() >= len(weight)):
        raise IndexError(f"token ids {idx.min()} to {idx.max()} do not fit a vocabulary of {len(weight)}")
    return weight[idx], {"idx": idx, "weight": weight}


def embedding_backward(dy: Array, cache: Cache) -> tuple[None, Array]:
    """dy (..., C) -> None (ids have no gradient), dweight (V, C)."""
    weight, ids = cache["weight"], cache["idx"].reshape(-1)
    dweight = np.zeros_like(weight)
    if ids.size:
        order = np.argsort(ids, kind="stable")
        present, first = np.unique(ids[order], return_index=True)  # where each id's group of rows begins
        dweight[present] = np.add.reduceat(dy.reshape(-1, dy.shape[-1])[order], first, axis=0)
    return None, dweight


def position_forward(x: Array, table: Array, start: int = 0) -> tuple[Array, Cache]:
    """x (B, T, C) at positions start, start + 1, ... plus rows of `table` (context, C) -> (B, T, C)."""
    rows = slice(start, start + x.shape[1])
    return x + table[rows], {"rows": rows, "table": table}


def position_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """dy (B, T, C) -> dx (B, T, C), dtable (context, C)."""
    dtable = np.zeros_like(cache["table"])
    dtable[cache["rows"]] = dy.sum(axis=0)
    return dy, dtable


def smear_forward(x: Array, weight: Array, first: Array | None = None) -> tuple[Array, Cache]:
    """x (B, T, C), weight (C,) -> (B, T, C); `first` (B, C) is what came before x, where a text is read in parts."""
    before = np.concatenate((np.zeros_like(x[:, :1]) if first is None else first[:, None], x[:, :-1]), axis=1)
    return x + weight * before, {"before": before, "weight": weight}


def smear_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """dy (B, T, C) -> dx (B, T, C), dweight (C,)."""
    dx = dy.copy()
    dx[:, :-1] += cache["weight"] * dy[:, 1:]
    return dx, (dy * cache["before"]).sum(axis=(0, 1))


def sinusoidal_table(context_length: int, d_model: int) -> Array:
    """(T, C) in float64: sines in the first half of the channels, cosines in the second."""
    frequency = 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)  # (C/2,)
    angle = np.arange(context_length)[:, None] * frequency  # (T, C/2)
    return np.concatenate((np.sin(angle), np.cos(angle)), axis=-1) * (INIT_STD * math.sqrt(2))
