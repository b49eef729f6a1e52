"""The numbers of chapter 4: softmax and cross-entropy of three logits."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.loss import cross_entropy_backward, cross_entropy_forward, softmax_backward, softmax_forward
from scripts.learn_pages import BLUE, ORANGE, Value, panels

LOGITS = np.log([[1.0, 2.0, 5.0]])
TARGET = np.array([1])


def loss_and_gradient(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the loss of one row of logits and its gradient."""
    loss, cache = cross_entropy_forward(logits, target)
    (dlogits,) = cross_entropy_backward(1.0, cache)
    return float(loss), dlogits[0]


def naive(logits: np.ndarray) -> np.ndarray:
    """Compute softmax as its formula is written, without any care."""
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(logits)
        return np.asarray(e / e.sum())


def interpolation_error(entries: int = 256) -> float:
    """Measure the largest error of 2^x on [0, 1] by linear interpolation in a table."""
    x = np.linspace(0, 1, 100_001)
    nodes = np.linspace(0, 1, entries + 1)
    return float(np.abs(np.interp(x, nodes, 2**nodes) - 2**x).max())


def pair(p: np.ndarray) -> str:
    """Write two numbers in parentheses."""
    return "(" + ", ".join("NaN" if math.isnan(value) else f"{value:.4f}" for value in p) + ")"


def example() -> dict[str, Value]:
    """Compute probabilities, loss and gradient of three logits, and what float32 does to larger ones."""
    p, cache = softmax_forward(LOGITS)
    jacobian = np.stack([softmax_backward(row[None], cache)[0][0] for row in np.eye(3)])  # row j: dp_j/dz
    loss, dz = loss_and_gradient(LOGITS, TARGET)
    large = np.array([89, 88], dtype=np.float32)
    far, _ = loss_and_gradient(np.array([[0, 200]], dtype=np.float32), np.array([0]))
    return {
        "p": p[0],
        "loss": loss,
        "bits": loss / math.log(2),
        "dz": dz,
        "jacobian": jacobian,
        "overflow": pair(naive(large)),
        "safe": pair(softmax_forward(large)[0]),
        "far_loss": far,
        "table_error": interpolation_error(),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    logits = np.log([[3.0, 1.0, 6.0]])
    loss, dz = loss_and_gradient(logits, np.array([2]))
    initial, _ = loss_and_gradient(np.zeros((1, 4096)), np.array([7]))
    parts = [np.array([1.0, 2.0, 3.0]), np.array([6.0])]
    return [
        {"ex_p": softmax_forward(logits)[0][0], "ex_loss": loss, "ex_dz": dz},
        {"initial": initial, "initial_bits": initial / math.log(2)},
        {
            "true_mean": float(np.concatenate(parts).mean()),
            "mean_of_means": float(np.mean([part.mean() for part in parts])),
        },
    ]


def figure() -> Figure:
    """Draw the loss over the probability of the truth, and the example's probabilities and gradients."""
    drawing, (left, right) = panels(7, 2.8, 2)
    p = np.linspace(0.005, 1, 400)
    left.plot(p, -np.log(p))
    left.set(xlabel="probability of the true token", ylabel="loss (nats)", xlim=(0, 1), ylim=(0, 5.5))
    values = example()
    x = np.arange(3)
    right.bar(x - 0.2, values["p"], 0.38, label="$p$", color=BLUE)
    right.bar(x + 0.2, values["dz"], 0.38, label="gradient $p - \\delta$", color=ORANGE)
    right.axhline(0, color="#8a8f98", linewidth=0.8)
    right.set_xticks(x, ["token 1", "token 2 (true)", "token 3"])
    right.set_ylim(-0.8, 1)
    right.legend(loc="upper left")
    return drawing
