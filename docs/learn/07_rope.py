"""The numbers of chapter 7: one pair of channels, turned and turned back."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.rope import rope_backward, rope_forward, rope_tables
from scripts.learn_pages import GREY, Value, panels

PAIR, DPAIR = np.array([5.0, 10.0]), np.array([1.0, 2.0])


def turn(pair: np.ndarray, dpair: np.ndarray, cos: float, sin: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate one pair, and send a gradient back through the rotation."""
    y, cache = rope_forward(pair.reshape(1, 1, 1, 2), np.array([[cos]]), np.array([[sin]]))
    dx, _, _ = rope_backward(dpair.reshape(1, 1, 1, 2), cache)
    return y.reshape(2), dx.reshape(2)


def turned(x: np.ndarray, place: int) -> np.ndarray:
    """Rotate a vector (D,) as at a place of a text."""
    cos, sin = rope_tables(place + 1, len(x))
    return rope_forward(x.reshape(1, 1, 1, -1), cos[place:], sin[place:])[0].reshape(-1)


def cordic(angle: float, steps: int) -> tuple[float, float]:
    """Turn by shifts and additions. Return the error of the angle and the growth of the length."""
    a, b, left = 1.0, 0.0, angle
    for j in range(steps):
        sign = 1 if left > 0 else -1
        a, b = a - sign * b * 2.0**-j, b + sign * a * 2.0**-j
        left -= sign * math.atan(2.0**-j)
    return abs(math.atan2(b, a) - angle), math.hypot(a, b)


def example() -> dict[str, Value]:
    """Compute the rotation by hand, two scores of equal distance, and the effects of limited precision."""
    y, dx = turn(PAIR, DPAIR, 0.6, 0.8)
    unit = np.array([1.0, 0.0])
    cos, _ = rope_tables(100_001, 64)
    angle = np.float32(100_000) * np.float32(10_000 ** (-2 / 64))
    error, gain = cordic(1.0, 16)
    return {
        "a_turned": float(y[0]),
        "b_turned": float(y[1]),
        "length_before": float(PAIR @ PAIR),
        "length_after": float(y @ y),
        "da": float(dx[0]),
        "db": float(dx[1]),
        "score_near": float(turned(unit, 7) @ turned(unit, 4)),
        "score_far": float(turned(unit, 103) @ turned(unit, 100)),
        "cos_32": float(np.cos(np.float64(angle))),
        "cos_64": float(cos[100_000, 1]),
        "cordic_gain": gain,
        "cordic_error": error,
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    y, dx = turn(np.array([2.0, 1.0]), np.array([0.0, 5.0]), 0.8, 0.6)
    cos, sin = rope_tables(2, 64)
    angles = np.arctan2(sin[1], cos[1])  # per token, of each pair
    return [
        {"ex_turned": y, "ex_grad": dx},
        {"first_turn": float(2 * math.pi / angles[0]), "last_turn": float(2 * math.pi / angles[-1])},
        {"value_turned": turned(np.array([1.0, 0.0]), 3)},
    ]


def figure() -> Figure:
    """Draw one pair at seven places, and the score of equal vectors over their distance."""
    drawing, (left, right) = panels(7.2, 3.2, 2, width_ratios=[1, 1.35])
    for place in range(7):
        tip = turned(np.array([1.0, 0.0]), place)
        left.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "->", "color": "#3f8fd2", "linewidth": 1.8})
        left.text(*(1.17 * tip), f"{place}", ha="center", va="center")
    ring = np.linspace(0, 2 * math.pi, 200)
    left.plot(np.cos(ring), np.sin(ring), color=GREY, linewidth=0.8)
    left.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    left.set_title("one pair at the places 0 to 6")
    left.axis("off")
    distance = np.arange(129)
    cos, sin = rope_tables(len(distance), 32)
    ones = np.concatenate((np.ones(16), np.zeros(16))) / 4
    places = rope_forward(np.broadcast_to(ones, (1, 1, len(distance), 32)), cos, sin)[0][0, 0]
    right.plot(distance, places @ places[0])
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set(xlabel="distance in tokens", ylabel="score of equal vectors", ylim=(-0.2, 1.05))
    return drawing
