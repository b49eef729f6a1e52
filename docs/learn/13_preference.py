"""The numbers of chapter 13: one pair of answers of two tokens each, under four losses."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.preference import (
    answer_targets,
    dpo_backward,
    dpo_forward,
    ipo_backward,
    ipo_forward,
    log_probs_backward,
    log_probs_forward,
    orpo_backward,
    orpo_forward,
    simpo_backward,
    simpo_forward,
)
from scripts.learn_pages import BLUE, ORANGE, Value, panels

# Tokens: 0 ends an answer, 1 is a, 2 is b, 3 is the prompt. Chosen: "a", end. Rejected: "b", end.
TOKENS = np.array([[3, 1, 0], [3, 2, 0]])
TARGETS = answer_targets(TOKENS, begin=np.array([1, 1]), end=np.array([3, 3]))
FIRST, SECOND = [1 / 6, 1 / 2, 1 / 3], [1 / 2, 1 / 4, 1 / 4]  # of the next token: end, a, b
LOGITS = np.log([[FIRST, SECOND], [FIRST, SECOND]])
REFERENCE = np.log([1 / 8, 1 / 4])  # of the chosen and of the rejected answer
E = 0.1  # label smoothing


def dpo(rows: np.ndarray, beta: float, smoothing: float = 0.0) -> tuple[float, float, float]:
    """Return loss, dchosen and drejected of one pair with the log-probabilities `rows` (2,)."""
    loss, cache = dpo_forward(rows[:1], rows[1:], REFERENCE[:1], REFERENCE[1:], beta, smoothing)
    dchosen, drejected, *_ = dpo_backward(1.0, cache)
    return float(loss), float(dchosen[0]), float(drejected[0])


def example() -> dict[str, Value]:
    """Compute the log-probabilities of the pair, the four losses, and DPO's gradient down to the logits."""
    rows, cache = log_probs_forward(LOGITS, TARGETS)
    means, _ = log_probs_forward(LOGITS, TARGETS, mean=True)
    loss, dchosen, drejected = dpo(rows, beta=1.0)
    (dlogits,) = log_probs_backward(np.array([dchosen, drejected]), cache)
    smoothed, dsmoothed, _ = dpo(rows, 1.0, E)
    ipo, ipo_cache = ipo_forward(rows[:1], rows[1:], REFERENCE[:1], REFERENCE[1:], tau=1.0)
    orpo, orpo_cache = orpo_forward(means[:1], means[1:], weight=0.1)
    large = np.float32(20)
    return {
        "first": np.array(FIRST),
        "second": np.array(SECOND),
        "pi": np.exp(rows),
        "pi_ref": np.exp(REFERENCE),
        "h": float(rows[0] - REFERENCE[0] - rows[1] + REFERENCE[1]),
        "loss": loss,
        "dw": dchosen,
        "dl": drejected,
        "dz_chosen": dlogits[0],
        "dz_rejected": dlogits[1],
        "dz_shared": dlogits[:, 0].sum(axis=0),
        "smoothed": smoothed,
        "smoothed_dw": dsmoothed,
        "best_h": math.log((1 - E) / E),
        "ipo": float(ipo),
        "ipo_dw": float(ipo_backward(1.0, ipo_cache)[0][0]),
        "orpo": float(orpo),
        "orpo_dw": float(orpo_backward(1.0, orpo_cache)[0][0]),
        "orpo_dl": float(orpo_backward(1.0, orpo_cache)[1][0]),
        "naive_slope": float(1 - 1 / (1 + np.exp(-large))),
        "safe_slope": float(np.exp(-np.logaddexp(np.float32(0), large))),
        "bf16_gap": 2 ** (math.frexp(500)[1] - 8),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    start, dstart, _ = dpo(REFERENCE, beta=0.1)
    means, _ = log_probs_forward(LOGITS, TARGETS, mean=True)
    simpo, cache = simpo_forward(means[:1], means[1:], beta=2.0, gamma=math.log(3))
    before = np.log([0.01])
    fallen, _ = dpo_forward(np.log([0.005]), np.log([0.001]), before, before, beta=1.0)
    return [
        {"start_loss": start, "start_dw": dstart},
        {"simpo": float(simpo), "simpo_dw": float(simpo_backward(1.0, cache)[0][0])},
        {"fallen_loss": float(fallen)},
    ]


def figure() -> Figure:
    """Draw three losses over the margin, and the gradients of the first position's logits."""
    drawing, (left, right) = panels(7, 2.8, 2)
    h, zero = np.linspace(-4, 6, 300), np.zeros(1)

    def curve(smoothing: float) -> list[float]:
        return [float(dpo_forward(np.array([x]), zero, zero, zero, 1.0, smoothing)[0]) for x in h]

    left.plot(h, curve(0.0), label="DPO")
    left.plot(h, curve(E), label="DPO, smoothing 0.1")
    left.plot(
        h, [float(ipo_forward(np.array([x]), zero, zero, zero, 0.25)[0]) / 4 for x in h], label="IPO / 4, τ = 1/4"
    )
    left.plot(0, math.log(2), "o", color="#8a8f98")
    left.set(xlabel="margin $h$", ylabel="loss", ylim=(0, 6))
    left.legend(loc="upper right")
    values = example()
    x = np.arange(3)
    right.bar(x - 0.2, values["dz_chosen"][0], 0.38, label="chosen: a", color=BLUE)  # type: ignore[index]
    right.bar(x + 0.2, values["dz_rejected"][0], 0.38, label="rejected: b", color=ORANGE)  # type: ignore[index]
    right.axhline(0, color="#8a8f98", linewidth=0.8)
    right.set_xticks(x, ["end", "a", "b"])
    right.set_ylabel("gradient of the first logits")
    right.legend(loc="upper left")
    return drawing
