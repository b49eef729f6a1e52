"""Tokenize text with a table: one id for each character, or for each frequent word, of the training text."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from positron.config import TokenizerKind
from positron.system.disk import write_json
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, UNKNOWN


class CharTokenizer:
    """Give each character of the training text an id; other characters become `<unk>` (id 0).

    The ids of the special tokens come after `<unk>`, and those of the characters after the special tokens.
    """

    kind: TokenizerKind = "char"
    has_unknown = True
    puts_space_first = False

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._first = 1 + len(SPECIALS)
        self._codes = np.frombuffer(self.characters.encode("utf-32-le"), dtype=np.uint32)
        self.vocab_size = self._first + len(self._codes)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """Create a tokenizer with every character of `texts`, in the order of their code points."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(characters))

    @property
    def hash(self) -> str:
        """Return the sha256 of the tokenizer's kind and its characters."""
        return hashlib.sha256(("char\n" + self.characters).encode("utf-8")).hexdigest()

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""
        return 1 + SPECIALS.index(token)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the id of <|endoftext|>, which ends a text."""
        return (self.special_id(END_OF_TEXT),)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, one per character."""
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        if len(self._codes) == 0:
            return [0] * len(codes)
        index = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        known = self._codes[index] == codes
        ids: list[int] = np.where(known, index + self._first, 0).tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to ids, as `encode` does."""
        return [self.encode(text) for text in texts]

    def bytes_of(self, i: int) -> bytes:
        """Return the UTF-8 bytes of the character with the id `i`: U+FFFD for `<unk>`, b"" for special tokens."""
        if i < self._first:
            return UNKNOWN.encode("utf-8") if i == 0 else b""
        return self.characters[i - self._first].encode("utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text: `<unk>` becomes U+FFFD, special tokens are left out."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8")

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token (V,): 0 for special tokens, and 1 for `<unk>`.

        The length of the character for which `<unk>` stands is unknown; 1 byte is the shortest possible length.
        """
        lengths = [1] + [0] * len(SPECIALS) + [len(c.encode("utf-8")) for c in self.characters]
        return np.array(lengths, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`/tokenizer.json."""
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, "characters": self.characters})


# Words, single punctuation marks, and runs of white space; joined, they give the text.
_PIECES = re.compile(r"\w+|[^\w\s]|\s+")


class WordTokenizer:
    """Give an id to each frequent piece of text: a word, a punctuation mark, or a run of white space.

    All other pieces become `<unk>` (id 0), so decoding restores only texts without unknown pieces.
    """

    kind: TokenizerKind = "word"
    has_unknown = True
    puts_space_first = False

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = list(pieces)
        self._first = 1 + len(SPECIALS)
        self._ids = {piece: self._first + i for i, piece in enumerate(self.pieces)}
        self.vocab_size = self._first + len(self.pieces)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> WordTokenizer:
        """Create a tokenizer of at most `vocab_size` ids, special tokens included, with the most frequent pieces of `texts`.

        A piece is a word, a punctuation mark, or a run of white space. Pieces of the same frequency are taken in alphabetical
        order.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_PIECES.findall(text))
        ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(ordered[: vocab_size - 1 - len(SPECIALS)])

    @property
    def hash(self) -> str:
        """Return the sha256 of the tokenizer's kind and its pieces."""
        return hashlib.sha256(("word\n" + json.dumps(self.pieces)).encode("utf-8")).hexdigest()

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""
        return 1 + SPECIALS.index(token)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the id of <|endoftext|>, which ends a text."""
        return (self.special_id(END_OF_TEXT),)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, one per piece (a word, a punctuation mark, or a run of white space)."""
        return [self._ids.get(piece, 0) for piece in _PIECES.findall(text)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to ids, as `encode` does."""
        return [self.encode(text) for text in texts]

    def bytes_of(self, i: int) -> bytes:
        """Return the UTF-8 bytes of the piece with the id `i`: U+FFFD for `<unk>`, b"" for special tokens."""
        if i < self._first:
            return UNKNOWN.encode("utf-8") if i == 0 else b""
        return self.pieces[i - self._first].encode("utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text: `<unk>` becomes U+FFFD, special tokens are left out."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8")

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token (V,): 0 for special tokens, and 1 for `<unk>`.

        `<unk>` stands for a piece of text of unknown length, which has at least 1 byte.
        """
        return np.array([1] + [0] * len(SPECIALS) + [len(p.encode("utf-8")) for p in self.pieces], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`/tokenizer.json."""
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, "pieces": self.pieces})
