"""Softmax and cross-entropy: from scores to probabilities, and from probabilities to a loss.

Softmax. p_j = e^(z_j) / sum_k e^(z_k). Subtracting any c from all z changes nothing, since e^-c cancels. With c = max(z), no
exponent is positive, the sum is at least 1, and a term that underflows to 0 was below 1e-38 of the largest term. Without this
subtraction, IEEE 754 float32 overflows at z = 89: inf / inf = NaN. For the loss L, with dp = dL/dp and dz = dL/dz:

    d(p_j)/d(z_i) = p_j (delta_ij - p_i)    so    dz_i = sum_j dp_j d(p_j)/d(z_i) = p_i (dp_i - sum_j dp_j p_j)

If a whole row is masked (all z = -inf), its maximum is -inf, and -inf - -inf = NaN. Such a row has nothing to attend to,
so its result is all zeros, and so is its gradient.

Cross-entropy of the target y, in nats: l = -log p_y = logsumexp(z) - z_y, with logsumexp(z) = c + log sum e^(z - c).
It is never computed as log(softmax), because a p that underflowed would give -inf. Its gradient is simple:

    dl/dz_j = p_j - [j = y]

that is, the probabilities, minus one at the target. A target of -100 carries no loss and no gradient.

The loss is the sum over the targets divided by their number. For a micro-batch, the divisor is the number of targets of the
whole batch (the argument `denominator`). Then the gradients of the micro-batches add up to the gradient of the whole batch.

Cost: about 6 FLOPs per logit. With N rows and V tokens, each pass over the logits moves 4 N V bytes, so memory is the limit,
and the rows are processed in blocks that fit the cache. On an FPGA, e^z is computed as 2^(z / log 2): the integer part of this
exponent is a shift, and a table gives the power for its fraction. One pass over z is enough with a running maximum: whenever
the maximum grows, the sum so far is rescaled.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache

IGNORE = -100
BLOCK_LOGITS = 1 << 18  # 1 MB of float32


def softmax(z: Array) -> Array:
    """Replace z (..., V) in place by its softmax, and return it: each row sums to 1, or is 0 where the whole row is -inf.

    In plain NumPy, for finite rows: p = np.exp(z - z.max(axis=-1, keepdims=True)); p / p.sum(axis=-1, keepdims=True).
    """
    top = z.max(axis=-1, keepdims=True)  # (..., 1)
    z -= np.where(np.isfinite(top), top, z.dtype.type(0))
    np.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)  # (..., 1)
    total[total == 0] = 1
    z *= 1 / total
    return z


def softmax_forward(z: Array) -> tuple[Array, Cache]:
    """Compute the softmax of z (..., V) without changing z."""
    p = softmax(z.copy())
    return p, {"p": p}


def softmax_backward(dp: Array, cache: Cache) -> tuple[Array]:
    """Compute dz = p (dp - sum_j dp_j p_j): dp (..., V) -> dz (..., V)."""
    p = cache["p"]
    return (p * (dp - (dp * p).sum(axis=-1, keepdims=True)),)


def cross_entropy_forward(logits: Array, targets: Array, denominator: int | None = None) -> tuple[Array, Cache]:
    """Compute the mean cross-entropy, in nats per target: logits (..., V), targets (...) -> a scalar, of logits' dtype.

    The sum over the targets is divided by `denominator` (None: by the number of targets). Targets of -100 are not counted; the
    loss of a batch without any target is 0.
    """
    V = logits.shape[-1]
    z, y = logits.reshape(-1, V), targets.reshape(-1)  # (N, V), (N,)
    count = max(1, int((y != IGNORE).sum())) if denominator is None else denominator
    p, losses = np.empty_like(z), np.empty(len(z), dtype=z.dtype)  # (N, V), (N,)
    rows = max(1, BLOCK_LOGITS // V)
    for start in range(0, len(z), rows):
        block = slice(start, start + rows)
        losses[block] = _block_losses(z[block], y[block], p[block])
    loss = (losses.sum() / count).astype(logits.dtype)
    return loss, {"p": p, "targets": y, "count": count, "shape": logits.shape}


def _block_losses(z: Array, y: Array, p: Array) -> Array:
    """Fill p (n, V) with the softmax of z (n, V) and return the losses (n,) of the targets y (n,).

    In plain NumPy: p = softmax(z); losses = logsumexp(z) - z[np.arange(n), y], or 0 where y is -100.
    """
    top = z.max(axis=-1, keepdims=True)  # (n, 1)
    np.subtract(z, top, out=p)
    target_index = np.arange(len(y)), np.where(y == IGNORE, 0, y)
    target = p[target_index]  # (n,), z_y - max(z)
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)  # (n, 1)
    p *= 1 / total
    return np.where(y == IGNORE, 0, np.log(total[:, 0]) - target)


def cross_entropy_backward(dloss: Array | float, cache: Cache) -> tuple[Array]:
    """Compute the gradient of `cross_entropy_forward`; dloss is a scalar, and dlogits has the shape (..., V).

        dlogits = dloss (p - onehot(target)) / count,  with p = softmax(logits)

    `count` is the number by which `cross_entropy_forward` divided the sum of the losses. dlogits is 0 where the target is -100.
    """
    p, y = cache["p"], cache["targets"]
    scored = y != IGNORE
    scale = np.asarray(dloss / cache["count"], dtype=p.dtype)
    dz = p * (scored * scale)[:, None]
    dz[scored, y[scored]] -= scale
    return (dz.reshape(cache["shape"]),)
