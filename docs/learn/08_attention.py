"""The numbers of chapter 8: attention of three tokens with one channel."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.attention import attention_backward, attention_forward, attention_weights, window_mask
from numpy_ref.linear import Cache
from numpy_ref.loss import softmax
from scripts.learn_pages import Value, panels

Q = np.ones(3)
K = np.log([1.0, 2.0, 3.0])
V = np.array([6.0, 3.0, 0.0])
DOUT = np.array([0.0, 3.0, 6.0])


def attend(q: np.ndarray, k: np.ndarray, window: int | None = None) -> tuple[np.ndarray, np.ndarray, Cache]:
    """Return outputs (T,), weights (T, T) and cache of one head with one channel."""
    mask = None if window is None else window_mask(len(q), len(k), window)
    out, cache = attention_forward(q.reshape(1, 1, -1, 1), k.reshape(1, 1, -1, 1), V.reshape(1, 1, -1, 1), mask)
    return out.reshape(-1), attention_weights(cache)[0, 0], cache


def example() -> dict[str, Value]:
    """Compute attention forward and backward, with what lies between."""
    out, weights, cache = attend(Q, K)
    dq, dk, dv, *_ = attention_backward(DOUT.reshape(1, 1, 3, 1), cache)
    dweights = np.outer(DOUT, V)
    dots = DOUT * out
    levels = np.rint(255 * softmax(np.zeros(7)))
    return {
        "q": Q,
        "v": V,
        "P": weights,
        "O": out,
        "dO": DOUT,
        "dv": dv.reshape(-1),
        "dP": dweights,
        "dots": dots,
        "dS": weights * (dweights - dots[:, None]),
        "dq": dq.reshape(-1),
        "dk": dk.reshape(-1),
        "p_bytes": 8192 * 8192 * 4,
        "level": float(levels[0]),
        "level_sum": float(levels.sum()),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    out, weights, _ = attend(np.array([1.0, 1.0, 0.0]), K)
    near, near_weights, _ = attend(Q, K, window=2)
    return [
        {"uniform": weights[2], "uniform_out": float(out[2])},
        {"window_weights": near_weights[2, 1:], "window_out": float(near[2])},
        {"shifted": attend(Q, K + 5)[0]},
    ]


def figure() -> Figure:
    """Draw the example's weights, and the largest weight over the head dimension."""
    drawing, (left, right) = panels(7.2, 3, 2, width_ratios=[1, 1.5])
    weights = attend(Q, K)[1]
    shown = np.where(np.tril(np.ones((3, 3))) > 0, weights, np.nan)
    left.imshow(shown, cmap="Blues", vmin=0, vmax=1.2)
    for (t, s), weight in np.ndenumerate(weights):
        if s <= t:
            left.text(s, t, f"{weight:.3f}", ha="center", va="center", color="black" if weight < 0.7 else "white")
    left.set(xlabel="key", ylabel="query")
    left.set_xticks(range(3), ["1", "2", "3"])
    left.set_yticks(range(3), ["1", "2", "3"])
    rng = np.random.default_rng(0)
    sizes = 2 ** np.arange(9)
    for name, scale in (("with $1/\\sqrt{D}$", np.sqrt(sizes)), ("without", np.ones(9))):
        largest = []
        for size, divisor in zip(sizes, scale, strict=True):
            q, k = rng.standard_normal((200, 1, size)), rng.standard_normal((200, 64, size))
            largest.append(softmax((q * k).sum(axis=-1) / divisor).max(axis=-1).mean())
        right.semilogx(sizes, largest, marker="o", markersize=4, base=2, label=name)
    right.set(xlabel="head dimension $D$", ylabel="largest of 64 weights", ylim=(0, 1))
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.legend()
    assert math.isclose(weights.sum(), 3)
    return drawing
