"""Tokenizers behind one small protocol: text -> ids -> exactly the same text.

Every tokenizer has the special tokens of `SPECIALS`, which no text can ever spell: `encode` reads `<|endoftext|>` as
the thirteen characters that it is. They are added as ids, by the code that means them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from positron.config import TokenizerConfig, UserError
from positron.disk import read_json, whole_file, write_json

END_OF_TEXT = "<|endoftext|>"
SPECIALS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # the last four are for chat


class Tokenizer(Protocol):
    kind: str
    vocab_size: int

    @property
    def hash(self) -> str:
        """sha256 of everything that decides what `encode` returns."""

    def special_id(self, token: str) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def token_bytes(self) -> np.ndarray:
        """(V,) how many bytes of UTF-8 text each token stands for, 0 for special tokens: the base of bits per byte."""

    def save(self, folder: Path) -> None: ...


class CharTokenizer:
    """One id per character of the corpus; others become `<unk>` (id 0)."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._first = 1 + len(SPECIALS)
        self._codes = np.frombuffer(self.characters.encode("utf-32-le"), dtype=np.uint32)
        self.vocab_size = self._first + len(self._codes)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return cls("".join(seen))

    @property
    def hash(self) -> str:
        return hashlib.sha256(("char\n" + self.characters).encode("utf-8")).hexdigest()

    def special_id(self, token: str) -> int:
        return 1 + SPECIALS.index(token)

    def encode(self, text: str) -> list[int]:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        if len(self._codes) == 0:
            return [0] * len(codes)
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        known = self._codes[place] == codes
        ids: list[int] = np.where(known, place + self._first, 0).tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        pieces = []
        for i in ids:
            if i >= self._first:
                pieces.append(self.characters[i - self._first])
            elif i == 0:
                pieces.append("�")
        return "".join(pieces)

    def token_bytes(self) -> np.ndarray:
        lengths = [1] + [0] * len(SPECIALS) + [len(c.encode("utf-8")) for c in self.characters]
        return np.array(lengths, dtype=np.int64)

    def save(self, folder: Path) -> None:
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, "characters": self.characters})


# SentencePiece writes a space as this character; a real one in the text would come back as a space, so its three bytes
# are given as byte pieces instead.
_SPACE = "▁"


class SentencePieceTokenizer:
    """Byte-pair encoding by SentencePiece, set up so that no byte of the text is ever lost or changed."""

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._sp.vocab_size()
        self._space_bytes = [self._sp.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode("utf-8")]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
        """Train on `texts`; `vocab_size` is a ceiling that shrinks where the corpus is small."""
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
            raise UserError(f"cannot train a SentencePiece tokenizer on this text: {reason}") from error
        return cls(model.getvalue())

    @property
    def hash(self) -> str:
        return hashlib.sha256(b"sentencepiece\n" + self._model).hexdigest()

    def special_id(self, token: str) -> int:
        return int(self._sp.piece_to_id(token))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):
            if i:
                ids += self._space_bytes
            ids += self._sp.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if any(_SPACE in text for text in texts):
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self._sp.encode(texts)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._sp.decode([int(i) for i in ids])
        return text

    def token_bytes(self) -> np.ndarray:
        sp, lengths = self._sp, np.zeros(self.vocab_size, dtype=np.int64)
        for i in range(self.vocab_size):
            if sp.is_byte(i):
                lengths[i] = 1
            elif not sp.is_control(i) and not sp.is_unknown(i):
                lengths[i] = len(sp.id_to_piece(i).replace(_SPACE, " ").encode("utf-8"))
        return lengths

    def save(self, folder: Path) -> None:
        with whole_file(folder / "spm.model") as file:
            file.write(self._model)
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, "vocab_size": self.vocab_size})


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece reads sentences; a newline is a byte piece of its own and never part of a longer one."""
    for text in texts:
        yield from (line for line in text.split("\n") if line)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    if config.kind == "char":
        return CharTokenizer.train(texts)
    assert config.vocab_size is not None
    return SentencePieceTokenizer.train(texts, config.vocab_size)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`. UserError where it is missing, damaged or altered."""
    facts = read_json(folder / "tokenizer.json")
    tokenizer: Tokenizer
    try:
        if facts["kind"] == "char":
            tokenizer = CharTokenizer(facts["characters"])
        else:
            tokenizer = SentencePieceTokenizer((folder / "spm.model").read_bytes())
        if tokenizer.hash != facts["hash"]:
            raise ValueError("its content does not have the hash that it was saved with")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(f"the tokenizer in {folder} is damaged: {error}") from error
    return tokenizer
