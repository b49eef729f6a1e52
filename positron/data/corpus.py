"""From a corpus to token files and a tokenizer, each made when it is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from positron.config import DataConfig, TokenizerConfig
from positron.data.open import open_source
from positron.data.shards import SPLITS, TokenFiles, write_tokens
from positron.data.sources import WAIT, Source
from positron.data.stream import open_stream
from positron.data.windows import LONG_WORD
from positron.system.disk import expanded, lock, make_folder, read_json
from positron.system.errors import UserError
from positron.system.formatting import amount
from positron.text.factory import load_tokenizer, train_tokenizer
from positron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

UNKNOWN_SAMPLE = 1_000_000  # tokens in which unknown ones are counted
TOKENIZER_SAMPLE = 4_000_000  # bytes of text that a SentencePiece model is trained on


def prepare(
    data: DataConfig,
    choice: TokenizerConfig,
    tokenizer: Tokenizer | None,
    known: str | None = None,
) -> tuple[Tokenizer, Path]:
    """The tokenizer (`tokenizer`, if a run brings its own) and the folder of token files, both made when missing.

    `known` is the fingerprint of the text that a run was begun with: if that text is gone, or is read otherwise since,
    the token files made of it are used. Two processes that need the same corpus at once make it once: the second waits
    for the first.
    """
    kept = kept_tokens(data, tokenizer, known)
    try:
        source = open_source(data)
    except UserError as error:
        if tokenizer is None or kept is None:
            raise
        logger.info(f"{error}; using the tokens that were made of it, in {kept}")
        return tokenizer, kept
    if tokenizer is not None and kept is not None and known == source.earlier_fingerprint != source.fingerprint:
        return tokenizer, kept
    corpus = make_folder(expanded(data.dir) / source.name)
    with lock(corpus / "lock", lambda: logger.info(f"waiting for another process that prepares {corpus}")):
        if tokenizer is None:
            home = corpus / "-".join(str(part) for part in (choice.kind, choice.name, choice.vocab_size) if part)
            tokenizer = _own_tokenizer(source, choice, home, streams=data.tokens_per_epoch is not None)
        else:
            home = make_folder(corpus / f"tokenizer-{tokenizer.hash[:12]}")
            tokenizer.save(home)
        tokens = corpus / f"tokens-{tokenizer.hash[:12]}"
        if data.tokens_per_epoch is None and not (tokens / "tokens.json").exists():
            size = f"{amount(source.total_bytes)}B of" if source.total_bytes else "the"
            logger.info(f"writing {size} text as tokens to {tokens}")
            write_tokens(source, tokenizer, home, tokens)
            _report(source, tokens, tokenizer)
    if data.tokens_per_epoch is not None:
        return tokenizer, open_stream(data, home)
    return tokenizer, tokens


def kept_tokens(data: DataConfig, tokenizer: Tokenizer | None, known: str | None) -> Path | None:
    """The folder of whole token files of the text with this fingerprint, under this tokenizer."""
    if tokenizer is None or known is None or data.tokens_per_epoch is not None:
        return None
    for header in sorted(expanded(data.dir).glob(f"*/tokens-{tokenizer.hash[:12]}/tokens.json")):
        if read_json(header).get("fingerprint") == known:
            return header.parent
    return None


def _report(source: Source, tokens: Path, tokenizer: Tokenizer) -> None:
    """Say what was read, and warn if the tokenizer does not suit it."""
    train, val = (TokenFiles(tokens, split, tokenizer) for split in SPLITS)
    if summary := source.summary():
        logger.info(f"{train.n_bytes:,} bytes for training, {val.n_bytes:,} for validation; {summary}")
    if tokenizer.kind == "word" and train.n_bytes > LONG_WORD * train.n_tokens:
        logger.warning(
            f"tokenizer=word finds only {train.n_tokens:,} words in {train.n_bytes:,} bytes, because this text "
            "has few blanks between words: take tokenizer=char or tokenizer=spm_4k"
        )
    if tokenizer.has_unknown:
        unknown = float((train.read(0, min(train.n_tokens, UNKNOWN_SAMPLE)) == 0).mean())
        if unknown > 0.01:
            logger.warning(
                f"{unknown:.1%} of the tokens are <unk>, which the {tokenizer.kind} tokenizer does not know: "
                "a larger tokenizer.vocab_size, or tokenizer=spm_16k, loses nothing"
            )


def _own_tokenizer(source: Source, choice: TokenizerConfig, home: Path, streams: bool) -> Tokenizer:
    if (home / "tokenizer.json").exists():
        return load_tokenizer(home)
    make_folder(home)
    of_a_sample = True
    match choice.kind:
        case "char":
            of_a_sample = streams  # all of a text's characters, where it is no stream
            logger.info("training the char tokenizer" + (" on the beginning of the text" if of_a_sample else ""))
        case "word" | "sentencepiece":
            logger.info(f"training the {choice.kind} tokenizer on the beginning of the text")
        case "tiktoken":
            pass  # a ready-made vocabulary: nothing is read
        case _:
            assert_never(choice.kind)
    tokenizer = train_tokenizer(choice, _sample(source, TOKENIZER_SAMPLE if of_a_sample else None))
    tokenizer.save(home)
    if choice.vocab_size and tokenizer.vocab_size < choice.vocab_size:
        logger.info(
            f"this corpus yields {tokenizer.vocab_size:,} pieces, fewer than the {choice.vocab_size:,} asked for"
        )
    return tokenizer


def _sample(source: Source, limit: int | None) -> Iterator[str]:
    """The corpus's beginning, about `limit` bytes of it, or all of it."""
    limits = [size for size in (limit, source.limit_bytes) if size is not None]
    size = tasks = 0
    for task in source.tasks():
        if task == WAIT:
            source.release(tasks)  # what is needed again will be fetched again
            continue
        tasks += 1
        for document in source.read(task):
            yield document.text
            size += len(document.text.encode("utf-8"))
        if limits and size >= min(limits):
            return
