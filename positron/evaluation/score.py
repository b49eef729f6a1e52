"""Express losses in bits per byte of the original text, which compares models with different tokenizers.

Invariant 5 of docs/ARCHITECTURE.md.

Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from positron.system.errors import UserError

# By Markov's inequality an honest model's code for text drawn from p is more than k bits shorter than -log2 p with
# probability at most 2^-k: 20 bits under the floor is no luck.
LUCK_BITS = 20


@dataclass(frozen=True)
class Score:
    """Sums over a text: `nats` of loss, `bytes` of original UTF-8, scored `tokens`."""

    nats: float
    bytes: int
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token. UserError if nothing was scored: 0 would be the best possible score."""
        if not self.tokens:
            raise UserError("there is nothing to score: the text has no tokens")
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte: what compressing the text with this model would take. UserError if nothing was scored."""
        if not self.bytes:
            raise UserError("there is nothing to score: the text has no bytes")
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token, so only comparable between models with one tokenizer; inf where exp overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def is_below(self, floor_bits: float) -> bool:
        """Whether this needs fewer bits than the text holds by more than luck could explain."""
        return self.nats / math.log(2) < floor_bits - LUCK_BITS
