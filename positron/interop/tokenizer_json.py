"""Write a tokenizer as `tokenizer.json`, which Hugging Face's tokenizers library reads without Positron's code.

A text gets the same ids as in Positron, with two exceptions that the format cannot avoid. With a SentencePiece vocabulary, the
character U+2581 is read as a space. And if a text contains the characters of a special token, such as `<|end|>`, they are read
as this token. In transformers, `tokenizer(text, split_special_tokens=True)` reads them as ordinary text.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.library_json import BYTE_CHARACTERS, LibraryTokenizer, steps_of
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import DEFINITIONS, TiktokenTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, UNKNOWN, Tokenizer

# tiktoken's patterns in the regular expressions of the tokenizers library. That library reads `{1,3}+` as a repeated group
# and `$` as the end of a line, so the pattern of cl100k_base is written in another way. Other vocabularies are refused,
# because it was not tested whether they give the same ids.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
PATTERNS = {"r50k_base": DEFINITIONS["r50k_base"].pattern, "cl100k_base": _CL100K}
# instead of \w, which in this library lacks the newest letters and includes combining marks, unlike in Python
_WORDS = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s\x1c-\x1f]|[\s\x1c-\x1f]+"


def tokenizer_json(tokenizer: Tokenizer, *, is_chat: bool = False) -> dict[str, Any]:
    """Return the content of tokenizer.json. Raises UserError for a vocabulary that the format cannot express.

    `is_chat`: true if the model was trained to answer messages.
    """
    match tokenizer:
        case LibraryTokenizer():
            facts = _with_markers(tokenizer)
            if is_chat:
                _put_space_before_each_message(facts)
            return facts
        case SentencePieceTokenizer():
            parts = _sentencepiece(tokenizer)
        case TiktokenTokenizer():
            parts = _tiktoken(tokenizer)
        case CharTokenizer():
            parts = _char(tokenizer)
        case WordTokenizer():
            parts = _word(tokenizer)
        case _:
            raise UserError(
                f"tokenizer.kind={tokenizer.kind} cannot be written as tokenizer.json: use --to safetensors"
            )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token) for i, token in sorted(_special_ids(tokenizer).items())],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _beginning(tokenizer),
        **parts,
    }


def _beginning(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the post-processor that begins a text, as in training, with <|endoftext|>, which a vocabulary may spell `<s>`."""
    i = tokenizer.special_id(END_OF_TEXT)
    token = spelled(tokenizer, i)
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, *texts],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


def _with_markers(tokenizer: LibraryTokenizer) -> dict[str, Any]:
    """Return the content of the imported tokenizer.json, extended by the special tokens that the import added.

    Ids beyond the imported vocabulary that still have no token get a placeholder such as `<|unused_300|>`. Truncation, padding
    and the dropout of merges are switched off, as in Positron. If the file does not put the token that begins a text before a
    text, as Positron does, its post-processor is replaced. Raises the error of `refuse_repeated_tokens`.
    """
    refuse_repeated_tokens(tokenizer)
    facts: dict[str, Any] = {**json.loads(tokenizer.content), "truncation": None, "padding": None}
    if "dropout" in facts["model"]:
        facts["model"]["dropout"] = None
    added = facts.get("added_tokens") or []
    size = max([len(facts["model"]["vocab"]) - 1, *(token["id"] for token in added)]) + 1
    ids = _special_ids(tokenizer)
    ids = {i: token for i, token in ids.items() if i >= size}
    fillers = {i: f"<|unused_{i}|>" for i in range(size, tokenizer.vocab_size) if i not in ids}
    facts["added_tokens"] = [*added, *(_added(i, token) for i, token in sorted({**ids, **fillers}.items()))]
    if not tokenizer.file_begins_texts:
        facts["post_processor"] = _beginning(tokenizer)
    return facts


def _put_space_before_each_message(facts: dict[str, Any]) -> None:
    """Change the content of a tokenizer.json, so that each message of a chat gets the same ids as in Positron.

    Positron encodes each message alone, while other programs encode the whole chat, in which special tokens stand before each
    message. If a Metaspace step puts a space only before the first part of a text, it is changed to put a space before each
    part between special tokens. A step that follows other steps is left as it is, because these may divide a message.
    """
    step = next(iter(steps_of(facts.get("pre_tokenizer"))), {})
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
        step["prepend_scheme"] = "always"


def refuse_repeated_tokens(tokenizer: LibraryTokenizer) -> None:
    """Raise UserError if a special token that the import added is also a token of the imported vocabulary, with another id.

    Other programs find a token by its name, so they would read the other id.
    """
    added = {token for token in SPECIALS if tokenizer.token(tokenizer.special_id(token)) is None}
    repeated = next((token for i in range(tokenizer.vocab_size) if (token := tokenizer.token(i)) in added), None)
    if repeated is not None:
        raise UserError(
            f"the vocabulary of this run has the token {repeated} twice, so other programs would read a wrong id: use "
            "--to safetensors, or, if an older version of Positron imported the model, import it again under another --name"
        )


