"""The numbers of chapter 2: a linear layer with two rows, two inputs and three outputs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from numpy_ref.linear import linear_backward, linear_forward
from scripts.learn_pages import BLUE, GREEN, INK, ORANGE, Value, panels

X = np.array([[1.0, 2.0], [3.0, -1.0]])
W = np.array([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]])
BIAS = np.array([0.5, -1.0, 0.0])
DY = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]])


def example() -> dict[str, Value]:
    """Compute the layer forward and backward, one derivative by finite differences, and two long sums in float32."""
    y, cache = linear_forward(X, W, BIAS)
    dx, dweight, dbias = linear_backward(DY, cache)
    assert dbias is not None
    h, moved = 1e-6, []
    for sign in (1, -1):
        weight = W.copy()
        weight[1, 0] += sign * h
        moved.append(float((DY * linear_forward(X, weight, BIAS)[0]).sum()))
    tenths = np.full(1_000_000, 0.1, dtype=np.float32)
    return {
        "x": X,
        "W": W,
        "b": BIAS,
        "y": y,
        "dy": DY,
        "dx": dx,
        "dW": dweight,
        "db": dbias,
        "numeric": (moved[0] - moved[1]) / (2 * h),
        "analytic": float(dweight[1, 0]),
        "absorbed": float(np.float32(2**24) + np.float32(1)),
        "sequential": float(np.cumsum(tenths)[-1]),  # cumsum has to keep the order
        "pairwise": float(tenths.sum()),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    dx, dweight, dbias = linear_backward(np.ones_like(DY), linear_forward(X, W, BIAS)[1])
    assert dbias is not None
    forward = 2 * 4096 * 256 * 1024
    return [
        {"ones_dx": dx, "ones_dW": dweight, "ones_db": dbias},
        {"flops_forward": forward, "flops_step": 3 * forward},
        {"products": (2**31 - 1) // 2**14},
    ]


def figure() -> Figure:
    """Draw the shapes of the three products as rectangles."""
    sizes = {"N": 3.0, "I": 2.0, "O": 1.2}  # in the units of the drawing
    drawing, axes = panels(8, 1.7, 3)
    products = [  # title, then name, rows, columns and colour of each matrix
        ("forward", ("y", "N", "O", GREEN), ("x", "N", "I", BLUE), ("Wᵀ", "I", "O", ORANGE)),
        ("gradient of the input", ("dx", "N", "I", BLUE), ("dy", "N", "O", GREEN), ("W", "O", "I", ORANGE)),
        ("gradient of the weights", ("dW", "O", "I", ORANGE), ("dyᵀ", "O", "N", GREEN), ("x", "N", "I", BLUE)),
    ]
    for ax, (title, *matrices) in zip(axes, products, strict=True):
        left = 0.0
        for (name, row_name, column_name, colour), sign in zip(matrices, ("=", "", ""), strict=True):
            rows, columns = sizes[row_name], sizes[column_name]
            ax.add_patch(Rectangle((left, -rows / 2), columns, rows, facecolor=colour, alpha=0.35, edgecolor=INK))
            ax.text(left + columns / 2, 0, name, ha="center", va="center", fontsize=11)
            ax.text(left - 0.15, 0, row_name, ha="right", va="center", fontsize=8)
            ax.text(left + columns / 2, rows / 2 + 0.15, column_name, ha="center", va="bottom", fontsize=8)
            ax.text(left + columns + 0.5, 0, sign, ha="center", va="center", fontsize=12)
            left += columns + (1.5 if sign else 0.8)
        middle = (left - 1.4) / 2
        ax.set(xlim=(middle - 4.2, middle + 4.2), ylim=(-1.6, 2.4), aspect="equal")
        ax.set_title(title)
        ax.axis("off")
    return drawing
