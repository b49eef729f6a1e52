"""Chapter 10. The MLP: each token for itself goes up to a wider space, through an activation, and down again.

    plain    h = f(x Wu^T),                      y = h Wd^T
    swiglu   h = swish(x Wg^T) * (x Wu^T),       y = h Wd^T          (arXiv:2002.05202)

Backward of the gated product h = a * u: da = dh * u, du = dh * a; then da goes through swish and Wg, du through Wu, and
x, used twice, gets the sum.

Cost: 2 N C F FLOPs per matrix, F = 4 C (two matrices) or about 8/3 C (three): the same 16 N C^2 forward. Two thirds of a
GPT's weights live here, so here is where 8-bit weights pay most on small hardware.
"""

from __future__ import annotations

from typing import assert_never

from numpy_ref.activation import activation_backward, activation_forward
from numpy_ref.config import Activation
from numpy_ref.linear import Array, Cache
from numpy_ref.multihead import Params, _project, _project_backward


def mlp_forward(x: Array, params: Params, activation: Activation) -> tuple[Array, Cache]:
    """x (B, T, C) -> (B, T, C). params: {up, down}.weight, gate.weight for swiglu, and .bias each or none."""
    cache: Cache = {}
    h, cache["up"] = _project(x, params, "up")  # (B, T, F)
    match activation:
        case "swiglu":
            gate, cache["gate"] = _project(x, params, "gate")
            a, cache["activation"] = activation_forward(gate, "swish")
            cache["product"] = {"a": a, "u": h}
            h = a * h
        case "gelu" | "relu" | "swish" | "relu2":
            h, cache["activation"] = activation_forward(h, activation)
        case _:
            assert_never(activation)
    y, cache["down"] = _project(h, params, "down")
    return y, cache


def mlp_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None]:
    """dy (B, T, C) -> dx (B, T, C), dparams."""
    grads: Params = {}
    dh = _project_backward(dy, cache["down"], "down", grads)
    if "gate" not in cache:
        (dh,) = activation_backward(dh, cache["activation"])
        return _project_backward(dh, cache["up"], "up", grads), grads, None
    (dgate,) = activation_backward(dh * cache["product"]["u"], cache["activation"])
    dx = _project_backward(dh * cache["product"]["a"], cache["up"], "up", grads)
    dx += _project_backward(dgate, cache["gate"], "gate", grads)
    return dx, grads, None
