"""Chapter 14. Tokenizers: text to ids and back, by characters, by words, by bytes that were merged (`bpe.py`).

All share one small protocol: `encode(text) -> ids`, `decode(ids) -> text`, `vocab_size`, `to_json`, `from_json`. The
first ids are special tokens which no text can spell: 0 is `<unk>`, then those of SPECIALS.

Fewer, longer tokens mean more text per context and per FLOP, but a larger table, and rare tokens learn little. Losses
per token do not compare between tokenizers; bits per byte of text do.

Cost: none beside the model's. On small hardware, characters or bytes: no table at all.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Protocol, assert_never

from numpy_ref.config import InputError

END_OF_TEXT = "<|endoftext|>"
SPECIALS = ("<unk>", END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TokenizerKind = Literal["char", "word", "bpe"]
UNKNOWN = "�"  # what <unk> is decoded to


class Tokenizer(Protocol):
    vocab_size: int
    end_of_text: int  # the id between documents

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class OwnTokenizer(Tokenizer, Protocol):
    """One that this package trains, and so can write."""

    def to_json(self) -> dict[str, Any]: ...


class _TableTokenizer:
    """What characters and words share: a list of pieces, whose ids follow the special tokens."""

    kind: str
    n_special = len(SPECIALS)
    end_of_text = SPECIALS.index(END_OF_TEXT)

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = list(pieces)
        self.vocab_size = self.n_special + len(self.pieces)
        self._ids = {piece: self.n_special + i for i, piece in enumerate(self.pieces)}

    @staticmethod
    def split(text: str) -> list[str]:
        raise NotImplementedError  # characters and words are all in which the two tokenizers differ

    def encode(self, text: str) -> list[int]:
        """Unknown pieces become `<unk>`, with a warning that names them."""
        found = self.split(text)
        unknown = sorted({piece for piece in found if piece not in self._ids})
        if unknown:
            shown = ", ".join(repr(piece) for piece in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            warnings.warn(f"{len(unknown)} unknown {self.kind}s become <unk>: {shown}", stacklevel=2)
        return [self._ids.get(piece, 0) for piece in found]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(
            UNKNOWN if i == 0 else self.pieces[i - self.n_special] for i in ids if i == 0 or i >= self.n_special
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "pieces": self.pieces}


class CharTokenizer(_TableTokenizer):
    """One id per character of the training text."""

    kind = "character"

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        return cls(sorted(set(text)))

    @staticmethod
    def split(text: str) -> list[str]:
        return list(text)


class WordTokenizer(_TableTokenizer):
    """Words, single marks, and runs of white space, so that decoding is mere joining; rare ones are unknown."""

    kind = "word"

    @classmethod
    def train(cls, text: str, vocab_size: int = 4000) -> WordTokenizer:
        counts = Counter(cls.split(text))
        by_count = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(by_count[: max(0, vocab_size - cls.n_special)])

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]|\s+", text)


def train_tokenizer(kind: TokenizerKind, text: str, vocab_size: int) -> OwnTokenizer:
    """Learn a tokenizer from `text`; `vocab_size` is the most that words and byte pairs may have."""
    from numpy_ref.bpe import BPETokenizer

    match kind:
        case "char":
            return CharTokenizer.train(text)
        case "word":
            return WordTokenizer.train(text, vocab_size)
        case "bpe":
            return BPETokenizer.train(text, vocab_size)
        case _:
            assert_never(kind)


def from_json(facts: dict[str, Any], where: str) -> OwnTokenizer:
    """The inverse of `to_json`. InputError where the content is not a tokenizer's."""
    from numpy_ref.bpe import BPETokenizer

    try:
        if facts["kind"] == "bpe":
            return BPETokenizer([(int(a), int(b)) for a, b in facts["merges"]])
        pieces = facts["pieces"]
        if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError("its pieces are no list of strings")
        return {"character": CharTokenizer, "word": WordTokenizer}[facts["kind"]](pieces)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is no tokenizer: {error!r}") from error
