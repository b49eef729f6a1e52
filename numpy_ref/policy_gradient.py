"""Learn from rewards: the policy gradient with the advantages of RLOO, Dr. GRPO and GRPO, and the KL divergence.

Gradient of an expectation. A policy pi writes an answer y to a prompt, and a program gives it the reward R(y). Training
maximises the expected reward J = sum_y pi(y) R(y). R has no gradient, but the probabilities have: d pi = pi d(log pi), so

    dJ = sum_y pi(y) R(y) d(log pi(y)) = mean of R(y) d(log pi(y)) over answers y that pi has written

Sampled answers estimate this mean (REINFORCE, Williams 1992). sum_y pi(y) = 1 has the gradient 0, so the mean of
d(log pi(y)) is 0. Therefore a baseline b that does not depend on y may be subtracted from R: this changes the variance of the
estimate, but not its mean.

Advantages. For each of B prompts, the policy writes a group of K answers, with the rewards r_1 .. r_K.

    RLOO (arXiv:2402.14740)       A_i = r_i - mean of the other K - 1 = K / (K - 1) (r_i - mean)
    Dr. GRPO (arXiv:2503.20783)   A_i = r_i - mean        the baseline includes r_i, so the gradient is (K - 1) / K of RLOO's
    GRPO (arXiv:2402.03300)       A_i = (r_i - mean) / (sigma + eps)        sigma: the rewards' standard deviation; the loss of
                                                                            each answer is divided by its length

If all rewards of a group are equal, every advantage is exactly 0, because advantages are computed from r_i - r_1.

Loss. Its gradient is an estimate of -dJ, so that a minimizing optimizer makes J larger. The advantages are constants:

    L = -1 / D sum_i A_i sum_t log p_t(y_it)        dL/dz_itj = -A_i / D ([j = y_it] - p_itj)

RLOO and Dr. GRPO have the divisor D = B K L_max, where the constant L_max is the largest number of tokens of an answer. With
RLOO, the gradient of L is then an estimate of -dJ / L_max. Every token has the same weight. GRPO divides the sum over t by the
number of tokens of the answer and has the divisor D = B K. So in GRPO a token of a long answer has less weight, and a long
wrong answer costs no more than a short one.

The end token is a target, because otherwise the policy would not learn to stop. A truncated answer has no end token. It may be
masked, that is, all its targets are -100. D does not depend on masked answers or on the micro-batch, so the gradients of the
micro-batches of a batch add up.

Each answer is used for one step only, by the policy that wrote it. Therefore the probability ratios of PPO are 1, and no ratio
is clipped.

KL divergence to a frozen reference q, at each position that has a target, over the whole vocabulary:

    KL = sum_j p_j (log p_j - log q_j)        dKL/dz_j = p_j (log p_j - log q_j - KL)

since dp_j/dz_i = p_j ([i = j] - p_i), and the derivative of log p_j contributes sum_j p_j d(log p_j) = 0. The sum of KL over
the positions of a sampled answer is an unbiased estimate of the KL divergence of whole answers. The gradient above treats the
tokens before a position as given.

Estimators of the KL from the probability of the sampled token alone (Schulman, "Approximating KL divergence", 2020), with
the log-ratio d = log p - log q and r = e^-d = q / p:

    estimator          its mean over samples of p      its derivative          the mean of its gradient
    k1 = d             KL(p, q)                        dk1/d(log p) = 1        0
    k2 = d^2 / 2       another number: k2 is biased    dk2/d(log p) = d        the gradient of KL(p, q)
    k3 = r - 1 + d     KL(p, q); no k3 is below 0      dk3/d(log p) = 1 - r    the gradient of KL(q, p)

The gradient of an unbiased estimator is not an unbiased estimator of the gradient, because p also decides what is sampled.
"""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np

from numpy_ref.linear import Array, Cache
from numpy_ref.loss import IGNORE
from numpy_ref.preference import log_probs_backward, log_probs_forward

KLEstimator = Literal["k1", "k2", "k3"]


def rloo_advantages(rewards: Array) -> Array:
    """Subtract from each reward the mean of the other K - 1 rewards of its group: rewards (B, K) -> (B, K), for K >= 2.

    The group of a reward is the K answers to the same prompt.
    """
    d = rewards - rewards[:, :1]  # (B, K)
    advantages: Array = d - (d.sum(axis=1, keepdims=True) - d) / (rewards.shape[1] - 1)
    return advantages


def dr_grpo_advantages(rewards: Array) -> Array:
    """Subtract the mean of all rewards of the group: rewards (B, K) -> (B, K), with a group of K answers to each prompt."""
    d = rewards - rewards[:, :1]  # (B, K)
    advantages: Array = d - d.mean(axis=1, keepdims=True)
    return advantages


