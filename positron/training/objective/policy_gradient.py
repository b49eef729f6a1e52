"""Compute the advantages of answers, and the KL divergence of two models, for reinforcement learning.

The reference implementation is numpy_ref/policy_gradient.py.
"""

from __future__ import annotations

from typing import assert_never

from torch import Tensor
from torch.nn import functional as F

from positron.config import Advantage
from positron.model.kernels.precision import wide


def advantages(rewards: Tensor, kind: Advantage) -> Tensor:
    """Compute the advantages of answers from their rewards, both (P, K) for K answers to each of P prompts.

    rloo: the reward minus the mean of the other answers' rewards. dr_grpo: the reward minus the mean of all K rewards; this is
    (K - 1) / K times the advantage of rloo. If the rewards of a prompt are all equal, its advantages are exactly 0.
    """
    K = rewards.shape[1]
    differences = rewards - rewards[:, :1]  # exactly 0 for equal rewards, whose mean may differ from them by rounding
    centred = differences - differences.mean(dim=1, keepdim=True)
    match kind:
        case "rloo":
            return centred * (K / (K - 1))
        case "dr_grpo":
            return centred
        case _:
            assert_never(kind)


def exact_kl(logits: Tensor, initial: Tensor) -> Tensor:
    """Compute KL(pi || initial) over the whole vocabulary, in nats, from the logits of both models, each (N, V) -> (N,)."""
    log_p, log_q = (F.log_softmax(each.to(wide(each.dtype)), dim=-1) for each in (logits, initial))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
