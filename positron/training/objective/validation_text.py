"""Hold a text to validate on. This is usually the pretraining text, whose loss shows how much a model forgets in tuning."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from positron import stories
from positron.data.shards import TokenFiles
from positron.text.tokenizer import END_OF_TEXT, Tokenizer, contains_unknown
from positron.training.objective.base import Part

ANSWERS = "answers"


@dataclass(frozen=True)
class ValidationText:
    """Hold windows of a text: inputs x and targets y (N, T), and the text's entropy in bits, or None if it is unknown.

    A target of -100 has no loss. `n_bytes` is the length of the text in bytes to which `bits` belongs.
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


def entropy_of(files: TokenFiles, tokenizer: Tokenizer, limit: int) -> tuple[float | None, int]:
    """Return the entropy in bits of the text that a validation on at most `limit` targets reads, and its length in bytes.

    The entropy is None if it is not known, or if a word that is read is unknown to the tokenizer: the loss on unknown words can
    be below the entropy of the text. If only the beginning of the built-in stories is read, both numbers are those of its whole
    stories, whose entropy per byte may differ by some percent from that of all stories. For the beginning of another text of
    known entropy, they are those of the whole text.
    """
    whole = files.bits, files.n_bytes
    if files.bits is None:
        return whole
    ids = files.read(0, limit + 1)
    if contains_unknown(tokenizer, ids):
        return None, files.n_bytes
    if limit + 1 >= files.n_tokens:
        return whole
    starts = np.flatnonzero(ids == tokenizer.special_id(END_OF_TEXT))
    texts = [tokenizer.decode(ids[start + 1 : end].tolist()) for start, end in pairwise(starts)]
    try:
        bits = sum(map(stories.bits, texts))
    except ValueError:  # not a built-in story
        return whole
    return (bits, sum(len(text.encode("utf-8")) for text in texts)) if texts else whole
