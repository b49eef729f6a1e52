"""Express losses in bits per byte of the original text, which compares models with different tokenizers.

Invariant 5 of docs/ARCHITECTURE.md.

Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from positron.system.errors import UserError

# By Markov's inequality an honest model's code for text drawn from p is more than k bits shorter than -log2 p with
# probability at most 2^-k: 20 bits below the floor are not chance.
CHANCE_BITS = 20


@dataclass(frozen=True)
class Score:
    """Hold sums over a text: `nats` of loss, `bytes` of the original UTF-8, and scored `tokens`."""

    nats: float
    bytes: int
    tokens: int

    @property
    def loss(self) -> float:
        """Return nats per token. Raises UserError if nothing was scored, because 0 would be the best possible score."""
        if not self.tokens:
            raise UserError("there is nothing to score: the text has no tokens")
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Return bits per byte, the size of the text compressed with this model. Raises UserError if nothing was scored."""
        if not self.bytes:
            raise UserError("there is nothing to score: the text has no bytes")
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token, comparable only between models with one tokenizer; inf if exp overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def is_below(self, floor_bits: float) -> bool:
        """Tell whether the score is below the entropy of the text, `floor_bits`, by more than chance explains."""
        return self.nats / math.log(2) < floor_bits - CHANCE_BITS
