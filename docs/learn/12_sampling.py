"""The numbers of chapter 12: four tokens under temperature and filters."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.loss import softmax
from numpy_ref.sampling import filtered, penalize
from scripts.learn_pages import BLUE, Value, panels

P = np.array([0.5, 0.25, 0.15, 0.1])
LOGITS = np.log(P)


def probabilities(**filters: float) -> np.ndarray:
    """Return the probabilities of the four tokens after some filters."""
    return softmax(filtered(LOGITS, **filters))  # type: ignore[arg-type]


def entropy(temperature: float) -> float:
    """Return the entropy in nats at a temperature."""
    p = probabilities(temperature=temperature)
    return float(-(p * np.log(p)).sum())


def example() -> dict[str, Value]:
    """Apply temperature and filters, and compare the slope of the entropy with its formula."""
    return {
        "p": P,
        "cold": probabilities(temperature=0.5),
        "nucleus": probabilities(top_p=0.7),
        "minimum": probabilities(min_p=0.25),
        "entropy": entropy(1.0),
        "variance": float(P @ LOGITS**2 - (P @ LOGITS) ** 2),
        "slope": (entropy(1.0001) - entropy(0.9999)) / 0.0002,
        "tenths": float(np.cumsum(np.full(10, 0.1, dtype=np.float32))[-1]),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    return [
        {"hot": probabilities(temperature=2)},
        {"both": probabilities(temperature=0.5, top_p=0.85)},
        {"penalized": penalize(np.array([2.0, -1.0, 0.5]), [0, 1], 1.25)},
    ]


def figure() -> Figure:
    """Draw the four probabilities as they are, and after three filters."""
    drawing, axes = panels(7.2, 2.3, 4, sharey=True)
    cases: list[tuple[str, dict[str, float]]] = [
        ("as they are", {}),
        ("temperature ½", {"temperature": 0.5}),
        ("temperature 2", {"temperature": 2}),
        ("top-p 0.7", {"top_p": 0.7}),
    ]
    for ax, (title, filters) in zip(axes, cases, strict=True):
        ax.bar(range(1, 5), probabilities(**filters), color=BLUE)
        ax.set_title(title)
        ax.set_xticks(range(1, 5))
        ax.set_xlabel("token")
    axes[0].set_ylabel("probability")
    return drawing
