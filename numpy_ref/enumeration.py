"""List every answer of a tiny policy, so that expectations are exact sums and no answer is sampled.

The policy. Its vocabulary has V tokens; token 0 ends an answer, and an answer has at most L tokens. The next token
depends on the answer so far, the *context*: a sequence of fewer than L tokens without an end. There are
C = 1 + (V - 1) + ... + (V - 1)^(L - 1) contexts, and each has a row of logits in a table (C, V). The table contains all
parameters of the policy. With V = 3 and L = 3 there are 7 contexts and 15 answers: 7 that end, and 8 that are truncated after 3
tokens.

The logits of an answer are the rows of its contexts. They are looked up like embeddings, so embedding.py computes the gradient
of the table, and preference.py computes log pi(y). With the probability pi(y) and the reward R(y) of each of the N answers y,

    J = sum_y pi(y) R(y)        dJ/d(log pi(y)) = pi(y) R(y)

is the exact expected reward and its exact gradient. The mean and the variance of an estimator are exact sums, too. For each of
the N^K groups of K answers, the probability of the group is a product, and the estimate 1/K sum_i A_i d(log pi(y_i)), with the
advantages A_i (policy_gradient.py), is one vector. The mean of these vectors shows the bias of the estimator, and their
variance shows its noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from numpy_ref.embedding import embedding_backward, embedding_forward
from numpy_ref.linear import Array, Cache
from numpy_ref.loss import IGNORE
from numpy_ref.policy_gradient import KLEstimator, kl_estimate_backward, kl_estimate_forward
from numpy_ref.preference import log_probs_backward, log_probs_forward

END = 0


@dataclass(frozen=True)
class Answers:
    """Hold N answers of at most L tokens: their tokens, the contexts of these tokens, and whether the answers ended.

    The context of a token is the part of the answer before it. It is stored as an index into the policy's table (C, V), which
    has a row of logits for each context.
    """

    targets: Array  # (N, L), -100 after the last token
    contexts: Array  # (N, L), 0 after the last token
    ended: Array  # (N,), False for a truncated answer


def all_answers(vocab_size: int, max_tokens: int) -> Answers:
    """Return every answer of at most `max_tokens` tokens: those that end, the shortest first, then the truncated ones."""
    letters = range(1, vocab_size)
    prefixes = [prefix for n in range(max_tokens) for prefix in product(letters, repeat=n)]
    row_of = {prefix: row for row, prefix in enumerate(prefixes)}
    answers = [(*prefix, END) for prefix in prefixes] + list(product(letters, repeat=max_tokens))
    targets = np.full((len(answers), max_tokens), IGNORE)
    contexts = np.zeros_like(targets)
    for n, answer in enumerate(answers):
        targets[n, : len(answer)] = answer
        contexts[n, : len(answer)] = [row_of[answer[:t]] for t in range(len(answer))]
    return Answers(targets, contexts, (targets == END).any(axis=1))


def answer_gradients(table: Array, answers: Answers, own_length: bool = False) -> tuple[Array, Array]:
    """Return the log-probability (N,) of each answer, and its gradient (N, C, V) with respect to the policy's table (C, V).

    The table has the logits of the next token for each of C contexts; a context is the answer so far. With `own_length`, both
    results are divided by the number of tokens of the answer.
    """
    logits, lookup = embedding_forward(answers.contexts, table)  # (N, L, V)
    rows, cache = log_probs_forward(logits, answers.targets, own_length)  # (N,)
    (dlogits,) = log_probs_backward(np.ones_like(rows), cache)  # row n depends on answer n only
    gradients = [
        embedding_backward(dlogits[n], lookup | {"idx": contexts})[1] for n, contexts in enumerate(answers.contexts)
    ]
    return rows, np.stack(gradients)


def expected_reward_forward(log_probs: Array, rewards: Array) -> tuple[Array, Cache]:
    """Compute the expected reward J, the sum of exp(log_probs) * rewards over all N answers.

    log_probs (N,), rewards (N,) -> ().
    """
    terms = np.exp(log_probs) * rewards  # (N,)
    return np.asarray(terms.sum()), {"terms": terms}


def expected_reward_backward(dreward: Array | float, cache: Cache) -> tuple[Array, None]:
    """Compute dlog_probs (N,) = dreward * exp(log_probs) * rewards; the rewards have no gradient."""
    return dreward * cache["terms"], None


def estimator_moments(
    log_probs: Array, gradients: Array, rewards: Array, group_size: int, advantages: Callable[[Array], Array]
) -> tuple[Array, float]:
    """Return the mean (C, V) and the variance of the policy gradient that is estimated from K = `group_size` answers.

    The variance is the sum of the variances of the C * V entries of this estimate. Mean and variance are exact: they
    are computed over all N^K groups of K answers. log_probs (N,) and rewards (N,) are those of all N answers;
    `gradients` (N, C, V) are the gradients of log_probs with respect to the policy's table, which has the logits of V
    tokens for each of C contexts (answers so far). `advantages` maps the rewards (G, K) of G groups to advantages (G, K).
    """
    groups = np.indices((len(rewards),) * group_size).reshape(group_size, -1).T  # (N^K, K)
    probability = np.exp(log_probs[groups].sum(axis=1))  # (N^K,)
    weights = advantages(rewards[groups]) / group_size  # (N^K, K)
    flat = gradients.reshape(len(rewards), -1)  # (N, C V)
    estimates = sum(weights[:, k : k + 1] * flat[groups[:, k]] for k in range(group_size))  # (N^K, C V)
    mean = probability @ estimates
    variance = probability @ ((estimates - mean) ** 2).sum(axis=1)
    return mean.reshape(gradients.shape[1:]), float(variance)


def kl_estimate_moments(log_p: Array, log_q: Array, gradients: Array, kind: KLEstimator) -> tuple[float, float, Array]:
    """Return the mean and the standard deviation of an estimate of KL(p, q), and the mean (C, V) of its gradient.

    The estimator `kind` (see policy_gradient.py) computes an estimate from one answer that is sampled from p. The means are
    exact: each of the N possible answers counts with its probability. log_p and
    log_q (N,) are the log-probabilities of all N answers; `gradients` (N, C, V) are the gradients of log_p with respect to the
    policy's table, which has the logits of V tokens for each of C contexts (answers so far).
    """
    p = np.exp(log_p)
    estimates, cache = kl_estimate_forward(log_p, log_q, kind)  # (N,)
    slopes, _ = kl_estimate_backward(p, cache)  # (N,), each weighted with its probability
    mean = float(p @ estimates)
    return mean, float(np.sqrt(p @ (estimates - mean) ** 2)), np.tensordot(slopes, gradients, axes=1)
