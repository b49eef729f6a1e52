"""Chapter 6. Rotary positions (RoFormer, arXiv:2104.09864): a place in the text is an angle.

The D channels of a query or key are taken as D/2 pairs (a, b) = (x_i, x_(i + D/2)), points in a plane. At position t
the pair i is turned by the angle t f_i, f_i = 10000^(-2i/D):

    a' = a cos - b sin,    b' = a sin + b cos

Turning q by s and k by t, and then taking their dot product, is the same as turning only by t - s: scores see
distances, never absolute places, and no parameter is spent.

Backward. The turn is a linear map by the matrix R = [[cos, -sin], [sin, cos]], so the gradient is multiplied by R^T,
which turns the other way: da = da' cos + db' sin, db = db' cos - da' sin.

Cost: 3 FLOPs per number. cos and sin come from one table, computed in float64: in float32, t f_i at t = 100,000 is
already wrong by 0.004 rad. On an FPGA: a table, or CORDIC, which turns by shifts and additions alone.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache

BASE = 10_000.0


def rope_tables(context_length: int, d_head: int) -> tuple[Array, Array]:
    """cos and sin, (T, D/2) each, in float64."""
    frequency = BASE ** (-np.arange(0, d_head, 2) / d_head)
    angle = np.arange(context_length)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.multiply(a, cos, out=out[..., :half])
    out[..., :half] -= b * sin
    np.multiply(a, sin, out=out[..., half:])
    out[..., half:] += b * cos
    return out


def rope_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, Cache]:
    """x (B, heads, T, D); cos, sin (T, D/2) in any float dtype -> (B, heads, T, D)."""
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return _turn(x, cos, sin), {"cos": cos, "sin": sin}


def rope_backward(dy: Array, cache: Cache) -> tuple[Array, None, None]:
    """dy (B, heads, T, D) -> dx (B, heads, T, D); the tables are constants."""
    return _turn(dy, cache["cos"], -cache["sin"]), None, None
