"""Predict the validation loss that a run with a budget reaches, before it starts.

The loss of a small model depends mostly on its text. Models that only count how often tokens follow each other measure how
difficult a text is. The prediction is

    log L = A + B log H2 + E log D + F R D / (1 + D),    R = max(0, log H2 - log H3)

L: the lowest validation loss of the run. H2 and H3: the losses of a bigram and of a trigram model on the same tokens (see
`counting_losses`). All three are in nats per token. D: the number of tokens that the run reads, in millions. R is large if a
text repeats sequences of tokens, which a model learns while it reads its first million tokens. E and F are negative: a longer
training and a text that repeats itself lower the loss.

The coefficients were fitted to runs with `model=auto` on eleven kinds of text (docs/LOG.md). SPREAD + SPREAD_R R is the
standard deviation of the errors of log L for a kind of text that was left out of the fit.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from positron.training.objective.pretrain import PretrainObjective

logger = logging.getLogger(__name__)

A, B, E, F = -0.546, 1.254, -0.074, -1.019
SPREAD, SPREAD_R = 0.045, 0.25
NINE_OF_TEN = 1.7  # standard deviations on each side of the prediction
MAX_TOKENS = 3e7  # of a run; the longest run of the fit read 25 million tokens
MAX_COUNTED = 2_000_000  # tokens of the training text that are counted at most; this takes about a second
ORDER = 3  # of the longest n-grams
DISCOUNT = 0.75  # subtracted from the count of each pair of tokens
MIN_LONGER = 1.2  # with fewer tokens than this times those of the run, nothing is said about an hour more


@dataclass(frozen=True)
class Expectation:
    """Hold a predicted loss and the range in which it is in nine of ten cases, in the same unit."""

    low: float
    loss: float
    high: float


def counting_losses(train: np.ndarray, val: np.ndarray, vocab_size: int) -> list[float]:
    """Return the losses of a unigram, a bigram and a trigram model on `val[2:]`, in nats per token.

    `train` (n,) and `val` (m,) with m > 2 are token ids of two texts. An n-gram model predicts a token from the n - 1 tokens
    before it, by how often each token follows them in `train`. From each of these counts it subtracts 0.75 (DISCOUNT), and it
    distributes what it subtracted as the (n-1)-gram model predicts. If the n - 1 tokens are not in `train`, it predicts as the
    (n-1)-gram model does ("absolute discounting", Ney, Essen and Kneser 1994, doi:10.1006/csla.1994.1001). The unigram model
    gives each token a probability proportional to 1 + its count.
    """
    tokens, n_targets = np.concatenate([train, val]), len(val) - ORDER + 1
    probability = ((np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size))[val[-n_targets:]]
    losses = [float(-np.log(probability).mean())]
    ngrams = tokens  # at order n, ngrams[i] is the number of the n-gram that ends at tokens[i + n - 1]
    for n in range(2, ORDER + 1):
        contexts, n_train = ngrams[:-1], len(train) - n + 1
        _, first, ngrams = np.unique(contexts * vocab_size + tokens[n - 1 :], return_index=True, return_inverse=True)
        counts = np.bincount(ngrams[:n_train], minlength=len(first))
        size = int(contexts.max()) + 1
        totals = np.bincount(contexts[:n_train], minlength=size)
        # the number of different tokens that follow each context
        followers = np.bincount(contexts[first], weights=counts > 0, minlength=size)
        context, ngram = contexts[-n_targets:], ngrams[-n_targets:]
        shared = DISCOUNT * followers[context] * probability
        predicted = (np.maximum(counts[ngram] - DISCOUNT, 0) + shared) / np.maximum(totals[context], 1)
        probability = np.where(totals[context] > 0, predicted, probability)
        losses.append(float(-np.log(probability).mean()))
    return losses


def expected_loss(losses: list[float], tokens: float) -> Expectation:
    """Return the loss that a run is expected to reach, in nats per token.

    `losses`: the result of `counting_losses`. `tokens`: the number of tokens that the run reads, including repetitions.
    """
    h2, h3 = (math.log(loss) for loss in losses[1:])
    repetition, d = max(0.0, h2 - h3), tokens / 1e6
    log_loss = A + B * h2 + E * math.log(d) + F * repetition * d / (1 + d)
    margin = NINE_OF_TEN * (SPREAD + SPREAD_R * repetition)
    low, loss, high = (math.exp(log_loss + difference) for difference in (-margin, 0.0, margin))
    return Expectation(low, loss, high)


def log_expectation(data: PretrainObjective, val_tokens: int, tokens: float, longer: float) -> None:
    """Log the loss that a run is expected to reach on its validation text, in bits per byte.

    `val_tokens`: the number of tokens that the run validates on. `tokens`: the number of tokens that it reads. `longer`: the
    number of tokens that it would read if its budget were an hour longer; the loss for this number is logged too. Nothing is
    logged for a number of tokens above MAX_TOKENS, or if the validation text is shorter than three tokens (ORDER).
    """
    val = data.val.read(0, val_tokens + 1)
    n_bytes = float(data.token_bytes[val[1:]].sum())
    if tokens > MAX_TOKENS or len(val) < ORDER or not n_bytes:
        return
    losses = counting_losses(data.train.tokens.read(0, MAX_COUNTED), val, len(data.token_bytes))
    bits = (len(val) - 1) / math.log(2) / n_bytes  # a loss of 1 nat per token, in bits per byte
    expectation = expected_loss(losses, tokens)
    low, loss, high = (bits * value for value in (expectation.low, expectation.loss, expectation.high))
    hour = ""
    if MIN_LONGER * tokens < longer <= MAX_TOKENS:
        hour = f"; with an hour more about {bits * expected_loss(losses, longer).loss:.2f}"
    logger.info(f"expected: {loss:.2f} validation bits per byte, in nine of ten cases {low:.2f} to {high:.2f}{hour}")
