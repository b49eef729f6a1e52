"""Tokenizers: from text to ids and back, by characters, words, or merged bytes (`bpe.py`).

All three tokenizers have `encode(text) -> ids`, `decode(ids) -> text`, `vocab_size` and `to_json`; the function `from_json`
restores a saved tokenizer. The first ids are the special tokens: `<unk>`, `<|endoftext|>`, and four for chat. Id 0 is `<unk>`,
for a character or word that is not in the vocabulary; `encode` never returns the other special tokens.

Longer tokens mean more text per context and per FLOP. But there are more different tokens, so the embedding table is larger,
and the vectors of rare tokens are trained little. Losses per token cannot be compared between tokenizers; bits per byte of text
can.

Cost: negligible beside the model. On small hardware, the list of words or merges needs memory. Characters have a short list,
and byte pairs without any merge, that is, single bytes, need none.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Protocol, assert_never

from numpy_ref.config import InputError

END_OF_TEXT = "<|endoftext|>"
SPECIALS = ("<unk>", END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TokenizerKind = Literal["char", "word", "bpe"]
UNKNOWN_TEXT = "�"  # the text to which <unk> is decoded


class Tokenizer(Protocol):
    """Convert text to token ids and back."""

    vocab_size: int
    end_of_text: int  # the id that separates documents

    def encode(self, text: str) -> list[int]:
        """Convert text to token ids, without special tokens except `<unk>`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Convert token ids to text. Special tokens are left out, but some tokenizers write U+FFFD for `<unk>`."""
        ...


class OwnTokenizer(Tokenizer, Protocol):
    """Convert text to token ids with a vocabulary that this package has trained and can save."""

    def to_json(self) -> dict[str, Any]:
        """Return the values from which `from_json` restores the tokenizer."""
        ...


class _TableTokenizer(ABC):
    """Convert text with a list of pieces (characters or words), whose ids come after the ids of the special tokens."""

    kind: str
    n_special = len(SPECIALS)
    end_of_text = SPECIALS.index(END_OF_TEXT)

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = list(pieces)
        self.vocab_size = self.n_special + len(self.pieces)
        self._ids = {piece: self.n_special + i for i, piece in enumerate(self.pieces)}

    @staticmethod
    @abstractmethod
    def split(text: str) -> list[str]: ...  # the only difference between the two tokenizers

    def encode(self, text: str) -> list[int]:
        """Convert text to ids. Characters or words that are not in the vocabulary become `<unk>`, and a warning names them."""
        pieces = self.split(text)
        unknown = sorted({piece for piece in pieces if piece not in self._ids})
        if unknown:
            names = ", ".join(repr(piece) for piece in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            warnings.warn(f"{len(unknown)} unknown {self.kind}s become <unk>: {names}", stacklevel=2)
        return [self._ids.get(piece, 0) for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text: `<unk>` becomes U+FFFD, other special tokens are left out."""
        return "".join(
            UNKNOWN_TEXT if i == 0 else self.pieces[i - self.n_special] for i in ids if i == 0 or i >= self.n_special
        )

    def to_json(self) -> dict[str, Any]:
        """Return the kind of the tokenizer ("character" or "word") and its pieces, from which `from_json` restores it."""
        return {"kind": self.kind, "pieces": self.pieces}


class CharTokenizer(_TableTokenizer):
    """Give each character of the training text an id."""

    kind = "character"

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """Create a tokenizer with the characters of `text`, in the order of their code points."""
        return cls(sorted(set(text)))

    @staticmethod
    def split(text: str) -> list[str]:
        """Split text into characters."""
        return list(text)


class WordTokenizer(_TableTokenizer):
    """Give an id to each frequent word, punctuation mark and run of white space; decoding joins the texts of the ids."""

    kind = "word"

    @classmethod
    def train(cls, text: str, vocab_size: int = 4000) -> WordTokenizer:
        """Create a tokenizer of the most frequent words, punctuation marks and runs of white space of `text`.

        It has at most `vocab_size` ids, including the special tokens.
        """
        counts = Counter(cls.split(text))
        by_count = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(by_count[: max(0, vocab_size - cls.n_special)])

    @staticmethod
    def split(text: str) -> list[str]:
        """Split text into words, single punctuation marks and runs of white space."""
        return re.findall(r"\w+|[^\w\s]|\s+", text)


def train_tokenizer(kind: TokenizerKind, text: str, vocab_size: int) -> OwnTokenizer:
    """Train a tokenizer on `text`.

    `vocab_size` is the maximum number of ids for the kinds word and bpe, but bpe always has an id for each byte and
    each special token. The kind char ignores `vocab_size`.
    """
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


def from_json(facts: dict[str, Any], source: str) -> OwnTokenizer:
    """Restore a tokenizer from `facts`, the values that its method `to_json` returned.

    Raises InputError if `facts` does not describe a tokenizer; `source` names the file of `facts` in the error message.
    """
    from numpy_ref.bpe import BPETokenizer

    try:
        if facts["kind"] == "bpe":
            return BPETokenizer([(int(a), int(b)) for a, b in facts["merges"]])
        pieces = facts["pieces"]
        if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError("pieces must be a list of strings")
        return {"character": CharTokenizer, "word": WordTokenizer}[facts["kind"]](pieces)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} is not a tokenizer of numpy_ref: {error!r}; restore it from a copy") from error
