"""The numbers of chapter 9: two heads that share one key/value head, on two tokens."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from numpy_ref.attention import attention_weights
from numpy_ref.config import GPTConfig
from numpy_ref.linear import linear_backward
from numpy_ref.multihead import multihead_backward, multihead_forward
from scripts.learn_pages import BLUE, GREY, INK, ORANGE, Value, panels

CONFIG = GPTConfig(vocab_size=1, context_length=2, d_model=2, n_layer=1, n_head=2, n_kv_head=1)
X = np.array([[[0.0, 4.0], [math.log(2), 1.0]]])
PARAMS = {
    "q.weight": np.array([[0.0, 1.0], [0.0, -1.0]]),
    "k.weight": np.array([[1.0, 0.0]]),
    "v.weight": np.array([[0.0, 1.0]]),
    "out.weight": np.array([[1.0, 1.0], [1.0, -1.0]]),
}
DY = np.array([[[0.0, 0.0], [3.0, 1.0]]])


def cache_bytes(layers: int, kv_heads: int, d_head: int, tokens: int, width: int) -> int:
    """Count the bytes of keys and values."""
    return 2 * layers * kv_heads * d_head * tokens * width


def example() -> dict[str, Value]:
    """Compute two heads forward and backward, with what lies between."""
    y, cache = multihead_forward(X, PARAMS, CONFIG)
    dx, grads, *_ = multihead_backward(DY, cache)
    p = attention_weights(cache["attention"])[0]  # (H, T, T)
    out = cache["attention"]["out"][0, :, :, 0].T  # (T, H)
    v = X[0] @ PARAMS["v.weight"][0]
    dout = linear_backward(DY, cache["out"])[0][0]
    dscores = [p[h, 1] * (dout[1, h] * v - dout[1, h] * out[1, h]) for h in range(2)]
    # dk and dv (T,) from the gradients of the weights: dW = dk^T x, and x is invertible here
    dk, dv = (np.linalg.solve(X[0].T, grads[f"{name}.weight"][0]) for name in "kv")
    return {
        "Wq": PARAMS["q.weight"],
        "Wk": PARAMS["k.weight"],
        "Wv": PARAMS["v.weight"],
        "Wo": PARAMS["out.weight"],
        "P1": p[0, 1],
        "P2": p[1, 1],
        "O": out,
        "y": y[0],
        "dy": DY[0, 1],
        "dO": dout[1],
        "dv": dv,
        "dS1": dscores[0],
        "dS2": dscores[1],
        "dk": dk,
        "dx": dx[0],
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    zeros = {f"{name}.bias": np.zeros(len(PARAMS[f"{name}.weight"])) for name in ("q", "k", "v", "out")}
    _, cache = multihead_forward(X, PARAMS | zeros, CONFIG)
    _, grads, *_ = multihead_backward(DY, cache)
    return [
        {
            "cache_full": cache_bytes(12, 12, 64, 1024, 2),
            "cache_grouped": cache_bytes(12, 3, 64, 1024, 2),
        },
        {"dbias": abs(float(grads["k.bias"][0]))},
        {"reach": 4 * (64 - 1)},
    ]


def figure() -> Figure:
    """Draw which heads share keys and values, and how much memory they need."""
    drawing, (left, right) = panels(7.2, 2.6, 2, width_ratios=[1.4, 1])
    for query in range(8):
        shared = 1.5 + 4 * (query // 4)
        left.plot([query, shared], [1, 0.12], color=GREY, linewidth=1, zorder=0)
        left.add_patch(Circle((query, 1), 0.28, facecolor=BLUE, edgecolor=INK))
    for shared in (1.5, 5.5):
        left.add_patch(Rectangle((shared - 0.6, -0.35), 1.2, 0.5, facecolor=ORANGE, edgecolor=INK))
    left.text(3.5, 1.5, "8 query heads", ha="center")
    left.text(3.5, -0.8, "2 key/value heads", ha="center")
    left.set(xlim=(-0.5, 7.5), ylim=(-1, 1.9), aspect="equal")
    left.axis("off")
    heads = [12, 4, 2, 1]
    right.bar([str(n) for n in heads], [cache_bytes(12, n, 64, 1, 2) / 1024 for n in heads], color=ORANGE)
    right.set(xlabel="key/value heads (12 query heads)", ylabel="kB for one token")
    return drawing
