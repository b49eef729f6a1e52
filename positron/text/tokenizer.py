"""Define the protocol of tokenizers, which convert text to token ids and back.

Decoding restores the encoded text exactly, except for text that becomes `<unk>`, and for an imported tokenizer that changes the
text before it encodes it. If this change is a space before the text, decoding removes the space. Every tokenizer has the
special tokens of `SPECIALS`. No text encodes to them: `encode` treats `<|endoftext|>` as thirteen characters. Code that needs a
special token inserts its id.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from positron.config import TokenizerKind

END_OF_TEXT = "<|endoftext|>"
SPECIALS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # the last four are for chat
UNKNOWN = "�"  # the text of `<unk>`, in tokenizers that have this token


class Tokenizer(Protocol):
    """Convert text to token ids and back."""

    kind: TokenizerKind
    vocab_size: int
    has_unknown: bool  # whether id 0 is `<unk>`, which stands for text that the tokenizer does not know
    puts_space_first: bool  # whether `encode` puts a space before each text, which `decode` removes

    @property
    def hash(self) -> str:
        """Return the sha256 of everything that determines the result of `encode`."""

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text. Positron puts the first of them after each document of a corpus.

        Only a tokenizer that was imported with a model can have several such ids.
        """

    def encode(self, text: str) -> list[int]:
        """Convert text to token ids, without special tokens."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to token ids, as `encode` does."""

    def decode(self, ids: Iterable[int]) -> str:
        """Convert token ids to text; special tokens give no text."""

    def bytes_of(self, i: int) -> bytes:
        """Return the UTF-8 bytes of the token with the id `i`, or b"" for a special token.

        The bytes may be only a part of a character.
        """

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token's text (V,), 0 for special tokens; used to compute bits per byte."""

    def save(self, folder: Path) -> None:
        """Write everything that `load_tokenizer` needs into `folder`."""


def separator(tokenizer: Tokenizer) -> list[int]:
    """Return the ids between two documents: the token that ends the first one, and the token that begins the second one.

    If one token does both, its id is returned once.
    """
    begin, end = tokenizer.special_id(END_OF_TEXT), tokenizer.end_ids[0]
    return [begin] if begin == end else [end, begin]


def contains_unknown(tokenizer: Tokenizer, ids: np.ndarray) -> bool:
    """Tell whether the token ids of a text without the character � contain an unknown token."""
    if tokenizer.kind == "huggingface":  # its unknown token can have any id
        return UNKNOWN in tokenizer.decode(ids.tolist())
    return tokenizer.has_unknown and bool((ids == 0).any())


def token_bytes_of_text(tokenizer: Tokenizer, counts: np.ndarray, n_bytes: int) -> np.ndarray:
    """Return the number of bytes of a text that each of the V token ids stands for, (V,) in float64.

    `counts` (V,): how often each id occurs in the text. `n_bytes`: the size of the text in bytes. The sum over all tokens of
    the text equals `n_bytes`. For this purpose, the number for `<unk>` is a mean. If an imported tokenizer changes a text
    before it encodes it, for example puts a space before it, all numbers are multiplied by the same factor.
    """
    lengths = tokenizer.token_bytes().astype(np.float64)
    if tokenizer.has_unknown and counts[0]:
        lengths[0] = max(0.0, n_bytes - counts[1:] @ lengths[1:]) / counts[0]
    total = counts @ lengths
    return lengths * (n_bytes / total) if total else lengths


class StreamDecoder:
    """Decode a stream of ids to whole characters: bytes are held back until their character is complete.

    `before`: the ids before the stream. If they are empty or end with a special token, a text begins with the stream. Then the
    space that some tokenizers put before a text (`puts_space_first`) is left out, as in `decode`. `skips_space`: true until the
    token with this space has been taken.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.skips_space = tokenizer.puts_space_first and not (before and tokenizer.bytes_of(before[-1]))

    def push(self, i: int) -> str:
        """Take the next id and return the characters that it completes, perhaps none."""
        data = self._tokenizer.bytes_of(i)
        if self.skips_space and data:
            self.skips_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def end(self) -> str:
        """End the stream and return U+FFFD for a character that was cut off, or an empty text."""
        return self._utf8.decode(b"", final=True)
