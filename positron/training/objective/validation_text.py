"""Validation on the text that the base run was pretrained on, which shows what a tuning costs there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from positron.training.objective.base import Part


@dataclass(frozen=True)
class ValidationText:
    """Hold windows of a text, x and y (N, T) with -100 in y where there is no loss; `bits` is its entropy if it is known."""

    x: Tensor
    y: Tensor
    bits: float | None
    n_bytes: int
    token_bytes: np.ndarray  # (V,) number of bytes of each token's text

    def parts(self, size: int) -> list[Part]:
        """Return micro-batches of `size` windows."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))
