"""Embeddings: from token ids to vectors, and how a token learns its position.

Token embedding. y_n = W[id_n]: an id selects a row of a table W (V, C). The matrix product onehot(id) W gives the same rows, so
the gradient is that of a linear layer, dW = onehot(id)^T dy: row v of dW is the sum of dy over all positions that hold token v.
Ids are integers, so they have no gradient.

Learned positions are a second table (T, C). Its row t is added to the token at position t in every sequence, so the gradient of
row t is the sum of dy at position t over the batch.

Sinusoidal positions (arXiv:1706.03762, section 3.5) are a fixed table of the same shape: sin and cos of t 10000^(-2i/C). The
initial token embeddings have a root mean square of 0.02, and a sine has 1 / sqrt 2. The table is multiplied by 0.02 sqrt 2, so
that both are equally large.

Smearing. y_t = x_t + w * x_{t-1}, channel by channel, with a learned w (C,) that starts at 0; x_{-1} is 0. A token's
vector then also holds the token before it, so that a single attention layer can look for "what followed this word
earlier" (an induction head, arXiv:2209.11895); without smearing this takes two layers. x_t takes part in y_t and in
y_{t+1}, so dx_t = dy_t + w * dy_{t+1}, and dw is the sum of dy_t * x_{t-1}.

Cost: no FLOPs forward, N C additions backward. Forward only moves data, in rows of 4 C bytes. Backward sorts the rows of dy
by id and sums each group at once, because adding the rows one by one (`np.add.at`) is slow. On an FPGA, an embedding is a
lookup in memory, nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from numpy_ref.linear import Array, Cache

INIT_STD = 0.02


def embedding_forward(idx: Array, weight: Array) -> tuple[Array, Cache]:
    """Return the row of each token id: idx (...) integers, weight (V, C) -> (..., C).

    Raises IndexError for an id outside of the table; NumPy alone would accept negative ids.
    """
    if idx.size and (idx.min() < 0 or idx.max() >= len(weight)):
        raise IndexError(f"token ids {idx.min()} to {idx.max()} do not fit a vocabulary of {len(weight)}")
    return weight[idx], {"idx": idx, "weight": weight}


def embedding_backward(dy: Array, cache: Cache) -> tuple[None, Array]:
    """Sum the gradients of all positions that hold the same token.

    dy (..., C) -> None (ids have no gradient), dweight (V, C).
    """
    weight, ids = cache["weight"], cache["idx"].reshape(-1)
    dweight = np.zeros_like(weight)
    if ids.size:
        order = np.argsort(ids, kind="stable")  # (N,)
        present, first = np.unique(ids[order], return_index=True)  # the ids, and where the rows of each begin
        dweight[present] = np.add.reduceat(dy.reshape(-1, dy.shape[-1])[order], first, axis=0)
    return None, dweight


def position_forward(x: Array, table: Array, start: int = 0) -> tuple[Array, Cache]:
    """Add the rows `start`, `start` + 1, ... of `table` (context, C) to x (B, T, C)."""
    rows = slice(start, start + x.shape[1])
    return x + table[rows], {"rows": rows, "table": table}


def position_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """Compute the gradients of `position_forward`: dy (B, T, C) -> dx (B, T, C), dtable (context, C)."""
    dtable = np.zeros_like(cache["table"])
    dtable[cache["rows"]] = dy.sum(axis=0)
    return dy, dtable


def smear_forward(x: Array, weight: Array, first: Array | None = None) -> tuple[Array, Cache]:
    """Add `weight` times the vector of the previous token: x (B, T, C), weight (C,) -> (B, T, C).

    `first` (B, C) is the vector of the token before the first token of x, if a text is read in parts; None: x is the beginning
    of the text.
    """
    before = np.concatenate(
        (np.zeros_like(x[:, :1]) if first is None else first[:, None], x[:, :-1]), axis=1
    )  # (B, T, C)
    return x + weight * before, {"before": before, "weight": weight}


def smear_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """Compute the gradients of `smear_forward`: dy (B, T, C) -> dx (B, T, C), dweight (C,)."""
    dx = dy.copy()
    dx[:, :-1] += cache["weight"] * dy[:, 1:]
    return dx, (dy * cache["before"]).sum(axis=(0, 1))


def sinusoidal_table(context_length: int, d_model: int) -> Array:
    """Compute the table of sinusoidal positions in float64: (T, C), with T = context_length and C = d_model.

    The first half of the channels has the sines, the second half the cosines. All are multiplied by 0.02 sqrt(2).
    """
    frequency = 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)  # (C/2,)
    angle = np.arange(context_length)[:, None] * frequency  # (T, C/2)
    return np.concatenate((np.sin(angle), np.cos(angle)), axis=-1) * (INIT_STD * math.sqrt(2))
