"""Tokenizers behind one small protocol: text -> ids -> exactly the same text.

Every tokenizer has the special tokens of `SPECIALS`, which no text can ever spell: `encode` reads `<|endoftext|>` as
the thirteen characters that it is. They are added as ids, by the code that means them.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from positron.config import TokenizerKind

END_OF_TEXT = "<|endoftext|>"
SPECIALS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # the last four are for chat
UNKNOWN = "�"  # what `<unk>` is decoded to, in the tokenizers that have it


class Tokenizer(Protocol):
    kind: TokenizerKind
    vocab_size: int
    has_unknown: bool  # whether id 0 is `<unk>`, which stands for text that the tokenizer does not know

    @property
    def hash(self) -> str:
        """sha256 of everything that decides what `encode` returns."""

    def special_id(self, token: str) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def bytes_of(self, i: int) -> bytes:
        """The UTF-8 that one id stands for, perhaps a part of a character; empty for special tokens."""

    def token_bytes(self) -> np.ndarray:
        """(V,) how many bytes of UTF-8 text each token stands for, 0 for special tokens: the base of bits per byte."""

    def save(self, folder: Path) -> None: ...


class StreamDecoder:
    """A stream of ids as a stream of whole characters: bytes wait until their character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, i: int) -> str:
        """The text that id completes; often its own, empty inside of a character."""
        return self._utf8.decode(self._tokenizer.bytes_of(i))

    def end(self) -> str:
        """What is left at the end of the stream: a replacement character for a character that was cut off."""
        return self._utf8.decode(b"", final=True)
