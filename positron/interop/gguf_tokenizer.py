"""Write a tokenizer into a GGUF file: either as SentencePiece pieces with scores, or as byte-level tokens with merges."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, assert_never

from positron.interop.huggingface import chat_template
from positron.interop.tokenizer_json import PATTERNS, byte_level, refuse_repeated_tokens, tiktoken_merges
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.conversation import END
from positron.text.library_json import BYTE_PIECE, LibraryTokenizer, steps_of
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import TiktokenTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

logger = logging.getLogger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # GGUF's numbers for types of tokens
_TYPES = {"normal": _NORMAL, "unknown": _UNKNOWN, "control": _CONTROL, "byte": _BYTE}
_PRE_TOKENIZERS = {"r50k_base": "gpt-2", "cl100k_base": "llama-bpe"}


def _pattern_of(digits: str) -> str:
    """Return the regular expression with which Llama 3 or Qwen2 splits a text.

    `digits`: the part of the expression for digits, in which the two models differ.
    """
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# llama.cpp's names of the ways to split a text, by the steps of tokenizer.json; each was compared on 2,000 lines
_BYTES = ("ByteLevel", False, False)  # no space is put first, no pattern
_GPT2 = ("ByteLevel", False, True)  # the pattern of GPT-2
_SPLITTING: dict[tuple[tuple[Any, ...], ...], str] = {
    (_GPT2,): "gpt-2",
    (("Digits", True), _GPT2): "smollm",
    (("Split", PATTERNS["r50k_base"], "Isolated", False), _BYTES): "gpt-2",
    (("Split", PATTERNS["cl100k_base"], "Isolated", False), _BYTES): "llama-bpe",
    (("Split", _pattern_of(r"\p{N}{1,3}"), "Isolated", False), _BYTES): "llama-bpe",
    (("Split", _pattern_of(r"\p{N}"), "Isolated", False), _BYTES): "qwen2",
}
_LACKS_BYTES = "llama.cpp needs one token for each byte, and the imported tokenizer lacks such tokens: use --to hf"


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, *, is_chat: bool) -> None:
    """Write the metadata that describes a tokenizer and, if `is_chat`, the chat template.

    Raises UserError if llama.cpp does not have such a tokenizer, or if it is not known whether llama.cpp gives the same tokens.
    """
    match tokenizer:
        case SentencePieceTokenizer():
            pieces = tokenizer.pieces()
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([piece.text for piece in pieces])
            writer.add_token_scores([piece.score for piece in pieces])
            writer.add_token_types([_TYPES[piece.kind] for piece in pieces])
            writer.add_unk_token_id(0)
        case TiktokenTokenizer():
            if tokenizer.name not in _PRE_TOKENIZERS:
                raise UserError(
                    f"a run with tokenizer.name={tokenizer.name} cannot be written as GGUF, because it is not known whether "
                    "llama.cpp gives the same tokens: use --to safetensors, or train a run with tokenizer=gpt2 or "
                    "tokenizer=cl100k_base"
                )
            _add_byte_level(tokenizer, writer, _PRE_TOKENIZERS[tokenizer.name], tiktoken_merges(tokenizer.ranks()))
        case LibraryTokenizer():
            _add_library(tokenizer, writer)
        case CharTokenizer():
            _add_byte_level(tokenizer, writer, "gpt-2", _character_merges(tokenizer))
        case _:
            raise UserError(
                f"llama.cpp has no tokenizer like tokenizer.kind={tokenizer.kind}: use --to hf, or train a run with "
                "tokenizer=spm_16k"
            )
    writer.add_bos_token_id(tokenizer.special_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.end_ids[0])
    writer.add_add_bos_token(True)
    # if this key is missing, llama.cpp puts a space before every text
    writer.add_add_space_prefix(tokenizer.puts_space_first)
    if is_chat:
        writer.add_eot_token_id(tokenizer.special_id(END))
        writer.add_chat_template(chat_template(tokenizer))


def _add_library(tokenizer: LibraryTokenizer, writer: GGUFWriter) -> None:
    """Write an imported vocabulary, which consists of SentencePiece pieces or of byte-level tokens.

    A byte-level tokenizer splits a text by a rule before it merges bytes. llama.cpp knows such rules by names, which
    tokenizer.json does not contain. Raises UserError if the name of the rule is not known (see `pre_tokenizer_name`), or if
    llama.cpp would not encode a text with pieces as this tokenizer does (see `pieces_fit`). Also raises UserError if the
    vocabulary lacks a token for a byte, if the tokenizer does not merge pairs (Unigram), and the error of
    `refuse_repeated_tokens`.
    """
    refuse_repeated_tokens(tokenizer)
    facts = json.loads(tokenizer.content)
    if facts["model"].get("type", "BPE") != "BPE":  # old files do not name the type of BPE
        raise UserError(
            f"the imported tokenizer is a {facts['model']['type']} model, and a GGUF file can be written only for byte-pair "
            "encoding (BPE): use --to hf, and convert the exported folder with llama.cpp's convert_hf_to_gguf.py"
        )
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
        for merge in facts["model"].get("merges", ())
    ]
    specials = {tokenizer.special_id(token): token for token in SPECIALS}
    tokens = [tokenizer.token(i) or specials.get(i, f"<|unused_{i}|>") for i in range(tokenizer.vocab_size)]
    added = {token["id"] for token in facts.get("added_tokens") or ()}
    control = set(specials) | {token["id"] for token in facts.get("added_tokens") or () if token.get("special")}
    match tokenizer.spelling:
        case "pieces":
            if not pieces_fit(facts):
                raise UserError(
                    "the imported tokenizer changes or splits texts by another rule than Llama 2 and Mistral, so llama.cpp "
                    "would read other tokens: use --to hf"
                )
            if not {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens):
                raise UserError(_LACKS_BYTES)
            if tokenizer.puts_space_first and facts.get("pre_tokenizer"):
                logger.info(
                    "llama.cpp puts a space before every text, so a text that begins with a space gets one more token there"
                )
            ranks: dict[str, int] = {}
            for rank, (left, right) in enumerate(merges):
                ranks.setdefault(left + right, rank)
            kinds = [_kind_of_piece(token, i in control, i in added) for i, token in enumerate(tokens)]
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_list(tokens)
            writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
            writer.add_token_types(kinds)
            writer.add_unk_token_id(0)
        case "bytes":
            pre = pre_tokenizer_name(facts)
            if pre is None:
                raise UserError(
                    "the imported tokenizer splits texts by another rule than GPT-2, SmolLM, Qwen2 and Llama 3, and Positron "
                    "does not know llama.cpp's name for this rule: use --to hf, and convert the exported folder with "
                    "llama.cpp's convert_hf_to_gguf.py"
                )
            kinds = [_NORMAL if tokenizer.token(i) is not None else _UNUSED for i in range(len(tokens))]
            for i in (*added, *control):  # special tokens are among both
                kinds[i] = _CONTROL if i in control else _USER_DEFINED
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(tokens)
            writer.add_token_types(kinds)
            writer.add_token_merges([" ".join(merge) for merge in merges])
        case "characters":
            raise UserError(_LACKS_BYTES)
        case _:
            assert_never(tokenizer.spelling)


def pieces_fit(facts: dict[str, Any]) -> bool:
    """Tell whether llama.cpp gives the tokens of a tokenizer.json whose vocabulary consists of SentencePiece pieces.

    `facts`: the content of tokenizer.json. llama.cpp replaces each space by ▁, and does not split the text. It can put a space
    before the text; then it also puts one after each added token. With Metaspace, one difference is accepted: llama.cpp puts
    a space first even if the text begins with a space.
    """
    model = facts["model"]
    changes = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if not model.get("byte_fallback") or any(model.get(key) for key in changes):
        return False
    added = [token for token in facts.get("added_tokens") or () if not token.get("special")]
    steps = [_settings(step) for key in ("normalizer", "pre_tokenizer") for step in steps_of(facts.get(key))]
    match steps:
        case [("Replace", " ", "▁")] | [("Metaspace", "▁", "always" | "never", False)]:
            return True
        case [("Prepend", "▁"), ("Replace", " ", "▁")]:
            return not any(token.get("normalized") for token in added)
        case [("Metaspace", "▁", "first", False)]:
            return not added
        case _:
            return False


def pre_tokenizer_name(facts: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for the way in which a byte-level tokenizer.json splits a text, or None if no name is known.

    `facts`: the content of tokenizer.json. The pre-tokenizer's steps and their settings must be exactly those of a known model.
    The normalizer NFC is accepted although llama.cpp does not have it: a text that is not in NFC gets other tokens in
    llama.cpp.
    """
    normalizer = facts.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return None
    step = facts.get("pre_tokenizer") or {}
    steps = tuple(_settings(part) for part in step.get("pretokenizers") or [step])
    return next((name for known, name in _SPLITTING.items() if known == steps), None)


