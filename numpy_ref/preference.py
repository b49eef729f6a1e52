"""Learn from pairs: DPO, IPO, SimPO and ORPO, and the log-probability of an answer.

Log-probability of an answer. A prompt x is followed by an answer y of M tokens, the end token included. With the logits
z_t (V,) of the model before token y_t,

    log pi(y|x) = sum_t log p_t(y_t) = sum_t (z_t[y_t] - logsumexp(z_t))

Only the tokens of the answer have a target; the targets of the prompt and the padding are -100. The term of one token is the
negative of its cross-entropy (loss.py), so its gradient is [j = y_t] - p_tj. If the mean over the M tokens is used instead of
the sum, log pi and its gradient are divided by M.

A pair is a prompt with two answers; one of them (chosen) is preferred to the other (rejected). Below, w and l are the
log-probabilities of the chosen and of the rejected answer under the model, and rw and rl are those under the frozen reference.
The reference is computed without dropout and has no gradient. Every loss is a function of one margin h, so backward needs only
one slope, dL/dh: dL/dw = dL/dh dh/dw, and likewise for l. (ORPO's loss has -w as a further term.)

DPO (arXiv:2305.18290, equation 7). The log-probabilities w, l, rw and rl are sums over the tokens of an answer:

    h = beta ((w - rw) - (l - rl))        L = -log sigmoid(h) = log(1 + e^-h)        dL/dh = -sigmoid(-h)

Label smoothing s assumes that a share s of the pairs is swapped (conservative DPO, Mitchell 2023):

    L = -(1 - s) log sigmoid(h) - s log sigmoid(-h) = log(1 + e^-h) + s h            dL/dh = s - sigmoid(-h)

since log(1 + e^h) = log(1 + e^-h) + h. A model that equals its reference has h = 0: its loss is log 2 for every s.

IPO (arXiv:2310.12036, equation 17) takes the margin of DPO without beta and fits it to 1 / (2 tau) by least squares. The paper
uses sums over the tokens. Common implementations use means, so that long answers do not have larger margins. The caller passes
either sums or means:

    h = (w - rw) - (l - rl)               L = (h - 1 / (2 tau))^2                    dL/dh = 2 (h - 1 / (2 tau))

SimPO (arXiv:2405.14734, equation 6). w and l are means over the tokens of an answer, and there is no reference:

    h = beta (w - l) - gamma              L = log(1 + e^-h)                          dL/dh = -sigmoid(-h)

ORPO (arXiv:2403.07691, equations 6 and 7). w and l are means over the tokens of an answer, and there is no reference. The odds
of a probability P are odds(P) = P / (1 - P), here with P = e^w and P = e^l:

    h = log odds(e^w) - log odds(e^l)     L = -w + lambda log(1 + e^-h)              dL/dh = -lambda sigmoid(-h)

    log odds(e^w) = w - log(1 - e^w)      d(log odds)/dw = 1 + e^w / (1 - e^w) = 1 / (1 - e^w)

-w is the mean cross-entropy of the chosen answer. 1 - e^w is computed as -expm1(w), which keeps all digits if w is near 0.

Each loss is the sum over the pairs divided by `denominator`, as in loss.py, so that the gradients of the micro-batches of a
batch add up.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.config import GPTConfig
from numpy_ref.gpt import forward
from numpy_ref.linear import Array, Cache, Params
from numpy_ref.loss import IGNORE, softmax


def answer_targets(tokens: Array, begin: Array, end: Array) -> Array:
    """Return the targets (B, T) of tokens (B, T + 1): the next token where it belongs to the answer, otherwise -100.

    The answer of row b is tokens[b, begin[b] : end[b]]. It includes its end token, which has a loss like every other token.
    A row with begin[b] = end[b] has no targets.
    """
    place = np.arange(1, tokens.shape[1])  # (T,), the place of the next token
    return np.where((place >= begin[:, None]) & (place < end[:, None]), tokens[:, 1:], IGNORE)


def log_probs_forward(logits: Array, targets: Array, mean: bool = False) -> tuple[Array, Cache]:
    """Compute the log-probability of each row's targets: logits (B, T, V), targets (B, T) -> (B,), in nats.

    With `mean`, the sum over the targets is divided by their number. The value of a row without targets is 0.
    """
    scored = targets != IGNORE  # (B, T)
    index = np.where(scored, targets, 0)[..., None]  # (B, T, 1)
    z = logits - logits.max(axis=-1, keepdims=True)  # (B, T, V)
    target = np.take_along_axis(z, index, axis=-1)[..., 0]  # (B, T)
    tokens = np.where(scored, target - np.log(np.exp(z).sum(axis=-1)), 0)  # (B, T), log p_t(y_t)
    counts = np.maximum(1, scored.sum(axis=1)) if mean else np.ones(len(targets), dtype=int)  # (B,)
    cache = {"p": softmax(z), "index": index, "scored": scored, "counts": counts}
    return (tokens.sum(axis=1) / counts).astype(logits.dtype), cache


def log_probs_backward(drows: Array, cache: Cache) -> tuple[Array]:
    """Compute dlogits = drow (onehot(target) - p) at each target, where p is the softmax of the logits.

    drows (B,) -> dlogits (B, T, V), 0 where the target is -100. If `log_probs_forward` computed means instead of sums, dlogits
    is divided by the row's number of targets.
    """
    p, index = cache["p"], cache["index"]
    scale = cache["scored"] * (drows / cache["counts"])[:, None]  # (B, T)
    dlogits = -p * scale[..., None]
    at_target = np.take_along_axis(dlogits, index, axis=-1) + scale[..., None]  # (B, T, 1)
    np.put_along_axis(dlogits, index, at_target, axis=-1)
    return (dlogits.astype(p.dtype),)


def reference_log_probs(params: Params, config: GPTConfig, tokens: Array, targets: Array, mean: bool = False) -> Array:
    """Compute the log-probability of each row's targets under a frozen model, without dropout or a gradient.

    `tokens` (B, T) is the input of the model, and `targets` (B, T) has a target or -100 for each position. The result (B,) is
    in nats. For `mean`, see `log_probs_forward`.
    """
    logits = forward(params, config, tokens)
    assert isinstance(logits, np.ndarray)
    return log_probs_forward(logits, targets, mean)[0]


def sigmoid(x: Array) -> Array:
    """Compute 1 / (1 + e^-x), without overflow for any x."""
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _mean_loss(losses: Array, denominator: int | None) -> tuple[Array, int]:
    """Return the sum of the losses (N,) divided by `denominator` (None: by N), and the divisor."""
    count = max(1, len(losses)) if denominator is None else denominator
    return (losses.sum() / count).astype(losses.dtype), count


def dpo_forward(
    chosen: Array,
    rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    denominator: int | None = None,
) -> tuple[Array, Cache]:
    """Compute DPO's loss, a scalar, from the answers' log-probabilities (N,) under the model and the reference, for N pairs.

    The log-probability of an answer is the sum over its tokens. `beta` multiplies the margin of each pair,

        (chosen - reference_chosen) - (rejected - reference_rejected)

    `label_smoothing` is the share of the pairs that is assumed to be swapped. The sum of the pairs' losses is divided by
    `denominator` (None: by N).
    """
    h = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))  # (N,)
    loss, count = _mean_loss(np.logaddexp(0, -h) + label_smoothing * h, denominator)
    return loss, {"h": h, "beta": beta, "label_smoothing": label_smoothing, "count": count}


def dpo_backward(dloss: Array | float, cache: Cache) -> tuple[Array, Array, None, None]:
    """Compute dchosen and drejected (N,), each the negative of the other; the reference has no gradient."""
    dh = dloss / cache["count"] * (cache["label_smoothing"] - sigmoid(-cache["h"]))  # (N,)
    return cache["beta"] * dh, -cache["beta"] * dh, None, None


def ipo_forward(
    chosen: Array,
    rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    tau: float = 0.1,
    denominator: int | None = None,
) -> tuple[Array, Cache]:
    """Compute IPO's loss, a scalar, from the answers' log-probabilities (N,) under the model and the reference, for N pairs.

    The log-probability of an answer is the sum over its tokens, as in the paper, or the mean; the caller chooses. The margin of
    a pair is (chosen - reference_chosen) - (rejected - reference_rejected), and its loss is (margin - 1 / (2 tau))^2. The sum
    of the pairs' losses is divided by `denominator` (None: by N).
    """
    h = (chosen - reference_chosen) - (rejected - reference_rejected)  # (N,)
    error = h - 1 / (2 * tau)
    loss, count = _mean_loss(error**2, denominator)
    return loss, {"error": error, "count": count}


def ipo_backward(dloss: Array | float, cache: Cache) -> tuple[Array, Array, None, None]:
    """Compute dchosen and drejected (N,), each the negative of the other; the reference has no gradient."""
    dh = dloss / cache["count"] * 2 * cache["error"]  # (N,)
    return dh, -dh, None, None


def simpo_forward(
    chosen: Array, rejected: Array, beta: float = 2.0, gamma: float = 1.0, denominator: int | None = None
) -> tuple[Array, Cache]:
    """Compute SimPO's loss, a scalar, from the mean log-probabilities per token (N,) of the answers of N pairs.

    The loss of a pair is -log sigmoid(beta (chosen - rejected) - gamma). The sum of the pairs' losses is divided by
    `denominator` (None: by N).
    """
    h = beta * (chosen - rejected) - gamma  # (N,)
    loss, count = _mean_loss(np.logaddexp(0, -h), denominator)
    return loss, {"h": h, "beta": beta, "count": count}


def simpo_backward(dloss: Array | float, cache: Cache) -> tuple[Array, Array]:
    """Compute dchosen and drejected (N,), each the negative of the other."""
    dh = dloss / cache["count"] * -sigmoid(-cache["h"])  # (N,)
    return cache["beta"] * dh, -cache["beta"] * dh


def orpo_forward(
    chosen: Array, rejected: Array, weight: float = 0.1, denominator: int | None = None
) -> tuple[Array, Cache]:
    """Compute ORPO's loss, a scalar, from the mean log-probabilities per token (N,) of the answers of N pairs.

    All log-probabilities must be below 0. With log_odds(w) = w - log(1 - e^w), the loss of a pair is

        -chosen - weight * log sigmoid(log_odds(chosen) - log_odds(rejected))

    `weight` is lambda in the paper. The sum of the pairs' losses is divided by `denominator` (None: by N).
    """
    unlikely_chosen, unlikely_rejected = -np.expm1(chosen), -np.expm1(rejected)  # (N,), 1 - P
    h = (chosen - np.log(unlikely_chosen)) - (rejected - np.log(unlikely_rejected))  # (N,)
    loss, count = _mean_loss(-chosen + weight * np.logaddexp(0, -h), denominator)
    cache = {"h": h, "unlikely": (unlikely_chosen, unlikely_rejected), "weight": weight, "count": count}
    return loss, cache


def orpo_backward(dloss: Array | float, cache: Cache) -> tuple[Array, Array]:
    """Compute dchosen and drejected (N,). dchosen includes the gradient of the cross-entropy of the chosen answer."""
    unlikely_chosen, unlikely_rejected = cache["unlikely"]
    scale = dloss / cache["count"]
    dh = -scale * cache["weight"] * sigmoid(-cache["h"])  # (N,)
    return dh / unlikely_chosen - scale, -dh / unlikely_rejected
