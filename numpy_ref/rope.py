"""Rotary positions (RoFormer, arXiv:2104.09864): a position in the text is an angle.

The D channels of a query or key are taken as D/2 pairs (a, b) = (x_i, x_(i + D/2)), points in a plane. At position t
the pair i is rotated by the angle t f_i with f_i = base^(-2i/D), where the base is usually 10000:

    a' = a cos - b sin,    b' = a sin + b cos

Let q have position s and k position t. The dot product of the two rotated vectors is the same as if only k were rotated, by the
angles (t - s) f_i. So scores depend on distances, never on absolute positions. There are no parameters.

Backward. The rotation is a linear map by the matrix R = [[cos, -sin], [sin, cos]], so the gradient is multiplied by R^T,
which rotates the other way: da = da' cos + db' sin, db = db' cos - da' sin.

Cost: 3 FLOPs per number. cos and sin come from one table. It is computed in float64, because in float32 t f_i at t = 100,000 is
already wrong by 0.004 rad. An FPGA needs either a table or CORDIC, which rotates by shifts and additions alone.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache

BASE = 10_000.0


def rope_tables(context_length: int, d_head: int, base: float = BASE) -> tuple[Array, Array]:
    """Compute the cosine and sine of the angle of each position and pair of channels, in float64: (T, D/2) each.

    T is `context_length` and D is `d_head`.
    """
    frequency = base ** (-np.arange(0, d_head, 2) / d_head)  # (D/2,)
    angle = np.arange(context_length)[:, None] * frequency  # (T, D/2)
    return np.cos(angle), np.sin(angle)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each pair of channels of x (B, heads, T, D), with cos and sin (T, D/2).

    In plain NumPy, with a and b the first and the second half of the channels of x:

        np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=-1)
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]  # (B, heads, T, D/2) each
    out = np.empty_like(x)
    np.multiply(a, cos, out=out[..., :half])
    out[..., :half] -= b * sin
    np.multiply(a, sin, out=out[..., half:])
    out[..., half:] += b * cos
    return out


def rope_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, Cache]:
    """Rotate each pair of channels by the angle of its position: x (B, heads, T, D) -> (B, heads, T, D).

    cos and sin (T, D/2) are the rows of `rope_tables` for the positions of x, in any float dtype.
    """
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return _rotate(x, cos, sin), {"cos": cos, "sin": sin}


def rope_backward(dy: Array, cache: Cache) -> tuple[Array, None, None]:
    """Rotate dy (B, heads, T, D) by the negative of the angles of the forward pass.

    The tables of sines and cosines are constants, so their gradients are None.
    """
    return _rotate(dy, cache["cos"], -cache["sin"]), None, None
