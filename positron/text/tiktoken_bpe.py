"""Use the vocabularies of OpenAI's models with the tiktoken library: r50k_base (GPT-2's), p50k_base, cl100k_base, o200k_base.

A rank file lists the tokens of a vocabulary with their ids. tiktoken's own loader waits for the network without a time limit
and stores the rank files in a temporary folder. Instead, Positron's own `fetch` downloads a rank file once and keeps it in
Positron's cache; each training run has a copy in its folder.

A rank file does not contain the regular expression that splits a text before the merges, the id of <|endoftext|> and the
number of ids. DEFINITIONS has them for each vocabulary. They were copied from `tiktoken_ext.openai_public`, a module that comes
with tiktoken.

A definition must never change, because its pattern is part of a tokenizer's hash. Even another pattern that splits every text
in the same way would change the hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from positron.config import TokenizerKind
from positron.system.disk import read_bytes, read_json, whole_file, write_json
from positron.system.download import cache_folder, fetch
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

RANKS = "ranks.tiktoken"  # the rank file in the tokenizer folder of a run
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings"  # the folder of NAME.tiktoken


@dataclass(frozen=True)
class Definition:
    """Describe a published vocabulary."""

    pattern: str  # regular expression that splits a text into words before the merges
    end_of_text: int  # the id of <|endoftext|>
    n_vocab: int  # 1 + the largest id of the library's vocabulary, special tokens included
    sha256: str  # of the rank file, which lists the tokens of the vocabulary with their ids


_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
_O200K_PATTERN = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
DEFINITIONS = {
    "r50k_base": Definition(
        _GPT2_PATTERN, 50256, 50257, "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    ),
    "p50k_base": Definition(
        _GPT2_PATTERN, 50256, 50281, "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
    ),
    "cl100k_base": Definition(
        _CL100K_PATTERN, 100257, 100277, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
    ),
    "o200k_base": Definition(
        _O200K_PATTERN, 199999, 200019, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
    ),
}


def _parse(content: bytes) -> dict[bytes, int]:
    """Return the id (rank) of each token of a rank file, whose lines are `base64(token) rank`."""
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


class TiktokenTokenizer:
    """Encode text with byte-level byte-pair encoding.

    The special tokens for chat get the ids after the last id of tiktoken's vocabulary. `name`: the name of the vocabulary, such
    as r50k_base. `content`: the bytes of the rank file, which lists the tokens with their ids. `pattern`, `end_of_text` and
    `n_vocab`: see `Definition`. Raises ValueError if a token has an id outside of the vocabulary.
    """

    kind: TokenizerKind = "tiktoken"
    has_unknown = False
    puts_space_first = False

    def __init__(self, name: str, pattern: str, content: bytes, end_of_text: int, n_vocab: int) -> None:
        import tiktoken

        self.name, self.pattern, self._content, self._n_vocab = name, pattern, content, n_vocab
        self._specials = {END_OF_TEXT: end_of_text, **{token: n_vocab + i for i, token in enumerate(SPECIALS[1:])}}
        self.vocab_size = n_vocab + len(SPECIALS) - 1
        ranks = _parse(content)
        wrong = [i for i in (*ranks.values(), end_of_text) if not 0 <= i < n_vocab]
        if wrong:
            raise ValueError(f"it has a token with the id {wrong[0]:,}, but its ids are 0 to {n_vocab - 1:,}")
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(self._specials)
        )

    @classmethod
    def published(cls, name: str) -> TiktokenTokenizer:
        """Create the tokenizer of one of OpenAI's published vocabularies, such as r50k_base.

        `name` is a key of the dict DEFINITIONS. The tokens of the vocabulary and their ids are in a rank file, which is read
        from the cache or downloaded. Raises UserError if it can be neither read nor downloaded.
        """
        definition = DEFINITIONS[name]
        content = fetch(
            f"{RANKS_URL}/{name}.tiktoken",
            cache_folder("tiktoken") / f"{name}.tiktoken",
            definition.sha256,
            instead="use tokenizer=spm_16k, which needs no network",
        )
        return cls(name, definition.pattern, content, definition.end_of_text, definition.n_vocab)

    @classmethod
    def load(cls, folder: Path) -> TiktokenTokenizer:
        """Load the tokenizer that `save` wrote into `folder`."""
        facts = read_json(folder / "tokenizer.json", folder.parent)
        content = read_bytes(folder / RANKS, folder.parent)
        return cls(facts["name"], facts["pattern"], content, facts["end_of_text"], facts["n_vocab"])

    @property
    def hash(self) -> str:
        """Return the sha256 of the name, the pattern, the special tokens and the rank file."""
        head = f"tiktoken\n{self.name}\n{self.pattern}\n{self._specials}\n"
        return hashlib.sha256(head.encode("utf-8") + self._content).hexdigest()

    def ranks(self) -> dict[bytes, int]:
        """Return the id of each token that is not special.

        Of all possible merges, the encoder applies the one whose result has the lowest id.
        """
        return _parse(self._content)

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""
        return self._specials[token]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the id of <|endoftext|>, which ends a text."""
        return (self.special_id(END_OF_TEXT),)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids; a special token written in it is encoded as ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to ids."""
        return [self._encoding.encode_ordinary(text) for text in texts]

    def bytes_of(self, i: int) -> bytes:
        """Return the bytes of an id; empty for special tokens and for the few unused ids of a vocabulary."""
        if i in self._specials.values():
            return b""
        try:
            return self._encoding.decode_single_token_bytes(i)
        except KeyError:
            return b""

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Return the number of text bytes of each token (V,): 0 for special tokens and unused ids."""
        return np.array([len(self.bytes_of(i)) for i in range(self.vocab_size)], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the rank file to `folder`/ranks.tiktoken, and the other constructor arguments to `folder`/tokenizer.json."""
        with whole_file(folder / RANKS) as file:
            file.write(self._content)
        facts = {"name": self.name, "pattern": self.pattern, "end_of_text": self._specials[END_OF_TEXT]}
        write_json(folder / "tokenizer.json", {"kind": self.kind, "hash": self.hash, **facts, "n_vocab": self._n_vocab})


def published(name: str) -> TiktokenTokenizer:
    """Create the tokenizer of one of OpenAI's published vocabularies, such as r50k_base.

    Raises UserError if the name is unknown, or if the vocabulary's rank file, which lists the tokens with their ids, can be
    neither read nor downloaded.
    """
    if name not in DEFINITIONS:
        raise UserError(
            f"tokenizer.name={name} is not a supported vocabulary of tiktoken: choose from {', '.join(DEFINITIONS)}"
        )
    return TiktokenTokenizer.published(name)
