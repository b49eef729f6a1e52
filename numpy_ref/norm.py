"""LayerNorm and RMSNorm: every token's vector is brought to a root mean square of 1, then scaled by learned weights.

LayerNorm (arXiv:1607.06450), over the C channels of one token:

    m = mean(x),  r = 1 / sqrt(mean((x - m)^2) + eps),  h = (x - m) r,  y = h w + b

Backward. dw = sum over tokens of dy h, db = sum of dy, and with g = dy w (which is dL/dh):

    dL/dx_i = sum_j g_j dh_j/dx_i,   dh_j/dx_i = r (delta_ij - 1/C) + (x_j - m) dr/dx_i

The derivative of the variance by x_i is 2 (x_i - m) / C. (m depends on x_i, too, but this contributes nothing, since the
deviations sum to 0.) So dr/dx_i = -r^3 (x_i - m) / C = -r^2 h_i / C. Collecting the terms gives

    dx = r (g - mean(g) - h mean(g h))

In words: shifting all channels, or scaling all of them, does not change h, so the gradient has no component along these
two directions.

RMSNorm (arXiv:1910.07467) leaves out the mean: r = 1 / sqrt(mean(x^2) + eps), h = x r, y = h w, and
dx = r (g - h mean(g h)). QK-norm (`multihead.py`) is RMSNorm without a weight, or with a weight of D numbers that all heads
share.

Cost: about 8 FLOPs per number and two passes over memory. eps = 1e-5 keeps 1 / sqrt finite for a row of zeros. The variance is
computed from the deviations, not as mean(x^2) - mean(x)^2. In float32, this difference loses all digits and can become negative
if the mean is a few thousand times the standard deviation. On an FPGA, a norm needs two adder trees over C numbers, one
reciprocal square root of v = var + eps per token (a table and one Newton step r <- r (3 - v r^2) / 2), and a multiplier.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache

EPS = 1e-5


def row_dot(a: Array, b: Array) -> Array:
    """Compute the dot product of each pair of rows without an array of products: (..., C), (..., C) -> (..., 1)."""
    dots: Array = np.einsum("...c,...c->...", a, b)
    return dots[..., None]


def layernorm_forward(x: Array, weight: Array, bias: Array | None = None, eps: float = EPS) -> tuple[Array, Cache]:
    """Compute y = w (x - mean(x)) / sqrt(var(x) + eps) + b over the last axis.

    x (..., C), weight (C,), bias (C,) -> y (..., C).
    """
    h = x - x.mean(axis=-1, keepdims=True)  # (..., C)
    r = 1 / np.sqrt(row_dot(h, h) / x.shape[-1] + eps)  # (..., 1)
    h *= r
    y = h * weight
    if bias is not None:
        y += bias
    return y, {"x": x, "h": h, "r": r, "weight": weight, "bias": bias}


def layernorm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Compute the gradients of `layernorm_forward`: dx = r (g - mean(g) - h mean(g h)) with g = w dy.

    r = 1 / sqrt(var(x) + eps), and h = r (x - mean(x)) is the output without weight and bias.

    dy (..., C) -> dx (..., C), dweight (C,), dbias (C,) or None.
    """
    h, r = cache["h"], cache["r"]  # (..., C), (..., 1)
    C = h.shape[-1]
    dweight = np.einsum("nc,nc->c", dy.reshape(-1, C), h.reshape(-1, C))
    dbias = None if cache["bias"] is None else dy.reshape(-1, C).sum(axis=0)
    dx = dy * cache["weight"]  # g
    along = row_dot(dx, h) / C
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= h * along
    dx *= r
    return dx, dweight, dbias


def rmsnorm_forward(x: Array, weight: Array | None = None, eps: float = EPS) -> tuple[Array, Cache]:
    """Compute y = w x / sqrt(mean(x^2) + eps) over the last axis; without a weight, w = 1.

    x (..., C), weight (C,) -> y (..., C).
    """
    r = 1 / np.sqrt(row_dot(x, x) / x.shape[-1] + eps)  # (..., 1)
    h = x * r
    y = h if weight is None else h * weight
    return y, {"x": x, "h": h, "r": r, "weight": weight}


def rmsnorm_backward(dy: Array, cache: Cache) -> tuple[Array, Array | None]:
    """Compute the gradients of `rmsnorm_forward`: dx = r (g - h mean(g h)) with g = w dy.

    r = 1 / sqrt(mean(x^2) + eps), and h = r x is the output without the weight.

    dy (..., C) -> dx (..., C), dweight (C,) or None.
    """
    h, r, weight = cache["h"], cache["r"], cache["weight"]  # (..., C), (..., 1), (C,) or None
    C = h.shape[-1]
    dweight = None if weight is None else np.einsum("nc,nc->c", dy.reshape(-1, C), h.reshape(-1, C))
    g = dy if weight is None else dy * weight
    dx = g - h * (row_dot(g, h) / C)
    dx *= r
    return dx, dweight
