"""Learn from the probabilities of a teacher: cross-entropy with the text, and the KL divergence from the teacher.

A text says which token comes next. A teacher, that is, a trained model, says how probable every token is. The student is the
model in training; it learns from both (Hinton et al., arXiv:1503.02531). At a position whose target is y, z (V,) are the logits
of the student, and u_k (V,) those of the teacher k. With a temperature T and a weight a of the teachers,

    p = softmax(z)        s = softmax(z / T)        q = mean over the teachers k of softmax(u_k / T)

    L = (1 - a) (-log p_y) + a T^2 KL(q, s)        KL(q, s) = sum_j q_j (log q_j - log s_j)

The teachers are frozen: q has no gradient. The probabilities of several teachers are averaged, which gives the distribution of
a token drawn from a teacher chosen at random. A softmax of averaged logits would be another distribution: a token that a single
teacher excludes would have a probability near 0.

Gradient. Only the term -sum_j q_j log s_j of the KL divergence depends on z. It is a cross-entropy with soft targets, and
log s_j = z_j / T - logsumexp(z / T), so with sum_j q_j = 1

    d(log s_j)/dz_i = ([i = j] - s_i) / T        dKL/dz_i = (s_i - q_i) / T

    dL/dz_i = (1 - a) (p_i - [i = y]) + a T (s_i - q_i)

Why T^2. For a large T, s_i is about 1 / V + (z_i - mean z) / (V T), and q_i likewise, so that s_i - q_i shrinks as 1 / T and
dKL/dz as 1 / T^2. The factor T^2 cancels this, so that the influence of the teachers on the gradient does not shrink with T.

A student that equals its only teacher has s = q exactly, and then the teacher adds no gradient.

The loss is the sum over the targets divided by `denominator`, as in loss.py, so that the gradients of the micro-batches of a
batch add up. A target of -100 has no loss and no gradient, neither from the text nor from the teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numpy_ref.linear import Array, Cache
from numpy_ref.loss import IGNORE, cross_entropy_backward, cross_entropy_forward, softmax


def teacher_probs(logits: Sequence[Array], temperature: float = 1.0) -> Array:
    """Compute the mean of the teachers' probabilities at a temperature: K arrays of logits (..., V) -> (..., V)."""
    return np.asarray(sum(softmax(z / temperature) for z in logits) / len(logits))


def distillation_forward(
    logits: Array,
    teacher: Array,
    targets: Array,
    alpha: float = 0.5,
    temperature: float = 1.0,
    denominator: int | None = None,
) -> tuple[Array, Cache]:
    """Compute (1 - alpha) CE + alpha temperature^2 KL, a scalar, from the student's `logits` (..., V) and `targets` (...).

    CE is the cross-entropy of softmax(logits) with the targets, and KL is KL(teacher, softmax(logits / temperature)). `teacher`
    (..., V) is the result of `teacher_probs` at the same temperature. CE and KL are sums over the targets, in nats, divided by
    `denominator` (None: by the number of targets). The cache also contains CE and KL as `ce` and `kl`.
    """
    ce, ce_cache = cross_entropy_forward(logits, targets, denominator)
    scored = (targets != IGNORE)[..., None]  # (..., 1)
    z = logits / temperature  # (..., V)
    z_max = z.max(axis=-1, keepdims=True)  # (..., 1)
    log_s = z - z_max - np.log(np.exp(z - z_max).sum(axis=-1, keepdims=True))  # (..., V)
    log_q = np.log(np.where(teacher > 0, teacher, 1))  # (..., V); q log q is 0 at q = 0
    kl = ((teacher * (log_q - log_s)) * scored).sum() / ce_cache["count"]
    loss = (1 - alpha) * ce + alpha * temperature**2 * kl
    cache = {
        "cross_entropy": ce_cache,
        "difference": (softmax(z) - teacher) * scored,
        "alpha": alpha,
        "temperature": temperature,
        "ce": float(ce),
        "kl": float(kl),
    }
    return loss.astype(logits.dtype), cache


def distillation_backward(dloss: Array | float, cache: Cache) -> tuple[Array, None, None]:
    """Compute dlogits = dloss ((1 - a) (p - onehot(target)) + a T (s - q)) / count; teacher and targets have no gradient.

    Here a = alpha, T = temperature, p = softmax(logits), s = softmax(logits / T), and q = teacher. `count` is the number by
    which `distillation_forward` divided the sums over the targets. `dloss` is a scalar. dlogits has the shape (..., V) and is 0
    where the target is -100.
    """
    alpha, temperature = cache["alpha"], cache["temperature"]
    (dlogits,) = cross_entropy_backward((1 - alpha) * dloss, cache["cross_entropy"])
    scale = dloss * alpha * temperature / cache["cross_entropy"]["count"]
    return (dlogits + scale * cache["difference"]).astype(dlogits.dtype), None, None
