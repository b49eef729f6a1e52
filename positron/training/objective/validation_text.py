"""Hold a text to validate on. This is usually the pretraining text, whose loss shows how much a model forgets in tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from positron.training.objective.base import Part

ANSWERS = "answers"


@dataclass(frozen=True)
class ValidationText:
    """Hold windows of a text: inputs x and targets y (N, T), and the text's entropy in bits, or None if it is unknown.

    A target of -100 has no loss. `n_bytes` is the length of the text in bytes.
    """

    x: Tensor
    y: Tensor
    bits: float | None
    n_bytes: int
    token_bytes: np.ndarray  # (V,) number of bytes of each token's text
    fingerprint: str  # hash of the pretraining text; ANSWERS if the text consists of the answers of the data
    document_start: int | None = None  # the id that begins a document, if attention does not cross documents

    def parts(self, size: int) -> list[Part]:
        """Divide the windows into micro-batches of `size` windows; the last one may have fewer."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))