def _settings(step: dict[str, Any]) -> tuple[Any, ...]:
    """Return type and settings of a step of a normalizer or pre-tokenizer.

    A missing setting gets the default of the tokenizers library.
    """
    match step:
        case {"type": "ByteLevel"}:
            return ("ByteLevel", step.get("add_prefix_space", True), step.get("use_regex", True))
        case {"type": "Digits"}:
            return ("Digits", step.get("individual_digits", False))
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            return ("Split", pattern, step.get("behavior"), step.get("invert", False))
        case {"type": "Prepend"}:
            return ("Prepend", step.get("prepend"))
        case {"type": "Replace", "pattern": {"String": str(pattern)}}:
            return ("Replace", pattern, step.get("content"))
        case {"type": "Metaspace"}:
            settings = (step.get("replacement"), step.get("prepend_scheme", "always"), step.get("split", True))
            return ("Metaspace", *settings)
        case _:
            return (str(step),)


def _kind_of_piece(token: str, is_control: bool, is_added: bool) -> int:
    if token == "<unk>":
        return _UNKNOWN
    if is_control or token.startswith("<|unused_"):
        return _CONTROL
    if is_added:
        return _USER_DEFINED
    return _BYTE if BYTE_PIECE.fullmatch(token) else _NORMAL


def _character_merges(tokenizer: CharTokenizer) -> list[tuple[bytes, bytes]]:
    """Return the merges that join the bytes of each character, from left to right.

    Without them, llama.cpp would drop every character that has several bytes. If all characters have a single byte, the list
    contains one merge that never applies, because the file must contain a merge.
    """
    spelled = [character.encode("utf-8") for character in tokenizer.characters]
    merges = {(text[:i], text[i : i + 1]): None for text in spelled for i in range(1, len(text))}
    return list(merges) or [(b"\xff", b"\xff")]


def _add_byte_level(tokenizer: Tokenizer, writer: GGUFWriter, pre: str, merges: list[tuple[bytes, bytes]]) -> None:
    specials = {tokenizer.special_id(token): token for token in SPECIALS}
    tokens, types = [], []
    for i in range(tokenizer.vocab_size):
        spelled = tokenizer.bytes_of(i)
        if i in specials:
            token, kind = specials[i], _CONTROL
        elif i == 0 and tokenizer.has_unknown:
            token, kind = "<unk>", _UNKNOWN
        elif not spelled:
            token, kind = f"<|unused_{i}|>", _UNUSED
        else:
            token, kind = byte_level(spelled), _NORMAL
        tokens.append(token)
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{byte_level(left)} {byte_level(right)}" for left, right in merges])
