"""Chapter 5. Softmax and cross-entropy: scores become probabilities, and a surprise becomes a number.

Softmax. p_j = e^(z_j) / sum_k e^(z_k). Subtracting any c from all z changes nothing, since e^-c cancels; c = max(z)
makes the largest exponent 0. Without it, IEEE 754 float32 overflows at z = 89: inf / inf = NaN. With it, no exponent is
positive, the sum is at least 1, and what underflows to 0 was below 1e-38 of the largest anyway.

    dp_j/dz_i = p_j (delta_ij - p_i)    so    dz = p (dp - sum_j dp_j p_j)

A row in which everything is masked (z = -inf throughout) has no maximum to subtract, and -inf - -inf = NaN. There is
nothing to attend to, so its answer is all zeros, and so is its gradient.

Cross-entropy in nats of the target y: l = -log p_y = logsumexp(z) - z_y, with logsumexp(z) = c + log sum e^(z - c).
Never as log(softmax): a p that underflowed would give -inf. Its gradient is the reason why everyone uses it:

    dl/dz_j = p_j - [j = y]

The probabilities, minus one at the truth. A target of -100 carries no loss and no gradient. The loss is the sum over
the targets divided by their number, so gradients of parts of a batch add up to that of the whole if all parts divide by
the number of targets of the whole: `denominator`.

Cost: about 6 FLOPs per logit and, at N rows and V words, 4 N V bytes again and again: memory-bound, hence done in row
blocks that fit the cache. On an FPGA: e^z = 2^(z / log 2) is a shift by the integer part and a table for the fraction;
a running maximum (rescale the sum when it grows) makes it one pass.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache

IGNORE = -100
BLOCK = 1 << 18  # logits at a time: 1 MB of float32


def softmax(z: Array) -> Array:
    """(..., V) -> (..., V) in place of z: each row sums to 1, or is 0 where the whole row is -inf."""
    top = z.max(axis=-1, keepdims=True)
    z -= np.where(np.isfinite(top), top, z.dtype.type(0))
    np.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)
    total[total == 0] = 1
    z *= 1 / total
    return z


def softmax_forward(z: Array) -> tuple[Array, Cache]:
    """(..., V) -> probabilities (..., V)."""
    p = softmax(z.copy())
    return p, {"p": p}


def softmax_backward(dp: Array, cache: Cache) -> tuple[Array]:
    p = cache["p"]
    return (p * (dp - (dp * p).sum(axis=-1, keepdims=True)),)


def cross_entropy_forward(logits: Array, targets: Array, denominator: int | None = None) -> tuple[Array, Cache]:
    """logits (..., V), targets (...) -> the mean loss in nats, () of logits' dtype; 0 where there is no target."""
    V = logits.shape[-1]
    z, y = logits.reshape(-1, V), targets.reshape(-1)
    count = max(1, int((y != IGNORE).sum())) if denominator is None else denominator
    p, losses = np.empty_like(z), np.empty(len(z), dtype=z.dtype)
    rows = max(1, BLOCK // V)
    for start in range(0, len(z), rows):
        block = slice(start, start + rows)
        losses[block] = _block(z[block], y[block], p[block])
    loss = (losses.sum() / count).astype(logits.dtype)
    return loss, {"p": p, "targets": y, "count": count, "shape": logits.shape}


def _block(z: Array, y: Array, p: Array) -> Array:
    """Fills p (n, V) with the probabilities and returns the losses (n,)."""
    top = z.max(axis=-1, keepdims=True)
    np.subtract(z, top, out=p)
    place = np.arange(len(y)), np.where(y == IGNORE, 0, y)
    target = p[place]
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    p *= 1 / total
    return np.where(y == IGNORE, 0, np.log(total[:, 0]) - target)


def cross_entropy_backward(dloss: Array | float, cache: Cache) -> tuple[Array]:
    """dL/dloss () -> dlogits (..., V)."""
    p, y = cache["p"], cache["targets"]
    scored = y != IGNORE
    scale = np.asarray(dloss / cache["count"], dtype=p.dtype)
    dz = p * (scored * scale)[:, None]
    dz[scored, y[scored]] -= scale
    return (dz.reshape(cache["shape"]),)
