"""Let several models predict as one: the probability of a token is the mean of the probabilities that the models give it.

The mean is a probability distribution, too, and its loss is at most the mean of the losses of the models (Jensen's inequality).
Models that make different errors gain most; see Lakshminarayanan et al., arXiv:1612.01474.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from positron.model.gpt import GPT
from positron.model.kernels.precision import widest


class Ensemble:
    """Hold several models, the members of an ensemble, whose predicted probabilities are averaged.

    The members may have different architectures, but must have the same vocabulary.
    """

    def __init__(self, members: Sequence[GPT]) -> None:
        """Keep the models. Raises ValueError if `members` is empty, or if the vocabularies have different sizes."""
        sizes = sorted({member.config.vocab_size for member in members})
        if len(sizes) != 1:
            raise ValueError(f"an ensemble needs models with the same vocabulary, not vocabularies of {sizes} tokens")
        self.members = tuple(members)


def members_of(model: GPT | Ensemble) -> tuple[GPT, ...]:
    """Return the members of an ensemble, or a tuple with only `model` if it is a single model."""
    return model.members if isinstance(model, Ensemble) else (model,)


def context_of(model: GPT | Ensemble) -> int:
    """Return the context length of a model, or the smallest context length of an ensemble's members.

    The smallest context length counts, because all members read the same tokens.
    """
    return min(member.config.context_length for member in members_of(model))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return logits (..., V) whose softmax is the mean of the members' distributions.

    `logits`: the logits (..., V) of each member. The result is log p + c, in float64 if the device supports float64.
    p is the mean of the members' probabilities. c is the mean of the logsumexp of the members' logits.
    c does not change the distribution. It is added for the repetition penalty, which depends on the signs of the logits: if all
    members have the same logits, the result is equal to these logits, and so has the same signs.
    """
    each = torch.stack([part.to(widest(part.device)) for part in logits])  # (n, ..., V)
    log_sums = each.logsumexp(dim=-1, keepdim=True)
    return (each - log_sums).logsumexp(dim=0) - math.log(len(logits)) + log_sums.mean(dim=0)


def mean_losses(losses: Sequence[Tensor]) -> Tensor:
    """Return an ensemble's loss for each target, in nats and float64: -log of the mean of the members' probabilities.

    `losses`: for each member, its losses for the same targets, in nats. The result has the shape of one member's losses.
    """
    each = torch.stack([part.double() for part in losses])
    return math.log(len(losses)) - (-each).logsumexp(dim=0)
