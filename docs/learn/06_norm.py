"""The numbers of chapter 6: LayerNorm and RMSNorm of one token with four channels."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward
from scripts.learn_pages import BLUE, GREEN, GREY, ORANGE, Value, panels

X = np.array([[1.0, 3.0, 3.0, 9.0]])
WEIGHT = np.array([1.0, 3.0, 3.0, 1.0])
BIAS = np.array([0.0, 0.0, 0.0, 1.0])
DY = np.array([[3.0, 1.0, 0.0, 0.0]])
RMS_X = np.array([[2.0, 4.0, 4.0, 8.0]])
RMS_DY = np.array([[5.0, 0.0, 0.0, 5.0]])
ONES = np.ones(4)


def example() -> dict[str, Value]:
    """Compute both norms forward and backward, and a variance in float32 in two ways."""
    y, cache = layernorm_forward(X, WEIGHT, BIAS)
    dx, _, _ = layernorm_backward(DY, cache)
    rms_y, rms_cache = rmsnorm_forward(RMS_X, ONES)
    rms_dx, _ = rmsnorm_backward(RMS_DY, rms_cache)
    g = DY * WEIGHT
    far = np.array([10_001, 9_999, 10_001, 9_999], dtype=np.float32)
    squares = np.float32((far * far).sum() / np.float32(4)) - far.mean() * far.mean()
    return {
        "x": X[0],
        "m": float(X.mean()),
        "v": float(X.var()),
        "r": float(cache["r"].item()),
        "w": WEIGHT,
        "b": BIAS,
        "h": cache["h"][0],
        "y": y[0],
        "dy": DY[0],
        "g": g[0],
        "g_mean": float(g.mean()),
        "gh_mean": float((g * cache["h"]).mean()),
        "dx": dx[0],
        "rms_x": RMS_X[0],
        "rms_h": rms_y[0],
        "rms_dy": RMS_DY[0],
        "rms_dx": rms_dx[0],
        "variance_safe": float(((far - far.mean()) ** 2).mean()),
        "variance_naive": float(squares),
    }


def newton(r: float, v: float) -> float:
    """Improve r as a value of 1 / sqrt(v)."""
    return r * (3 - v * r * r) / 2


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    h, cache = layernorm_forward(np.array([[0.0, 0.0, 4.0, 4.0]]), ONES)
    dx, _, _ = layernorm_backward(np.array([[2.0, 0.0, 0.0, 1.0]]), cache)
    big_dx, _ = rmsnorm_backward(RMS_DY, rmsnorm_forward(10 * RMS_X, ONES)[1])
    first = newton(0.2, 16)
    return [
        {"ex_h": h[0], "ex_dx": dx[0]},
        {"big_dx": big_dx[0]},
        {"newton_1": first, "newton_2": newton(first, 16)},
    ]


def figure() -> Figure:
    """Draw vectors of two channels, their places on the circle, and a gradient before and after the norm."""
    drawing, (ax,) = panels(4.6, 4)
    angles = np.radians([20, 75, 130, 200, 260, 315])
    lengths = np.array([2.3, 0.6, 2.0, 0.8, 2.2, 1.0])
    x = lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    y, _ = rmsnorm_forward(x)
    turn = np.linspace(0, 2 * math.pi, 200)
    ax.plot(math.sqrt(2) * np.cos(turn), math.sqrt(2) * np.sin(turn), color=GREY, linewidth=1)
    for start, end in zip(x, y, strict=True):
        ax.annotate("", start, (0, 0), arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.2})
        ax.plot(*end, "o", color=BLUE)
    point, gradient = y[:1], np.array([[0.25, 1.0]])
    dx, _ = rmsnorm_backward(gradient, rmsnorm_forward(point)[1])
    for arrow, colour, name in ((gradient, ORANGE, "g"), (dx, GREEN, "dx")):
        tip = (point + arrow)[0]
        ax.annotate("", tip, point[0], arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2.2})
        ax.text(tip[0] + 0.06, tip[1] + 0.06, name, color=colour, fontsize=11)
    ax.set(xlim=(-2.6, 2.6), ylim=(-2.4, 2.2), aspect="equal", xlabel="channel 1", ylabel="channel 2")
    return drawing
