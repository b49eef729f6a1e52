"""Express losses in bits per byte of the original text, so that models with different tokenizers can be compared.

See invariant 5 of docs/ARCHITECTURE.md. This module uses the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from positron.system.errors import UserError

# If a text is drawn from p and a model has not seen it, the loss of the model is more than k bits below -log2 p(text) with a
# probability of at most 2^-k (Markov's inequality). So a loss that is 20 bits below -log2 p(text) is not chance.
CHANCE_BITS = 20


@dataclass(frozen=True)
class Score:
    """Hold sums over a text: the loss in nats, the bytes of the original text in UTF-8, and the number of scored tokens."""

    nats: float
    bytes: int
    tokens: int

    @property
    def loss(self) -> float:
        """Return the loss in nats per token.

        Raises UserError if no token was scored. To return 0 would be wrong, because 0 is the best possible loss.
        """
        if not self.tokens:
            raise UserError("there is nothing to score: the text has no tokens; give a longer text")
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Return bits per byte: the size in bits of the text when compressed with the model, for each byte of the text.

        Raises UserError for an empty text.
        """
        if not self.bytes:
            raise UserError("there is nothing to score: the text has no bytes; give a longer text")
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token, or inf if it is too large for a float.

        Perplexities of models with different tokenizers cannot be compared. Raises UserError if no token was scored.
        """
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def is_below(self, floor_bits: float) -> bool:
        """Tell whether the loss is more than 20 bits (CHANCE_BITS) below `floor_bits`, so that chance cannot explain it.

        `floor_bits` is the entropy of the text: -log2 of its exact probability. Loss and entropy are in bits for the whole
        text. A model that has not seen the text has such a low loss with a probability of at most 2^-20.
        """
        return self.nats / math.log(2) < floor_bits - CHANCE_BITS
