"""Scaled dot-product attention: each position takes a weighted mean of the values at earlier positions.

    Z = q @ k^T / sqrt(D)      (T, S)   how well query t matches key s
    P = softmax(Z + mask)      (T, S)   mask: 0 where t may attend to s, -inf where s lies in the future
    O = P @ v                  (T, D)

The shape (T, S) stands for T queries and S keys. @ is the product of matrices, and * below multiplies entry by entry.

If q and k have unit variance, their dot product, a sum of D products, has variance D. The factor 1 / sqrt(D) brings it back to
1. Without the factor, softmax would be saturated, and its gradient would vanish, before the first step. A masked
score is -inf, not -1e9: e^-inf is exactly 0, so the future has no influence at all, not even in the last bit.

Backward, from dO; rowsum adds up each row of a matrix:

    dv = P^T @ dO,  dP = dO @ v^T                        from O = P @ v
    dZ = P * (dP - rowsum(dP * P))                       from softmax (`loss.py`); at masked positions P = 0, hence dZ = 0
    dq = dZ @ k / sqrt(D),  dk = dZ^T @ q / sqrt(D)      from Z = q @ k^T / sqrt(D)

FlashAttention's identity (arXiv:2205.14135, B.2) is rowsum(dP * P) = rowsum(dO * O). For one row, with . for the dot product,
it reads sum_s (dO . v_s) P_s = dO . (sum_s P_s v_s) = dO . O. When dP, with the numbers dO . v_s, is known, the left side takes
S further products per row and the right side D. So the identity saves one pass over the (T, S) numbers of P. It also holds with
dropout on P.

Grouped heads (arXiv:2305.13245): G = H / K query heads share one key/value head. Axes are split as (B, K, G, ...) and
keys broadcast over G; the gradient of a shared input is the sum over its uses, so dk and dv are summed over G.

Cost: 4 T S D FLOPs per head forward, 8 T S D backward. Causality makes half of them unnecessary. So queries are taken in
blocks, and a block is multiplied only by the keys up to its last query. P takes 4 T S bytes per head in float32. FlashAttention
does not need this memory, because it never stores P. In fixed point, the scores need a wide accumulator and one scale per row.
Each number of P lies in [0, 1], so 8 unsigned bits are enough for it.
"""

from __future__ import annotations

import math

import numpy as np

from numpy_ref.dropout import dropout_backward, dropout_forward
from numpy_ref.linear import Array, Cache
from numpy_ref.loss import softmax
from numpy_ref.norm import row_dot

BLOCK_QUERIES = 128


def attention_forward(
    q: Array, k: Array, v: Array, mask: Array | None = None, p_drop: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[Array, Cache]:
    """Compute softmax(q k^T / sqrt(D)) v over the keys to which each query may attend.

    q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). H query heads share K key/value heads. There are T queries and S keys.
    `mask` is True where a query may attend to a key: (T, S), or (B, 1, 1, T, S) if each sequence has its own mask. Without a
    mask, query t attends to its own key, which is key S - T + t, and to all keys before it. The output of a query whose keys
    are all masked is 0. `p_drop` is the dropout probability of the attention weights, and `rng` draws the dropout mask; None:
    no dropout.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    q = (q * (1 / math.sqrt(D))).reshape(B, K, H // K, T, D)
    out = np.empty((B, T, H, D), dtype=q.dtype).transpose(0, 2, 1, 3)  # (B, H, T, D), the heads of a token contiguous
    grouped = out.reshape(B, K, H // K, T, D)
    blocks = []
    for start in range(0, T, BLOCK_QUERIES):
        rows = slice(start, min(T, start + BLOCK_QUERIES))
        end = S - T + rows.stop if mask is None else S
        scores = q[..., rows, :] @ k[:, :, None, :end].swapaxes(-1, -2)  # (B, K, G, t, end)
        if mask is None:
            scores[..., S - T + start :] += _causal_mask(rows.stop - start, q.dtype)
        else:
            scores = np.where(mask[..., rows, :], scores, q.dtype.type(-np.inf))
        weights = softmax(scores)  # P, (B, K, G, t, end)
        dropped, drop = dropout_forward(weights, p_drop, rng)
        np.matmul(dropped, v[:, :, None, :end], out=grouped[..., rows, :])  # (B, K, G, t, D)
        blocks.append({"rows": rows, "weights": weights, "drop": drop})
    return out, {"q": q, "k": k, "v": v, "out": out, "blocks": blocks}


def _causal_mask(n: int, dtype: np.dtype) -> Array:
    """Return a mask (n, n) to add to the scores: -inf above the diagonal, where a key lies in the future, and 0 elsewhere."""
    return np.triu(np.full((n, n), -np.inf, dtype=dtype), 1)


def window_mask(T: int, S: int, window: int) -> Array:
    """Return a mask (T, S) that is True where a query may attend to a key.

    The queries belong to the last T of S tokens, so that query t and key S - T + t belong to the same token. Query t may attend
    to this key and to the `window` - 1 keys before it.
    """
    behind = np.arange(S - T, S)[:, None] - np.arange(S)
    return (behind >= 0) & (behind < window)


def attention_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array, None, None, None]:
    """Compute the gradients of `attention_forward`: dout (B, H, T, D) -> dq (B, H, T, D), dk and dv (B, K, S, D).

    H query heads share K key/value heads. There are T queries and S keys. `cache` is the cache that `attention_forward`
    returned. The last three results are None, because `mask`, `p_drop` and `rng` have no gradient.
    """
    q, k, v = cache["q"], cache["k"], cache["v"]  # (B, K, G, T, D), (B, K, S, D) twice
    B, K, G, T, D = q.shape
    H = K * G
    dots = row_dot(dout, cache["out"]).reshape(B, K, G, T, 1)  # rowsum(dO * O)
    dout = dout.reshape(B, K, G, T, D)
    dq = np.empty((B, T, H, D), dtype=q.dtype).transpose(0, 2, 1, 3)
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    for block in cache["blocks"]:
        rows, weights, drop = block["rows"], block["weights"], block["drop"]
        end = weights.shape[-1]
        used = weights if drop["mask"] is None else weights * drop["mask"]
        do = dout[..., rows, :]  # (B, K, G, t, D)
        dv[:, :, :end] += (used.swapaxes(-1, -2) @ do).sum(axis=2)
        ds = do @ v[:, :, None, :end].swapaxes(-1, -2)  # dP, (B, K, G, t, end)
        ds, _, _ = dropout_backward(ds, drop)
        ds -= dots[..., rows, :]
        ds *= weights
        np.matmul(ds, k[:, :, None, :end], out=dq.reshape(B, K, G, T, D)[..., rows, :])
        dk[:, :, :end] += (ds.swapaxes(-1, -2) @ q[..., rows, :]).sum(axis=2)  # q already holds 1 / sqrt(D)
    dq *= 1 / math.sqrt(D)
    return dq, dk, dv, None, None, None


def attention_weights(cache: Cache) -> Array:
    """Return the weights (B, H, T, S), before dropout, that each of T queries gave to each of S keys; 0 for masked keys.

    `cache` is the cache that `attention_forward` returns.
    """
    B, K, G, T, _ = cache["q"].shape
    weights = np.zeros((B, K * G, T, cache["k"].shape[2]), dtype=cache["q"].dtype)
    for block in cache["blocks"]:
        part = block["weights"]
        weights[:, :, block["rows"], : part.shape[-1]] = part.reshape(B, K * G, *part.shape[-2:])
    return weights
