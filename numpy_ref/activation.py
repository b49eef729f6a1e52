"""Activations: without them, two linear layers would compute no more than one linear layer.

An activation acts on every number separately, so its backward pass is dx = dy f'(x). Only f' differs:

    relu    f = max(x, 0)                         f' = 1 where x > 0, else 0
    relu2   f = max(x, 0)^2                       f' = 2 max(x, 0)                       (Primer, arXiv:2109.08668)
    swish   f = x s(x),  s = 1 / (1 + e^-x)       f' = s + x s (1 - s)                   (arXiv:1710.05941)
    gelu    f = x P(x),  P the distribution function of the normal distribution,
                         P(x) = (1 + erf(x / sqrt 2)) / 2                                (arXiv:1606.08415)
                                                  f' = P(x) + x p(x),  p(x) = e^(-x^2 / 2) / sqrt(2 pi)
    gelu by tanh: the model's option "gelu" is this approximation; the exact form above is here only for comparison.
        P(x) is replaced by (1 + t) / 2 with t = tanh(u), u = sqrt(2 / pi) (x + 0.044715 x^3); then
        f' = (1 + t) / 2 + x (1 - t^2) / 2 * du/dx,  du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)

The derivative of s is s' = e^-x / (1 + e^-x)^2 = s (1 - s); the derivative of t = tanh(u) by u is 1 - t^2.

The sigmoid s is computed as (1 + tanh(x / 2)) / 2, which is the same function. The form 1 / (1 + e^-x) overflows in IEEE 754
float32 at x = -89: e^89 is inf, and NumPy warns, although 1 / inf is the right result, 0. tanh does not overflow. In hardware,
swish and gelu are tables of about 256 entries with linear interpolation; relu needs only the sign bit, relu2 also a multiplier.

Cost: a few FLOPs per number, but at least 8 bytes of memory traffic (one float32 read, one written), so memory is the limit.
Therefore the numbers are processed in blocks of `BLOCK_NUMBERS`, which fit the cache, and the results are written into arrays
that already exist. Forward also computes and writes f', so that backward is a single product. The docstring of each function
that computes f and f' shows the same computation in plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from numpy_ref.linear import Array, Cache

BLOCK_NUMBERS = 1 << 14  # 64 kB of float32, so that x, f and f' stay in the second-level cache
_GELU = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _relu(x: Array, f: Array, slope: Array) -> None:
    """Write ReLU(x) into f, and its derivative into slope.

    In plain NumPy:

        f = np.maximum(x, 0)
        slope = x > 0
    """
    np.maximum(x, 0, out=f)
    np.greater(x, 0, out=slope, casting="unsafe")


def _relu2(x: Array, f: Array, slope: Array) -> None:
    """Write ReLU(x)^2 into f, and its derivative into slope.

    In plain NumPy:

        f = np.maximum(x, 0) ** 2
        slope = 2 * np.maximum(x, 0)
    """
    np.maximum(x, 0, out=slope)
    np.multiply(slope, slope, out=f)
    slope *= 2


def _swish(x: Array, f: Array, slope: Array) -> None:
    """Write swish(x) into f, and its derivative into slope.

    In plain NumPy, with s = 1 / (1 + np.exp(-x)):

        f = x * s
        slope = s + x * s * (1 - s)
    """
    sigmoid = np.tanh(x * 0.5)
    sigmoid += 1
    sigmoid *= 0.5
    np.multiply(x, sigmoid, out=f)
    np.multiply(f, 1 - sigmoid, out=slope)  # x s (1 - s)
    slope += sigmoid


def _gelu(x: Array, f: Array, slope: Array) -> None:
    """Write GELU(x), computed by tanh, into f, and its derivative into slope.

    In plain NumPy, with t = np.tanh(_GELU * (x + _CUBIC * x**3)), _GELU = sqrt(2 / pi) and _CUBIC = 0.044715:

        f = x * (1 + t) / 2
        slope = (1 + t) / 2 + x * (1 - t**2) / 2 * _GELU * (1 + 3 * _CUBIC * x**2)
    """
    square = x * x
    u = square * _CUBIC
    u += 1
    u *= x
    t = np.tanh(u * _GELU)
    square *= 3 * _CUBIC * _GELU
    square += _GELU  # du/dx
    np.multiply(t, t, out=slope)
    np.subtract(1, slope, out=slope)
    slope *= square  # (1 - t^2) du/dx
    slope *= x
    t += 1
    slope += t
    slope *= 0.5
    np.multiply(x, t, out=f)
    f *= 0.5


def _gelu_exact(x: Array, f: Array, slope: Array) -> None:
    """Write GELU(x), computed by erf, into f, and its derivative into slope.

    In plain NumPy, with P = (1 + erf(x / sqrt(2))) / 2:

        f = x * P
        slope = P + x * np.exp(-x**2 / 2) / sqrt(2 * pi)
    """
    normal = erf(x * math.sqrt(0.5))
    normal += 1
    normal *= 0.5  # P(x)
    np.multiply(x, normal, out=f)
    np.multiply(x, np.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)), out=slope)  # x p(x)
    slope += normal


def erf(x: Array) -> Array:
    """Compute the error function, 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x, to the precision of x's dtype.

    Uses the series erf(x) = 2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (1 * 3 * 5 ... (2n+1)) with n = 0, 1, 2, ... (DLMF
    7.6.2). Unlike those of the Taylor series, its terms all have the same sign, so nothing cancels. For |x| > 6, erf is 1 or -1
    in float64, so x is clipped first.
    """
    clipped = np.clip(x, -6, 6)
    square, term = clipped * clipped, clipped.copy()
    total, n = clipped.copy(), 0
    while n < 200 and np.any(np.abs(term) > np.finfo(x.dtype).eps * np.abs(total)):
        n += 1
        term = term * (square * (2 / (2 * n + 1)))
        total = total + term
    result: Array = total * np.exp(-square) * (2 / math.sqrt(math.pi))
    return result


ACTIVATIONS: dict[str, Callable[[Array, Array, Array], None]] = {
    "gelu": _gelu,
    "relu": _relu,
    "swish": _swish,
    "relu2": _relu2,
    "gelu_exact": _gelu_exact,  # for comparison with the tanh form; not an option of the model
}


def activation_forward(x: Array, kind: str) -> tuple[Array, Cache]:
    """Apply the activation `kind` to every number of x; the shape stays the same.

    `kind` is "gelu" (by tanh), "relu", "swish", "relu2" (ReLU squared) or "gelu_exact" (by erf).
    """
    x = np.ascontiguousarray(x)
    f, slope = np.empty_like(x), np.empty_like(x)
    flat_x, flat_f, flat_slope = x.reshape(-1), f.reshape(-1), slope.reshape(-1)
    for start in range(0, x.size, BLOCK_NUMBERS):
        block = slice(start, start + BLOCK_NUMBERS)
        ACTIVATIONS[kind](flat_x[block], flat_f[block], flat_slope[block])
    return f, {"slope": slope}


def activation_backward(dy: Array, cache: Cache) -> tuple[Array]:
    """Compute dx = dy f'(x); dy and dx have the shape of x."""
    return (dy * cache["slope"],)
