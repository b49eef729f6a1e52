"""The numbers of chapter 5: a plain MLP of two, three and two numbers, and one gated number."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.activation import activation_backward, activation_forward
from numpy_ref.config import GPTConfig
from numpy_ref.linear import linear_backward, linear_forward
from numpy_ref.mlp import mlp_backward, mlp_forward
from scripts.learn_pages import GREY, Value, panels

X = np.array([[[2.0, 1.0]]])
UP = np.array([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]])
DOWN = np.array([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]])
DY = np.array([[[1.0, -1.0]]])
PARAMS = {"up.weight": UP, "down.weight": DOWN}


def gated(g: float, u: float) -> tuple[float, float, float, float]:
    """Compute a = swish(g), h = a u, and the gradients of u and g for dh = 1, by an MLP of one number."""
    params = {"gate.weight": np.array([[g]]), "up.weight": np.array([[u]]), "down.weight": np.array([[1.0]])}
    h, cache = mlp_forward(
        np.ones((1, 1, 1)), params, "swiglu"
    )  # the input is 1, so weights are the numbers themselves
    _, grads, _ = mlp_backward(np.ones((1, 1, 1)), cache)
    a = activation_forward(np.array([g]), "swish")[0]
    return float(a[0]), float(h[0, 0, 0]), float(grads["up.weight"][0, 0]), float(grads["gate.weight"][0, 0])


def example() -> dict[str, Value]:
    """Compute a plain MLP step by step, one gated number, and the errors of limited precision."""
    z, _ = linear_forward(X, UP)
    h, cache = activation_forward(z, "relu2")
    y, mlp_cache = mlp_forward(X, PARAMS, "relu2")
    dx, grads, _ = mlp_backward(DY, mlp_cache)
    dh, _, _ = linear_backward(DY, linear_forward(h, DOWN)[1])
    (dz,) = activation_backward(dh, cache)
    (slope,) = activation_backward(np.ones_like(h), cache)
    gate_a, gate_h, gate_du, gate_dg = gated(math.log(3), 2.0)
    grid = np.linspace(-8, 8, 100_001)
    nodes = np.linspace(-8, 8, 257)
    sigmoid = [0.5 * (1 + np.tanh(points / 2)) for points in (grid, nodes)]
    gelu, exact = (activation_forward(grid, kind)[0] for kind in ("gelu", "gelu_exact"))
    return {
        "x": X[0],
        "Wu": UP,
        "Wd": DOWN,
        "z": z[0],
        "h": h[0],
        "y": y[0],
        "dy": DY[0],
        "slope": slope[0],
        "dh": dh[0],
        "dz": dz[0],
        "dWu": grads["up.weight"],
        "dWd": grads["down.weight"],
        "dx": dx[0],
        "gate_a": gate_a,
        "gate_h": gate_h,
        "gate_du": gate_du,
        "gate_dg": gate_dg,
        "gelu_gap": float(np.abs(gelu - exact).max()),
        "tail_32": float(activation_forward(np.array([-5.0], dtype=np.float32), "gelu")[0][0]),
        "tail_64": float(activation_forward(np.array([-5.0]), "gelu")[0][0]),
        "table_error": float(np.abs(np.interp(grid, nodes, sigmoid[1]) - sigmoid[0]).max()),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    y, cache = mlp_forward(X, PARAMS, "relu")
    dx, _, _ = mlp_backward(DY, cache)
    x = -1.0
    for _ in range(100):
        x = -1 - math.exp(x)
    config = GPTConfig(vocab_size=1, context_length=1, d_model=256, n_layer=1, n_head=1, activation="swiglu")
    return [
        {"relu_h": activation_forward(linear_forward(X, UP)[0], "relu")[0][0], "relu_y": y[0], "relu_dx": dx[0]},
        {"lowest_x": x, "lowest_y": float(activation_forward(np.array([x]), "swish")[0][0])},
        {"gated_width": config.ff_width},
    ]


def figure() -> Figure:
    """Draw four activations and their derivatives."""
    x = np.linspace(-4, 3, 400)
    drawing, (left, right) = panels(7, 3, 2)
    for kind in ("relu", "relu2", "swish", "gelu"):
        f, cache = activation_forward(x, kind)
        left.plot(x, f, label=kind)
        right.plot(x, activation_backward(np.ones_like(x), cache)[0])
    for ax, title in ((left, "$f(x)$"), (right, "$f'(x)$")):
        ax.set(ylim=(-0.5, 3), xlabel="$x$")
        ax.set_title(title)
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    left.legend(loc="upper left")
    return drawing
