"""Use the tokenizer of an imported model: its `tokenizer.json`, with Hugging Face's tokenizers library.

If the file lacks special tokens for chat (see `SPECIALS`), these tokens get the ids after the last id of the file, and the
import adds rows to the embedding. `<|endoftext|>` is Positron's name for the token with which the imported model begins each
text, such as `<s>`. This token also ends a text, and so do the other tokens of `LibraryTokenizer.end_ids`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from positron.config import TokenizerKind
from positron.system.disk import read_bytes, read_json, whole_file, write_json
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, UNKNOWN

VOCABULARY = "vocabulary.json"  # the library's file, in a run's tokenizer folder
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
Spelling = Literal["bytes", "pieces", "characters"]


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in the tokens of byte-level vocabularies (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


class LibraryTokenizer:
    """Encode and decode text with a `tokenizer.json` of the tokenizers library.

    Special tokens that are written in a text, such as `<|end|>`, are encoded as ordinary text. The attribute `puts_space_first`
    tells whether the tokenizer puts a space before each text.
    """

    kind: TokenizerKind = "huggingface"

    def __init__(
        self, content: bytes, specials: dict[str, int], vocab_size: int, ends: tuple[int, ...] | None = None
    ) -> None:
        """Load a tokenizer.json from its bytes, `content`.

        `specials`: the id of each special token, `<|endoftext|>` and the four tokens for chat (SPECIALS). `vocab_size`: the
        number of rows of the embedding. `ends`: the ids that end a text. Positron puts the first of them after each document of
        a corpus. If `ends` is None, only the id of `<|endoftext|>` ends a text.

        Raises UserError if the tokenizers library is not installed, and ValueError if the file cannot be used.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                "an imported model's tokenizer needs the package tokenizers: pip install 'positron[hf]'"
            ) from error
        self._content, self._specials, self.vocab_size = content, specials, vocab_size
        self._ends = (specials[END_OF_TEXT],) if ends is None else ends
        try:
            self._library = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"the tokenizers library cannot read it ({error})") from error
        ids = {*self._library.get_vocab(with_added_tokens=True).values(), *specials.values(), *self._ends}
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(
                f"it has a token with the id {wrong:,}, but the ids of the model are 0 to {vocab_size - 1:,}"
            )
        facts = json.loads(content)
        self._spelling = spelling_of(facts)
        self._silent = {token["id"] for token in facts.get("added_tokens") or () if token.get("special")}
        self._silent |= {*specials.values(), *self._ends}
        changed = _without_special_tokens(facts, self._silent)
        self._encoder = self._library if changed == facts else Tokenizer.from_str(json.dumps(changed))
        for library in (self._library, self._encoder):
            if hasattr(library.model, "dropout"):
                library.model.dropout = None  # random merges would be left out, so the ids of a text would vary
            library.encode_special_tokens = True  # a text that spells a special token stays text
            library.no_truncation()
            library.no_padding()
        model = facts.get("model") or {}
        unknown = model.get("unk_token")
        # a Unigram model names the id of its unknown token, the others name the token
        self._unknown = model.get("unk_id") if unknown is None else self._library.token_to_id(unknown)
        first = self._encoder.encode("a", add_special_tokens=False).ids
        self.puts_space_first = bool(first) and self.bytes_of(first[0]).startswith(b" ")
        self.has_unknown = self._unknown == 0 and self._unknown not in self._silent

    @classmethod
    def load(cls, folder: Path) -> LibraryTokenizer:
        """Load the tokenizer that `save` wrote into `folder`."""
        facts = read_json(folder / "tokenizer.json", folder.parent)
        specials = {token: int(facts["specials"][token]) for token in SPECIALS}
        ends = tuple(int(i) for i in facts["ends"]) if "ends" in facts else None
        return cls(read_bytes(folder / VOCABULARY, folder.parent), specials, int(facts["vocab_size"]), ends)

    @property
    def hash(self) -> str:
        """Return one sha256 of everything that determines the tokenizer.

        The hash covers tokenizer.json, the vocabulary size, the ids of the special tokens, and the ids that end a text.
        """
        head = f"huggingface\n{sorted(self._specials.items())}\n{self.vocab_size}\n"
        if self._ends != (self._specials[END_OF_TEXT],):
            head += f"{self._ends}\n"
        return hashlib.sha256(head.encode("utf-8") + self._content).hexdigest()

    @property
    def content(self) -> bytes:
        """Return the bytes of the tokenizer.json that was imported."""
        return self._content

    @property
    def file_begins_texts(self) -> bool:
        """Tell whether other programs, which follow the whole file, put `<|endoftext|>` before a text and nothing after it."""
        ids: list[int] = self._library.encode("a").ids
        return ids == [self._specials[END_OF_TEXT], *self.encode("a")]

    @property
    def keeps_spaces(self) -> bool:
        """Tell whether the tokens of a text contain the spaces between its words."""
        normalizer, pre_tokenizer = self._library.normalizer, self._library.pre_tokenizer
        text = "a b" if normalizer is None else normalizer.normalize_str("a b")
        parts = [text] if pre_tokenizer is None else [part for part, _ in pre_tokenizer.pre_tokenize_str(text)]
        return "ab" not in "".join(parts)

    @property
    def spelling(self) -> Spelling:
        """Return how the vocabulary writes its tokens.

        "bytes": a printable character stands for each byte, as in GPT-2. "pieces": ▁ stands for a space, as in SentencePiece.
        "characters": the tokens are plain text.
        """
        return self._spelling

    def token(self, i: int) -> str | None:
        """Return the token of the id `i` as the vocabulary writes it, or None if the vocabulary lacks this id."""
        token: str | None = self._library.id_to_token(i)
        return token

    def special_id(self, token: str) -> int:
        """Return the id of `token`, one of SPECIALS: <|endoftext|>, <|system|>, <|user|>, <|assistant|> or <|end|>."""
        return self._specials[token]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text. Positron puts the first of them after each document of a corpus."""
        return self._ends

    def encode(self, text: str) -> list[int]:
        """Encode a text; a special token written in it is encoded as ordinary text."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Convert each text to ids, as `encode` does, in parallel in the library's threads."""
        return [encoding.ids for encoding in self._encoder.encode_batch(texts, add_special_tokens=False)]

    def bytes_of(self, i: int) -> bytes:
        """Return the UTF-8 bytes of an id: U+FFFD for the unknown token, b"" for special tokens and ids without a token."""
        token = self._library.id_to_token(i)
        if i == self._unknown and i not in self._specials.values():
            return UNKNOWN.encode("utf-8")
        if token is None or i in self._silent:
            return b""
        match self._spelling:
            case "bytes":
                if all(character in _BYTE_OF for character in token):
                    return bytes(_BYTE_OF[character] for character in token)
            case "pieces":
                if byte := BYTE_PIECE.fullmatch(token):
                    return bytes([int(byte[1], 16)])
                token = token.replace("▁", " ")
            case "characters":
                pass
            case _:
                assert_never(self._spelling)
        return str(token).encode("utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; special tokens are left out, and bytes that are not valid UTF-8 become U+FFFD.

        If the tokenizer puts a space before each text, one space at the beginning is removed.
        """
        text = b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.puts_space_first else text

    def token_bytes(self) -> np.ndarray:
        """Return the number of text bytes of each id (V,): 0 for special tokens, 3 for the unknown token (U+FFFD)."""
        return np.array([len(self.bytes_of(i)) for i in range(self.vocab_size)], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the imported file to `folder`/vocabulary.json, and the settings for `load` to `folder`/tokenizer.json."""
        with whole_file(folder / VOCABULARY) as file:
            file.write(self._content)
        facts = {"kind": self.kind, "hash": self.hash, "specials": self._specials, "vocab_size": self.vocab_size}
        facts["ends"] = list(self._ends)
        write_json(folder / "tokenizer.json", facts)


def spelling_of(facts: dict[str, Any]) -> Spelling:
    """Return how the vocabulary of a tokenizer.json writes its tokens; `facts` is the content of this file.

    "bytes": a printable character stands for each byte, as in GPT-2. "pieces": ▁ stands for a space, as in SentencePiece.
    "characters": the tokens are plain text. Raises ValueError for WordPiece and for BPE with the decoder BPEDecoder, because
    their tokens do not contain the spaces between words.
    """
    kinds = {
        step.get("type") for key in ("decoder", "pre_tokenizer", "normalizer") for step in steps_of(facts.get(key))
    }
    if (facts.get("model") or {}).get("type") == "WordPiece":
        raise ValueError(
            "WordPiece vocabularies are not supported, because their tokens do not contain the spaces between words"
        )
    if "BPEDecoder" in kinds:
        raise ValueError(
            "a vocabulary whose tokens mark the ends of words (decoder BPEDecoder) is not supported, because its tokens do "
            "not contain the spaces between words; byte-level BPE is supported"
        )
    if "ByteLevel" in kinds:
        return "bytes"
    replaced = [step.get("pattern", {}).get("String") for step in steps_of(facts.get("decoder"))]
    if kinds & {"ByteFallback", "Metaspace"} or "▁" in replaced:
        return "pieces"
    return "characters"


def _without_special_tokens(facts: dict[str, Any], special_ids: set[int]) -> dict[str, Any]:
    """Return a changed tokenizer.json with which no text gets one of `special_ids`. Other texts keep their tokens.

    `facts`: the content of tokenizer.json, which is not modified. The result is equal to it if nothing must be changed. The
    library's option `encode_special_tokens` is not enough: it holds only for added tokens that are marked as special, and the
    model can also form such a token from the characters of a text. The result may call a special token by another name.
    """
    model, added = dict(facts.get("model") or {}), facts.get("added_tokens") or []
    tokens = {token["content"] for token in added if token["id"] in special_ids} - {model.get("unk_token")}
    if "merges" in model:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        is_kept = [left + right not in tokens and left not in tokens and right not in tokens for left, right in merges]
        model["merges"] = list(itertools.compress(model["merges"], is_kept))
    if "merges" not in model or model.get("ignore_merges"):  # such a model looks for parts of a text in its vocabulary
        vocab = model.get("vocab") or {}
        entries = vocab.items() if isinstance(vocab, dict) else vocab
        # renamed at random, so that no text contains the name; without the entry, other tokens would get other ids
        names = {token: secrets.token_hex() for token, _ in entries if token in tokens}
        renamed = [[names.get(token, token), value] for token, value in entries]
        model["vocab"] = dict(renamed) if isinstance(vocab, dict) else renamed
        added = [token for token in added if token["content"] not in names]
    added = [{**token, "special": True} if token["id"] in special_ids else token for token in added]
    return {**facts, "model": model, "added_tokens": added}


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of `part`, which is the decoder, pre-tokenizer or normalizer of a tokenizer.json.

    Only a part of the type Sequence has several steps. Returns an empty list if `part` is None.
    """
    if part is None:
        return []
    inner = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
    return [part] if inner is None else [step for inner_part in inner for step in steps_of(inner_part)]


def first_token(facts: dict[str, Any], *, config: dict[str, Any]) -> int | None:
    """Return the id of the token that begins each text, or None if it is unknown.

    `facts`: the content of tokenizer.json. `config`: the content of config.json. Returns the first of these ids
    that exists: the id of `<|endoftext|>` in `facts`, bos_token_id in `config`, eos_token_id in `config`.
    """
    for token in facts.get("added_tokens") or ():
        if token["content"] == END_OF_TEXT:
            return int(token["id"])
    return next((i for key in ("bos_token_id", "eos_token_id") for i in _ids(config.get(key))), None)


def ends_of_text(begin: int, *, config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that end a text: first eos_token_id of `config`, then eos_token_id of `generation`, then `begin`.

    `config` and `generation`: the contents of config.json and generation_config.json. `begin`: the id that begins a text; it
    also ends one, because it begins the next. Positron writes the first id of the result after each document, and the model
    was trained with the ids of `config`, so these come first.
    """
    return tuple(dict.fromkeys([*_ids(config.get("eos_token_id")), *_ids(generation.get("eos_token_id")), begin]))


def _ids(value: Any) -> list[int]:
    """Return the ids of a setting that holds one id, a list of ids, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]
