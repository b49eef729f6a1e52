"""The linear layer: y = x W^T + b. Nine tenths of a GPT's arithmetic happen here.

Forward. Row n of the input gives row n of the output, y_nj = sum_i x_ni W_ji + b_j.

Backward. Let L be the loss and dy = dL/dy, of y's shape. The chain rule for x, W and b:

    dL/dx_ni = sum_j (dL/dy_nj) (d(y_nj)/dx_ni) = sum_j dy_nj W_ji      so  dx = dy W
    dL/dW_ji = sum_n dy_nj x_ni                                         so  dW = dy^T x
    dL/db_j  = sum_n dy_nj                                              so  db = sum over the rows of dy

A weight is used once for every row, so its gradient is a sum over all rows: that is the whole rule for shared parameters, here
and in every file. Every backward is two matrix products of the forward's size, hence the rule of thumb that a training step
costs as much as three forward passes.

Cost, for N rows, I input and O output channels: 2 N I O FLOPs forward, 4 N I O backward; 4 (N I + I O + N O) bytes in float32.
One number fetched from memory serves hundreds of multiplications, so this is the one operation that is limited by the
multipliers, not by memory. All leading axes are folded into one before the product, because BLAS is faster with one large
product than with B small ones.

IEEE 754: a sum of I products in float32 carries a relative error of about sqrt(I) eps, eps = 2^-24, as long as nothing
cancels. In fixed point (an FPGA): 8-bit x and W multiply into 16 bits and a sum of 2^k of them needs 16 + k bits; a
32-bit accumulator thus holds 65,536 terms without any rounding at all, and only the result is rounded back to 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
Cache = dict[str, Any]
Params = dict[str, Array]  # weights, or their gradients, by name


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Cache]:
    """Compute y = x W^T + b.

    x (..., I), weight (O, I), bias (O,) -> y (..., O).
    """
    y = x.reshape(-1, x.shape[-1]) @ weight.T  # (N, I) @ (I, O) -> (N, O)
    if bias is not None:
        y += bias
    cache = {"x": x, "weight": weight, "bias": bias}
    return y.reshape(*x.shape[:-1], len(weight)), cache


def linear_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Compute the gradients of `linear_forward`: dx = dy W, dW = dy^T x, db = the sum of dy over its rows.

    dy (..., O) -> dx (..., I), dweight (O, I), dbias (O,) or None.
    """
    x, weight = cache["x"], cache["weight"]
    rows = dy.reshape(-1, dy.shape[-1])  # (N, O)
    dx = rows @ weight  # (N, O) @ (O, I) -> (N, I)
    dweight = rows.T @ x.reshape(-1, x.shape[-1])  # (O, N) @ (N, I) -> (O, I)
    dbias = None if cache["bias"] is None else rows.sum(axis=0)  # (O,)
    return dx.reshape(x.shape), dweight, dbias


def named_linear_forward(x: Array, params: Params, name: str) -> tuple[Array, Cache]:
    """Apply the linear layer `name`: x (..., I) -> (..., O).

    params: `name`.weight (O, I) and, where the layer has a bias, `name`.bias (O,).
    """
    return linear_forward(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def named_linear_backward(dy: Array, cache: Cache, name: str, grads: Params) -> Array:
    """Store the gradients of the linear layer `name` in `grads`; return dx (..., I) for dy (..., O)."""
    dx, grads[f"{name}.weight"], dbias = linear_backward(dy, cache)
    if dbias is not None:
        grads[f"{name}.bias"] = dbias
    return dx
