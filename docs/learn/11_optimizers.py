"""The numbers of chapter 11: two steps of AdamW, Muon's polynomial on a rotation, and the schedule."""

from __future__ import annotations

from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.optimizers import Schedule, adamw_init, adamw_step, clip_gradients, lr_at, orthogonalize
from scripts.learn_pages import GREY, Value, panels

X = np.array([[0.0, -60.0], [11.0, 0.0]])


def example() -> dict[str, Value]:
    """Take two steps of AdamW, and make a matrix orthogonal."""
    params = {"w": np.array([[1.0]])}
    state = adamw_init(params)
    seen: dict[str, Value] = {}
    for t, gradient in ((1, 0.5), (2, -0.25)):
        adamw_step(params, {"w": np.array([[gradient]])}, state, lr=0.1)
        for name, value in (("m", state["m"]["w"]), ("v", state["v"]["w"]), ("w", params["w"])):
            seen[f"{name}{t}"] = float(value.item())
    u, _, vt = np.linalg.svd(X)
    once = orthogonalize(X, iterations=1)
    return seen | {
        "m2_hat": float(state["m"]["w"].item()) / (1 - 0.9**2),
        "v2_hat": float(state["v"]["w"].item()) / (1 - 0.95**2),
        "X": X,
        "UV": np.rint(u @ vt),
        "p_large": float(-once[0, 1]),
        "p_small": float(once[1, 0]),
        "five": orthogonalize(X),
        "half_square": float(np.float16(1e-4) * np.float16(1e-4)),
        "half_step": float(np.float16(1) - np.float16(1e-4)),
    }


def first_step(gradient: float) -> float:
    """Return how far a weight moves in its first step of AdamW."""
    params = {"w": np.zeros((1, 1))}
    adamw_step(params, {"w": np.array([[gradient]])}, adamw_init(params), lr=0.1, weight_decay=0)
    return -float(params["w"].item())


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    rates = {f"lr_{step}": lr_at(step, 100, peak=1e-3, warmup_steps=10, final_ratio=0.1) for step in (5, 55, 100)}
    grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    norm = clip_gradients(grads, 1.0)
    return [
        {"step_large": first_step(1000.0), "step_small": first_step(1e-6)},
        dict(rates),
        {"clip_norm": norm, "clipped": np.concatenate(list(grads.values()))},
    ]


def figure() -> Figure:
    """Draw the schedules, and Muon's polynomial after one, two and five iterations."""
    drawing, (left, right) = panels(7.2, 3, 2)
    steps = range(1, 101)
    for kind in get_args(Schedule):
        left.plot(
            steps, [lr_at(s, 100, peak=1, kind=kind, warmup_steps=10, final_ratio=0.1) for s in steps], label=kind
        )
    left.set(xlabel="step", ylabel="share of the peak", ylim=(0, 1.05))
    left.legend(loc="lower left", fontsize=9)
    s = np.linspace(0, 1, 400)
    for iterations in (1, 2, 5):
        values = []
        for value in s:  # a second singular value makes the norm 1, so that nothing is scaled
            x = np.diag([value, np.sqrt(max(0.0, 1 - value * value))])
            values.append(orthogonalize(x, iterations)[0, 0])
        right.plot(s, values, label=f"{iterations} times" if iterations > 1 else "once")
    right.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    right.set(xlabel="singular value before", ylabel="after", ylim=(0, 1.35))
    right.legend(loc="lower right", fontsize=9)
    return drawing
