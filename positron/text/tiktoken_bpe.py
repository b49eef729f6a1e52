"""The vocabularies of OpenAI's models, by the tiktoken library: r50k_base (GPT-2's), p50k_base, cl100k_base, o200k_base.

The library's own loader waits for the network without end and keeps its files in a temporary folder; here the rank file
comes from `fetch`, once, and travels inside each run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from positron.system.disk import read_bytes, read_json, whole_file, write_json
from positron.system.download import cache_folder, fetch
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

NAMES = ("r50k_base", "p50k_base", "cl100k_base", "o200k_base")
RANKS = "ranks.tiktoken"  # in a run's tokenizer folder


def _parse(content: bytes) -> dict[bytes, int]:
    """Lines `base64(token) rank`."""
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


class TiktokenTokenizer:
    """Byte-pair encoding of bytes: every text can be encoded. The chat markers follow the library's own ids."""

    kind = "tiktoken"

    def __init__(self, name: str, pattern: str, content: bytes, end_of_text: int, n_vocab: int) -> None:
        import tiktoken

        self.name, self.pattern, self._content, self._n_vocab = name, pattern, content, n_vocab
        self._specials = {END_OF_TEXT: end_of_text, **{token: n_vocab + i for i, token in enumerate(SPECIALS[1:])}}
        self.vocab_size = n_vocab + len(SPECIALS) - 1
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=_parse(content), special_tokens=dict(self._specials)
        )

    @classmethod
    def named(cls, name: str) -> TiktokenTokenizer:
        """By the library's definition, with the rank file from our cache. UserError where it is not to be had."""
        import tiktoken_ext.openai_public as library

        found: dict[str, Any] = {}

        def load(url: str, expected_hash: str) -> dict[bytes, int]:
            path = cache_folder() / "tiktoken" / url.rsplit("/", 1)[-1]
            found["content"] = fetch(url, path, expected_hash, instead="use tokenizer=spm_16k, which needs no network")
            return _parse(found["content"])

        with mock.patch.object(library, "load_tiktoken_bpe", load):
            facts = getattr(library, name)()
        end = facts["special_tokens"][END_OF_TEXT]
        largest = max(*facts["mergeable_ranks"].values(), *facts["special_tokens"].values())
        return cls(name, facts["pat_str"], found["content"], end, facts.get("explicit_n_vocab", largest + 1))

    @classmethod
    def load(cls, folder: Path) -> TiktokenTokenizer:
        facts = read_json(folder / "tokenizer.json", folder.parent)
        content = read_bytes(folder / RANKS, folder.parent)
        return cls(facts["name"], facts["pattern"], content, facts["end_of_text"], facts["n_vocab"])

    @property
    def hash(self) -> str:
        head = f"tiktoken\n{self.name}\n{self.pattern}\n{self._specials}\n"
        return hashlib.sha256(head.encode("utf-8") + self._content).hexdigest()

    def special_id(self, token: str) -> int:
        return self._specials[token]

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._encoding.encode_ordinary(text) for text in texts]

    def bytes_of(self, i: int) -> bytes:
        """Empty for special ids, and for the few ids of a vocabulary that stand for nothing."""
        if i in self._specials.values():
            return b""
        try:
            return self._encoding.decode_single_token_bytes(i)
        except KeyError:
            return b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        return np.array([len(self.bytes_of(i)) for i in range(self.vocab_size)], dtype=np.int64)

    def save(self, folder: Path) -> None:
        with whole_file(folder / RANKS) as file:
            file.write(self._content)
        facts = {"name": self.name, "pattern": self.pattern, "end_of_text": self._specials[END_OF_TEXT]}
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, **facts, "n_vocab": self._n_vocab})


def named(name: str) -> TiktokenTokenizer:
    if name not in NAMES:
        raise UserError(f"tokenizer.name={name}: tiktoken vocabularies are {', '.join(NAMES)}")
    return TiktokenTokenizer.named(name)
