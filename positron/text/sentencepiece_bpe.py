"""Train and use byte-pair encoding with the SentencePiece library (arXiv:1808.06226)."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from positron.config import TokenizerKind
from positron.system.disk import whole_file, write_json
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

# SentencePiece writes a space as this character. If a text contains the character itself, it is encoded as its three bytes,
# because it would be decoded to a space.
_SPACE = "▁"
# SentencePiece uses these characters itself; its training skips lines that contain one.
_RESERVED = re.compile("[▁▅]")
MAX_LINE = 200_000  # characters of a line in training; SentencePiece skips lines of more than a megabyte


@dataclass(frozen=True)
class Piece:
    """Describe a piece of a SentencePiece vocabulary: its text, its score and its kind.

    Of all possible merges, the encoder applies the one whose result has the highest score.
    """

    text: str
    score: float
    kind: Literal["normal", "byte", "control", "unknown"]


class SentencePieceTokenizer:
    """Encode text with SentencePiece's byte-pair encoding, set up so that decoding restores every byte.

    `model` is the content of a model file of SentencePiece.
    """

    kind: TokenizerKind = "sentencepiece"
    has_unknown = False
    puts_space_first = False

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._sp.vocab_size()
        self._space_bytes = [self._sp.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode("utf-8")]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
        """Train a tokenizer with at most `vocab_size` tokens on `texts`; a small corpus gives fewer.

        Raises UserError if SentencePiece cannot train on the texts.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                # these four keep every byte: newlines, double spaces, any Unicode
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                byte_fallback=True,
                character_coverage=0.9999,
                split_digits=True,
                max_sentence_length=1 << 20,
                num_threads=1,  # the same corpus gives the same model on every machine
                unk_id=0,
                bos_id=-1,
                pad_id=-1,
                eos_id=1,
                eos_piece=END_OF_TEXT,
                control_symbols=list(SPECIALS[1:]),
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            if too_small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
                min_size = int(too_small[1])
                raise UserError(
                    f"tokenizer.vocab_size={vocab_size} is too small for this text, whose characters alone need {min_size:,} "
                    f"ids: give tokenizer.vocab_size={min_size} or more, or tokenizer=char"
                ) from error
            raise UserError(
                f"cannot train a SentencePiece tokenizer on this text ({reason}): give more text, a smaller "
                "tokenizer.vocab_size=, or tokenizer=char"
            ) from error
        return cls(model.getvalue())

    @property
    def hash(self) -> str:
        """Return the sha256 of the tokenizer's kind and its model file."""
        return hashlib.sha256(b"sentencepiece\n" + self._model).hexdigest()

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""
        return int(self._sp.piece_to_id(token))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the id of <|endoftext|>, which ends a text."""
        return (self.special_id(END_OF_TEXT),)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids."""
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):
            if i:
                ids += self._space_bytes
            ids += self._sp.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to ids, as `encode` does.

        If no text contains the character ▁, one call of the library converts all texts, which is fast. Otherwise, `encode`
        converts the texts one by one, because the library itself would treat ▁ as a space.
        """
        if any(_SPACE in text for text in texts):
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self._sp.encode(texts)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text."""
        text: str = self._sp.decode([int(i) for i in ids])
        return text

    def bytes_of(self, i: int) -> bytes:
        """Return the UTF-8 bytes that the token `i` stands for, or b"" for a special token.

        A token may stand for a single byte, which can be a part of a character.
        """
        if self._sp.is_byte(i):
            return bytes([int(self._sp.id_to_piece(i)[1:-1], 16)])  # `<0xE2>`
        if self._sp.is_control(i) or self._sp.is_unknown(i):
            return b""
        return str(self._sp.id_to_piece(i)).replace(_SPACE, " ").encode("utf-8")

    def pieces(self) -> list[Piece]:
        """Return the vocabulary in the order of the ids."""

        def kind(i: int) -> Literal["normal", "byte", "control", "unknown"]:
            if self._sp.is_byte(i):
                return "byte"
            if self._sp.is_control(i):
                return "control"
            return "unknown" if self._sp.is_unknown(i) else "normal"

        return [Piece(self._sp.id_to_piece(i), self._sp.get_score(i), kind(i)) for i in range(self.vocab_size)]

    def token_bytes(self) -> np.ndarray:
        """Return the number of text bytes of each token (V,), 0 for special tokens."""
        return np.array([len(self.bytes_of(i)) for i in range(self.vocab_size)], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the model to `folder`/spm.model, and its kind, hash and vocabulary size to `folder`/tokenizer.json."""
        with whole_file(folder / "spm.model") as file:
            file.write(self._model)
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, "vocab_size": self.vocab_size})


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of `texts` on which SentencePiece is trained, split further at the characters it reserves (▁ and ▅).

    Lines of more than 200,000 characters (MAX_LINE) are split, too. Newlines and reserved characters never occur in the result,
    so they get no tokens of their own and are encoded as bytes. If there is no text, yields a space, so that training succeeds;
    the vocabulary then has only single bytes and special tokens.
    """
    is_empty = True
    for text in texts:
        for line in text.split("\n"):
            for part in _RESERVED.split(line) if not line.isascii() else [line]:
                for start in range(0, len(part), MAX_LINE):
                    is_empty = False
                    yield part[start : start + MAX_LINE]
    if is_empty:
        yield " "
