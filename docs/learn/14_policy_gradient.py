"""The numbers of chapter 14: exact expectations of estimators, by going through all groups of answers of tiny policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.enumeration import (
    END,
    Answers,
    all_answers,
    answer_gradients,
    estimator_moments,
    kl_estimate_moments,
)
from numpy_ref.loss import IGNORE
from numpy_ref.policy_gradient import (
    dr_grpo_advantages,
    grpo_advantages,
    kl_backward,
    kl_estimate_forward,
    kl_forward,
    policy_gradient_backward,
    policy_gradient_forward,
    rloo_advantages,
)
from scripts.learn_pages import GREY, Value, panels

# ---- the example by hand: tokens end and a, at most two tokens, all probabilities one half

SMALL = all_answers(2, 2)  # "end", "a end", and "a a", which is truncated
SMALL_TABLE = np.zeros((2, 2))  # a row for each context: the empty answer, and "a"
SMALL_REWARDS = np.array([0.0, 1.0, 0.0])
GROUP = [1, 0]  # "a end" with the reward 1, and "end" with the reward 0
POLICY, REFERENCE = np.log([[[0.5, 0.5]]]), np.log([[[0.25, 0.75]]])  # (1, 1, 2)

# ---- the tables: tokens end and a, at most three tokens, and the reward 1 for an answer that ends

TIMELY = all_answers(2, 3)  # "end", "a end", "a a end", and "a a a", which is truncated
TIMELY_REWARDS = TIMELY.ended * 1.0
GROUP_SIZE = 8
EASY, HARD = 0.7, 0.98  # the probability of a in every context
LONG = all_answers(3, 3)  # for the KL divergence: 15 answers of the tokens end, a and b


def no_baseline(rewards: np.ndarray) -> np.ndarray:
    """Return the rewards themselves, as REINFORCE uses them."""
    return rewards


def centred_by_sigma(rewards: np.ndarray) -> np.ndarray:
    """Return the advantages of GRPO without its epsilon."""
    return grpo_advantages(rewards, eps=1e-12)


ESTIMATORS: list[
    tuple[str, Callable[[np.ndarray], np.ndarray], bool]
] = [  # name, advantages, divided by the own length
    ("no baseline", no_baseline, False),
    ("RLOO", rloo_advantages, False),
    ("Dr. GRPO", dr_grpo_advantages, False),
    ("Dr. GRPO and 1 / own length", dr_grpo_advantages, True),
    ("Dr. GRPO and 1 / σ", centred_by_sigma, False),
    ("GRPO: both", centred_by_sigma, True),
]


def prompt_table(p: float) -> np.ndarray:
    """Return a table (3, 2) that gives the token a the probability p in every context."""
    return np.log(np.tile([1 - p, p], (3, 1)))


def accepted(p: float) -> float:
    """Return the exact expected reward of a prompt."""
    return float(np.exp(answer_gradients(prompt_table(p), TIMELY)[0]) @ TIMELY_REWARDS)


def estimator_errors(
    advantages: Callable[[np.ndarray], np.ndarray], own_length: bool
) -> tuple[float, float, float, float]:
    """Measure an estimator of the gradient of the mean reward of the two prompts, each with a table of its own.

    Returns how large its expectation is along the exact gradient (1: as large), how much more so for the hard prompt than for
    the easy one, how large the rest of the expectation is relative to its length along the gradient, and the standard
    deviation relative to this length.
    """
    exact, mean, variance = [], [], 0.0
    for p in (EASY, HARD):
        log_pi, gradients = answer_gradients(prompt_table(p), TIMELY)
        _, used = answer_gradients(prompt_table(p), TIMELY, own_length)
        exact.append(np.tensordot(np.exp(log_pi) * TIMELY_REWARDS, gradients, axes=1) / 2)
        of_prompt, variance_of_prompt = estimator_moments(log_pi, used, TIMELY_REWARDS, GROUP_SIZE, advantages)
        mean.append(of_prompt / 2)
        variance += variance_of_prompt / 4
    truth, expectation = np.stack(exact), np.stack(mean)
    easy, hard = ((expectation * truth).sum(axis=(1, 2)) / (truth**2).sum(axis=(1, 2))).tolist()
    along = float((expectation * truth).sum() / (truth**2).sum())
    size = along * np.linalg.norm(truth)
    rest = float(np.linalg.norm(expectation - along * truth) / size)
    return along, hard / easy, rest, float(np.sqrt(variance) / size)


@cache
def estimator_table() -> str:
    """Write a row for each estimator of the policy gradient."""
    rows = []
    for name, advantages, own_length in ESTIMATORS:
        along, balance, error, noise = estimator_errors(advantages, own_length)
        rows.append(f"| {name} | {along:.3f} | {balance:.2f} | {100 * error:.1f} % | {noise:.2f} |")
    return "\n".join(rows)


def kl_rows(distance: float) -> list[tuple[str, float, float, float, float]]:
    """Measure k1, k2 and k3 for a policy whose logits differ from the reference's by `distance` times fixed numbers.

    Each row has the name, the bias and the standard deviation relative to the exact KL, and the length of the mean gradient
    along the exact one and the size of its rest, relative to the exact gradient.
    """
    table = np.log(np.tile([0.5, 0.25, 0.25], (7, 1)))
    log_p, gradients = answer_gradients(table, LONG)
    log_q, _ = answer_gradients(table + distance * np.sin(np.arange(21.0)).reshape(7, 3), LONG)
    p = np.exp(log_p)
    exact = float(p @ (log_p - log_q))
    truth = np.tensordot(p * (log_p - log_q), gradients, axes=1)
    rows = []
    for kind in ("k1", "k2", "k3"):
        mean, deviation, gradient = kl_estimate_moments(log_p, log_q, gradients, kind)  # type: ignore[arg-type]
        along = float((gradient * truth).sum() / (truth**2).sum())
        rest = float(np.linalg.norm(gradient - along * truth) / np.linalg.norm(truth))
        rows.append((kind, mean / exact - 1, deviation / exact, along, rest))
    return rows


def kl_table() -> str:
    """Write a row for each estimator of the KL divergence and each of two distances."""
    lines = []
    for shown, distance in (("near", 0.1), ("far", 1.0)):
        for kind, bias, deviation, along, rest in kl_rows(distance):
            bias = 0.0 if abs(bias) < 1e-9 else bias
            along, rest = (0.0 if abs(number) < 1e-9 else number for number in (along, rest))
            shares = f"{100 * bias:.1f} % | {deviation:.2f} | {along:.2f} | {100 * rest:.1f} %"
            lines.append(f"| {shown} | {kind} | {shares} |".replace("-", "−"))
    return "\n".join(lines)


def learn_to_stop(loss_on_the_end: bool, steps: int = 60) -> list[float]:
    """Follow the exact RLOO gradient of a policy over {end, a} that is rewarded for ending; return the chance of ending.

    Truncated answers are masked.
    """
    answers = all_answers(2, 3)
    learned = np.where(answers.ended[:, None], answers.targets, IGNORE)
    if not loss_on_the_end:
        learned = np.where(learned == END, IGNORE, learned)
    masked, rewards = Answers(learned, answers.contexts, answers.ended), answers.ended * 1.0
    table, chances = np.zeros((3, 2)), []
    for _ in range(steps + 1):
        log_pi, _ = answer_gradients(table, answers)
        chances.append(float(np.exp(log_pi) @ rewards))
        _, gradients = answer_gradients(table, masked)
        table = table + 20 * estimator_moments(log_pi, gradients, rewards, 2, rloo_advantages)[0]
    return chances


def prompt_weight(advantages: Callable[[np.ndarray], np.ndarray], p: float, group_size: int = 8) -> float:
    """Return the mean estimate relative to the exact gradient, for a prompt of which a share p of the answers is right."""
    answers = all_answers(2, 1)
    log_pi, gradients = answer_gradients(np.log([[p, 1 - p]]), answers)
    mean, _ = estimator_moments(log_pi, gradients, np.array([1.0, 0.0]), group_size, advantages)
    return float(mean[0, 0] / (p * (1 - p)))


def example() -> dict[str, Value]:
    """Compute the exact gradient, one group's estimate, the mean of all groups, a KL divergence, and the two tables."""
    log_pi, gradients = answer_gradients(SMALL_TABLE, SMALL)
    pi = np.exp(log_pi)
    mean, _ = estimator_moments(log_pi, gradients, SMALL_REWARDS, 2, rloo_advantages)
    group_rewards = SMALL_REWARDS[GROUP][None]
    a = rloo_advantages(group_rewards)[0]
    loss, cache = policy_gradient_forward(SMALL_TABLE[SMALL.contexts[GROUP]], SMALL.targets[GROUP], a, 4)
    (dlogits,) = policy_gradient_backward(1.0, cache)
    kl, kl_cache = kl_forward(POLICY, REFERENCE, np.array([[1]]), 1)
    log_p, log_q = POLICY[0, 0], REFERENCE[0, 0]
    return {
        "pi": pi,
        "J": float(pi @ SMALL_REWARDS),
        "exact": np.tensordot(pi * SMALL_REWARDS, gradients, axes=1),
        "mean": mean,
        "a_rloo": a,
        "a_dr": dr_grpo_advantages(group_rewards)[0],
        "a_grpo": centred_by_sigma(group_rewards)[0],
        "group_loss": float(loss),
        "dz_first": dlogits[0],
        "dz_second": dlogits[1, 0],
        "kl": float(kl),
        "kl_dz": kl_backward(1.0, kl_cache)[0][0, 0],
        **{f"of_{kind}": kl_estimate_forward(log_p, log_q, kind)[0] for kind in ("k1", "k2", "k3")},  # type: ignore[arg-type]
        "easy": accepted(EASY),
        "hard": accepted(HARD),
        "n_groups": len(TIMELY.ended) ** GROUP_SIZE,
        "estimator_table": estimator_table(),
        "kl_table": kl_table(),
        "stop_before": learn_to_stop(True, steps=0)[0],
        "stop_with": learn_to_stop(True)[-1],
        "stop_without": learn_to_stop(False)[-1],
        "tenth_mean": repr(float(np.mean([0.1, 0.1, 0.1]))),
        "vocabulary_bytes": 4 * 16 * 128 * 4096,
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    rewards = np.array([[1.0, 0, 0, 0]])
    return [
        {
            "ex_rloo": rloo_advantages(rewards),
            "ex_dr": dr_grpo_advantages(rewards),
            "ex_grpo": centred_by_sigma(rewards),
        },
        {"silent_hard": 0.98**8 + 0.02**8, "silent_half": 2 * 0.5**8},
        {"short_token": 0.5 / 10, "long_token": 0.5 / 100, "fixed_token": 0.5 / 128},
    ]


def figure() -> Figure:
    """Draw the weight of a prompt over its share of right answers, and the chance of ending during a training."""
    drawing, (left, right) = panels(7, 2.8, 2)
    p = np.linspace(0.01, 0.99, 60)
    for name, advantages in (("RLOO", rloo_advantages), ("Dr. GRPO", dr_grpo_advantages), ("1 / σ", centred_by_sigma)):
        left.plot(p, [prompt_weight(advantages, x) for x in p], label=name)
    left.set(xlabel="share of right answers", ylabel="weight of the prompt", ylim=(0, 3.2), xlim=(0, 1))
    left.legend(loc="lower center", ncols=3, fontsize=8)
    right.plot(learn_to_stop(True), label="the end token has loss")
    right.plot(learn_to_stop(False), label="the end token is masked")
    right.axhline(1, color=GREY, linewidth=0.8)
    right.set(xlabel="step", ylabel="answers that end", ylim=(0, 1.05))
    right.legend(loc="lower right")
    return drawing