def _special_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the special tokens by their ids.

    In a tiktoken vocabulary, some ids have no token. Each of these ids gets a placeholder such as `<|unused_50300|>`, because
    the tokens after a gap would otherwise get other ids.
    """
    ids = {tokenizer.special_id(token): token for token in SPECIALS}
    if isinstance(tokenizer, TiktokenTokenizer):
        unused = (i for i in range(tokenizer.vocab_size) if i not in ids and not tokenizer.bytes_of(i))
        ids |= {i: f"<|unused_{i}|>" for i in unused}
    return ids


def spelled(tokenizer: Tokenizer, i: int) -> str:
    """Return the special token with the id `i` as the vocabulary spells it.

    An imported vocabulary may have its own spelling, such as `<s>` instead of `<|endoftext|>`.
    """
    token = tokenizer.token(i) if isinstance(tokenizer, LibraryTokenizer) else None
    return token or next((name for name in SPECIALS if tokenizer.special_id(name) == i), f"<|unused_{i}|>")


def _added(i: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": i, "content": token, **flags}


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": vocab,
        "merges": merges,
    }


def _decoder(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    pieces = tokenizer.pieces()
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    return {
        "normalizer": _replace(" ", "▁"),
        "model": _bpe(vocab, sentencepiece_merges(tokenizer), unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        "decoder": _decoder(_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
    }


def sentencepiece_merges(tokenizer: SentencePieceTokenizer) -> list[tuple[str, str]]:
    """Return the merges with which BPE encodes texts as this SentencePiece vocabulary does, in the order of their priority.

    SentencePiece joins the two neighbours that form the piece with the highest score. A merge names the two neighbours, so
    a piece gets one merge for each way to divide it into two pieces. Control, unknown and byte pieces are never joined.
    """
    pieces = enumerate(tokenizer.pieces())
    return ranked_merges([(piece.text, piece.score, i) for i, piece in pieces if piece.kind == "normal"])


def ranked_merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Return each pair of pieces that, joined together, forms one of `pieces`, in the order of priority.

    A piece is given as (text, score, id). Pairs that form a piece with a higher score come first.
    """
    normal = {text: (score, i) for text, score, i in pieces}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, (score, _) in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                ranked.append((-score, normal[left][1], normal[right][1], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def piece_tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], specials: dict[int, str], *, dummy_prefix: bool
) -> dict[str, Any]:
    """Return the content of a tokenizer.json for SentencePiece pieces.

    `vocab`: the id of each piece. `merges`: the merges of BPE in the order of their priority. `specials`: the special tokens by
    their ids. `dummy_prefix`: true to put a space before each text.
    """
    prefix: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if dummy_prefix else []
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if dummy_prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token) for i, token in specials.items()],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, _replace(" ", "▁")]},
        "pre_tokenizer": None,
        "post_processor": None,
        "model": _bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        "decoder": _decoder(_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip),
    }


def _tiktoken(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    if tokenizer.name not in PATTERNS:
        raise UserError(
            f"tokenizer.name={tokenizer.name} cannot be written as tokenizer.json: use --to safetensors, or train a run with "
            "tokenizer=gpt2 or tokenizer=cl100k_base"
        )
    ranks = tokenizer.ranks()
    vocab = {byte_level(token): rank for token, rank in ranks.items()}
    merges = [(byte_level(left), byte_level(right)) for left, right in tiktoken_merges(ranks)]
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split(PATTERNS[tokenizer.name]), byte_step]},
        "model": _bpe(vocab, merges, ignore_merges=True),
        "decoder": byte_step,
    }


def tiktoken_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return one merge for each token of several bytes, in the order of the tokens' ranks.

    `ranks`: the rank of each token, which is also its id. The merge is the pair of tokens that byte-pair encoding joins in its
    last step to form the token. Tokens that byte-pair encoding cannot form are left out.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            best = min(joined)
            if best >= rank:
                break
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def byte_level(token: bytes) -> str:
    """Write the bytes of a token as printable characters, one for each byte, as GPT-2 does."""
    return "".join(BYTE_CHARACTERS[b] for b in token)


def _char(tokenizer: CharTokenizer) -> dict[str, Any]:
    vocab = {"<unk>": 0, **{token: tokenizer.special_id(token) for token in SPECIALS}}
    vocab |= {character: 1 + len(SPECIALS) + i for i, character in enumerate(tokenizer.characters)}
    return {
        "model": _bpe(vocab, [], unk_token="<unk>"),
        "decoder": _decoder(_replace("<unk>", UNKNOWN), {"type": "Fuse"}),
    }


def _word(tokenizer: WordTokenizer) -> dict[str, Any]:
    vocab = {"<unk>": 0, **{token: tokenizer.special_id(token) for token in SPECIALS}}
    vocab |= {piece: 1 + len(SPECIALS) + i for i, piece in enumerate(tokenizer.pieces)}
    return {
        "pre_tokenizer": _split(_WORDS),
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        "decoder": _decoder(_replace("<unk>", UNKNOWN), {"type": "Fuse"}),
    }
