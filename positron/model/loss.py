"""Cross-entropy of a linear output head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # a target that carries no loss


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed -log softmax(x weight^T)[target] in nats over the targets that are not IGNORE. x (N, C), weight (V, C)."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=IGNORE, reduction="sum")
