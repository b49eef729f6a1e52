"""Describe a tokenizer as JSON for `static/tokenizer.js`, which encodes and decodes like the tokenizers of `positron.text`."""

from __future__ import annotations

import json
from typing import Any

from positron.interop.tokenizer_json import PATTERNS
from positron.system.commands import command
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.library_json import BYTE_CHARACTERS, LibraryTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import DEFINITIONS, TiktokenTokenizer
from positron.text.tokenizer import SPECIALS, Tokenizer

# Patterns that static/tokenizer.js also has as JavaScript's regular expressions, and their names there. A pattern must be
# exactly equal: for another one, JavaScript's result was never compared with Python's, so it is refused.
_PUBLISHED = {definition.pattern: name.partition("_")[0] for name, definition in reversed(DEFINITIONS.items())}
_PUBLISHED[DEFINITIONS["r50k_base"].pattern] = "r50k"  # p50k_base has the same pattern
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LIBRARY = {  # the same for files of the tokenizers library
    PATTERNS["r50k_base"]: "r50k",
    PATTERNS["cl100k_base"]: "cl100k",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}{_REST}": "llama3",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{_REST}": "qwen2",
}


def page_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe a tokenizer as a dict for JSON, the argument of the function `createTokenizer` in static/tokenizer.js.

    Raises UserError for a tokenizer that tokenizer.js does not implement.
    """
    facts: dict[str, Any] = {
        "kind": tokenizer.kind,
        "specials": {token: tokenizer.special_id(token) for token in SPECIALS},
        "vocab_size": tokenizer.vocab_size,
    }
    match tokenizer:
        case CharTokenizer():
            return {**facts, "first": 1 + len(SPECIALS), "characters": tokenizer.characters}
        case WordTokenizer():
            return {**facts, "first": 1 + len(SPECIALS), "pieces": tokenizer.pieces}
        case SentencePieceTokenizer():
            return {**facts, **_sentencepiece(tokenizer)}
        case TiktokenTokenizer():
            return {**facts, **_tiktoken(tokenizer)}
        case LibraryTokenizer():
            return {**facts, **_library(tokenizer)}
        case _:
            raise _refused(f"tokenizer.kind={tokenizer.kind}")


def _refused(reason: str) -> UserError:
    return UserError(
        f"an HTML file (--html) cannot encode text with the tokenizer of this run ({reason}): use {command('look')} "
        f"without --html, or {command('serve')}"
    )


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the texts of the pieces of the vocabulary, their kinds, and the ranks of their scores.

    A kind is written as its first letter: n (normal), b (byte), c (control) or u (unknown). Rank 0 belongs to the highest
    score. Pieces with a higher score are merged first.
    """
    pieces = tokenizer.pieces()
    ranks = {score: i for i, score in enumerate(sorted({piece.score for piece in pieces}, reverse=True))}
    return {
        "pieces": [piece.text for piece in pieces],
        "kinds": "".join(piece.kind[0] for piece in pieces),
        "ranks": [ranks[piece.score] for piece in pieces],
    }


def _tiktoken(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    if tokenizer.pattern not in _PUBLISHED:
        raise _refused(f"its pattern {tokenizer.pattern}")
    tokens: list[str | None] = [None] * tokenizer.vocab_size
    for token, i in tokenizer.ranks().items():
        tokens[i] = "".join(BYTE_CHARACTERS[b] for b in token)
    return {"pattern": _PUBLISHED[tokenizer.pattern], "tokens": tokens}


def _library(tokenizer: LibraryTokenizer) -> dict[str, Any]:
    file: dict[str, Any] = json.loads(tokenizer.content)
    model = file["model"]
    if model.get("type") != "BPE":
        raise _refused(f"its model {model.get('type')}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(f"its {key} {model[key]!r}")
    added = file.get("added_tokens") or []
    plain = [token["content"] for token in added if not token.get("special")]
    if plain:
        raise _refused(f"its added token {plain[0]!r}, which is not marked as special")
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    unknown = model.get("unk_token")
    return {
        "spelling": tokenizer.spelling,
        "tokens": tokens,
        "silent": sorted(token["id"] for token in added),
        "merges": merges,
        "unknown": None if unknown is None or unknown not in tokens else tokens.index(unknown),
        "fuse": bool(model.get("fuse_unk")),
        "byte_fallback": bool(model.get("byte_fallback")),
        "whole_words": bool(model.get("ignore_merges")),
        **_steps(file),
    }


def _steps(file: dict[str, Any]) -> dict[str, Any]:
    """Return which steps change or split a text before tokens are merged. `file` is the content of a tokenizer.json.

    The result has these keys:

    - `nfc`: whether the text is normalised to NFC
    - `prefix`: when a space is put before the text: "always", "unless space" (only if it does not begin with one) or None
      (never)
    - `spaces`: whether spaces are replaced by ▁
    - `digits`: whether each digit is separated from the other text
    - `pattern`: the name of the regular expression that splits the text, or None

    Raises UserError for a step that tokenizer.js does not implement.
    """
    steps: dict[str, Any] = {"nfc": False, "prefix": None, "spaces": False, "digits": False, "pattern": None}
    for step in _flat(file.get("normalizer"), "normalizers"):
        match step:
            case {"type": "NFC"} if not steps["spaces"] and not steps["prefix"]:
                steps["nfc"] = True
            case {"type": "Prepend", "prepend": "▁"}:
                steps["prefix"] = "always"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                steps["spaces"] = True
            case _:
                raise _refused(f"its normalizer {step.get('type')}")
    for step in _flat(file.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} if (
                pattern in _LIBRARY and steps["pattern"] is None
            ):
                steps["pattern"] = _LIBRARY[pattern]
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
                pass
            case {"type": "ByteLevel", "add_prefix_space": False} if steps["pattern"] is None:
                steps["pattern"] = "gpt2"
            case {"type": "Digits", "individual_digits": True} if steps["pattern"] is None:
                steps["digits"] = True
            case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
                steps["spaces"] = True
                steps["prefix"] = None if scheme == "never" else "unless space"
            case _:
                raise _refused(f"its pre_tokenizer {step.get('type')}")
    if steps["pattern"] is not None and steps["spaces"]:
        raise _refused("its pattern together with replaced spaces")
    return steps


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Return the list of the steps of `part`, a normalizer or pre-tokenizer: None, one step, or a sequence of steps.

    `inner` is the key under which a sequence has the list of its steps.
    """
    if part is None:
        return []
    return part[inner] if part.get("type") == "Sequence" else [part]