def grpo_advantages(rewards: Array, eps: float = 1e-4) -> Array:
    """Subtract the mean of the group and divide by its standard deviation (K - 1 degrees of freedom) plus `eps`.

    rewards (B, K) -> (B, K), for K of at least 2. A group is the K answers to one prompt.
    """
    centred = dr_grpo_advantages(rewards)  # (B, K)
    sigma = np.sqrt((centred**2).sum(axis=1, keepdims=True) / (rewards.shape[1] - 1))  # (B, 1)
    advantages: Array = centred / (sigma + eps)
    return advantages


def policy_gradient_forward(
    logits: Array, targets: Array, advantages: Array, denominator: float, own_length: bool = False
) -> tuple[Array, Cache]:
    """Compute the scalar loss = -1 / denominator sum_i advantages_i sum_t log p(target_it), where p = softmax(logits).

    logits (N, T, V), targets (N, T) and advantages (N,) are those of N answers. Targets of -100 are not counted: those of the
    prompt, of padding, and of answers from which the policy shall not learn. `denominator` is B K L_max, for B prompts with K
    answers each and at most L_max tokens per answer. With `own_length` (GRPO), the sum over t is divided by the answer's number
    of targets, and `denominator` is B K.
    """
    rows, cache = log_probs_forward(logits, targets, own_length)  # (N,)
    loss = -(advantages * rows).sum() / denominator
    return loss.astype(logits.dtype), {"rows": cache, "advantages": advantages, "denominator": denominator}


def policy_gradient_backward(dloss: Array | float, cache: Cache) -> tuple[Array]:
    """Compute the gradient of `policy_gradient_forward` with respect to the logits: dloss, a scalar -> dlogits (N, T, V).

    dlogits = dloss * advantage / denominator * (p - onehot(target)), where p = softmax(logits); 0 where the target is -100.
    `denominator` and `own_length` are the arguments of `policy_gradient_forward`. With `own_length`, dlogits is also divided by
    the answer's number of targets.
    """
    return log_probs_backward(-dloss / cache["denominator"] * cache["advantages"], cache["rows"])


def kl_forward(logits: Array, reference_logits: Array, targets: Array, denominator: float) -> tuple[Array, Cache]:
    """Add up KL(policy, reference) over the positions that have a target, and divide by `denominator`.

    logits of the policy and reference_logits (N, T, V), targets (N, T) -> a scalar, in nats.
    """
    log_p, log_q = log_softmax(logits), log_softmax(reference_logits)  # (N, T, V)
    p, d = np.exp(log_p), log_p - log_q
    kl = (p * d).sum(axis=-1) * (targets != IGNORE)  # (N, T)
    cache = {"p": p, "d": d, "kl": kl, "scored": targets != IGNORE, "denominator": denominator}
    return (kl.sum() / denominator).astype(logits.dtype), cache


def kl_backward(dloss: Array | float, cache: Cache) -> tuple[Array, None]:
    """Compute dlogits (N, T, V) = dloss p (log p - log q - KL) / denominator; the reference has no gradient.

    p and q are the distributions of the policy and the reference at a position, and KL is KL(p, q) there. `denominator`
    is the argument of `kl_forward`. The gradient is 0 at positions without a target.
    """
    p, scale = cache["p"], cache["scored"] * np.asarray(dloss / cache["denominator"], dtype=cache["p"].dtype)
    return scale[..., None] * p * (cache["d"] - cache["kl"][..., None]), None


def log_softmax(z: Array) -> Array:
    """Compute the logarithm of softmax without taking the logarithm of a probability: z (..., V) -> (..., V)."""
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def kl_estimate_forward(log_p: Array, log_q: Array, kind: KLEstimator) -> tuple[Array, Cache]:
    """Estimate KL(p, q) from samples of p, by the estimator `kind`.

    log_p and log_q (...) are the log-probabilities of the samples under p and q. The result (...) has one estimate for each
    sample. With d = log_p - log_q, an estimate is d for "k1", d^2 / 2 for "k2", and e^-d - 1 + d for "k3".
    """
    d = log_p - log_q
    match kind:
        case "k1":
            estimate, slope = d, np.ones_like(d)
        case "k2":
            estimate, slope = d**2 / 2, d
        case "k3":
            estimate, slope = np.expm1(-d) + d, -np.expm1(-d)
        case _:
            assert_never(kind)
    return estimate, {"slope": slope}


def kl_estimate_backward(dout: Array, cache: Cache) -> tuple[Array, None]:
    """Compute the gradients of `kl_estimate_forward`: dout (...) -> dlog_p (...), None for `log_q`.

    The samples count as constants: the gradient does not include the dependence of the samples on p.
    """
    return dout * cache["slope"], None
