"""The MLP: map each token's vector to a wider space, apply an activation there, and map the result back.

    plain    h = f(x Wu^T),                      y = h Wd^T
    swiglu   h = swish(x Wg^T) * (x Wu^T),       y = h Wd^T          (arXiv:2002.05202)

Wu, Wd and Wg are the weights `up`, `down` and `gate`. f is the activation. * multiplies number by number.

Backward of swiglu, which is h = a * u with a = swish(x Wg^T) and u = x Wu^T: da = dh * u and du = dh * a. Then da goes back
through swish and Wg, and du through Wu. x is used twice, so dx is the sum of the gradients from both ways.

Cost: 2 N C F FLOPs per matrix. F = 4 C with two matrices, or about 8/3 C with three: 16 N C^2 forward in both cases. Two
thirds of the weights of the blocks are here, so 8-bit weights save most here on small hardware.
"""

from __future__ import annotations

from typing import assert_never

from numpy_ref.activation import activation_backward, activation_forward
from numpy_ref.config import Activation
from numpy_ref.linear import Array, Cache, Params, named_linear_backward, named_linear_forward


def mlp_forward(x: Array, params: Params, activation: Activation) -> tuple[Array, Cache]:
    """Compute f(x Wu^T) Wd^T, or (swish(x Wg^T) * (x Wu^T)) Wd^T for swiglu: x (B, T, C) -> (B, T, C).

    f is `activation`. params: up.weight Wu (F, C), down.weight Wd (C, F), for swiglu also gate.weight Wg (F, C); with biases
    also up.bias and so on.
    """
    cache: Cache = {}
    h, cache["up"] = named_linear_forward(x, params, "up")  # (B, T, F)
    match activation:
        case "swiglu":
            gate, cache["gate"] = named_linear_forward(x, params, "gate")  # (B, T, F)
            a, cache["activation"] = activation_forward(gate, "swish")
            cache["product"] = {"a": a, "u": h}
            h = a * h
        case "gelu" | "relu" | "swish" | "relu2":
            h, cache["activation"] = activation_forward(h, activation)
        case _:
            assert_never(activation)
    y, cache["down"] = named_linear_forward(h, params, "down")  # (B, T, C)
    return y, cache


def mlp_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None]:
    """Compute the gradients of `mlp_forward`: dy (B, T, C) -> dx (B, T, C), dparams by name, None for `activation`."""
    grads: Params = {}
    dh = named_linear_backward(dy, cache["down"], "down", grads)  # (B, T, F)
    if "gate" not in cache:
        (dh,) = activation_backward(dh, cache["activation"])
        return named_linear_backward(dh, cache["up"], "up", grads), grads, None
    (dgate,) = activation_backward(dh * cache["product"]["u"], cache["activation"])  # (B, T, F)
    dx = named_linear_backward(dh * cache["product"]["a"], cache["up"], "up", grads)
    dx += named_linear_backward(dgate, cache["gate"], "gate", grads)
    return dx, grads, None
