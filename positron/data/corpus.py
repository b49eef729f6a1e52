"""Prepare a corpus: train its tokenizer and write its token files, unless they exist."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from positron.config import DataConfig, TokenizerConfig
from positron.data.files import FileSource
from positron.data.open import open_source
from positron.data.shards import SPLITS, TokenFiles, write_tokens
from positron.data.sources import WAIT, Source
from positron.data.stream import open_stream
from positron.data.windows import MAX_BYTES_PER_TOKEN
from positron.system.disk import expanded, make_folder, read_json
from positron.system.errors import UserError
from positron.system.locks import lock
from positron.text.factory import load_tokenizer, train_tokenizer
from positron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_ELSEWHERE = "give another data.dir="
MUCH_LARGER = 1.2  # times the size that was asked for
UNKNOWN_SAMPLE_TOKENS = 1_000_000  # number of training tokens in which the share of <unk> is measured
TOKENIZER_SAMPLE_BYTES = 4_000_000  # bytes of text that a tokenizer is trained on


def prepare(
    data: DataConfig,
    choice: TokenizerConfig,
    tokenizer: Tokenizer | None,
    known: str | None = None,
) -> tuple[Tokenizer, Path]:
    """Return the tokenizer of a corpus and the folder of its token files; create both if they do not exist.

    `tokenizer`: a tokenizer to use, such as the tokenizer of an existing run. If it is None, the settings `choice` decide: a
    tokenizer with a fixed vocabulary, such as GPT-2's, is loaded, and any other tokenizer is trained on the corpus.

    `known`: the fingerprint (a hash) of the text with which an existing run was started. In three cases, the token files with
    this fingerprint are used, if they exist: if the text cannot be read any more, if this version of Positron reads it
    differently, or if only the times of modification of its files differ.

    If two processes need the same corpus, the second waits for the first. Raises UserError if the text is missing, empty or
    unreadable. Raises Unreachable if the text must be downloaded and the network fails.
    """
    existing = find_token_files(data, tokenizer, known)
    try:
        source = open_source(data)
    except UserError as error:
        if tokenizer is None or existing is None:
            raise
        logger.info(f"using the token files in {existing}, because the text cannot be read now: {error}")
        return tokenizer, existing
    if (
        tokenizer is not None
        and existing is not None
        and known != source.fingerprint
        and (known == source.earlier_fingerprint or is_made_of(existing, source))
    ):
        return tokenizer, existing
    corpus = make_folder(expanded(data.dir) / source.name, instead=_ELSEWHERE)
    own_home = corpus / "-".join(str(part) for part in (choice.kind, choice.name, choice.vocab_size) if part)
    streams = data.tokens_per_epoch is not None
    if not streams and (complete := _complete(corpus, tokenizer, own_home)):  # also on a disk that cannot be written
        return complete

    def wait() -> None:
        logger.info(f"waiting for another process that prepares {corpus}")

    with lock(corpus / "lock", wait, instead=_ELSEWHERE):
        is_own = tokenizer is None
        if tokenizer is None:
            home = own_home
            tokenizer = _own_tokenizer(source, choice, home, streams)
        else:
            home = make_folder(corpus / f"tokenizer-{tokenizer.hash[:12]}")
            tokenizer.save(home)
        tokens = _tokens_folder(corpus, tokenizer)
        if not streams and not (tokens / "tokens.json").exists():
            logger.info(f"writing the text as tokens to {tokens}")
            write_tokens(source, tokenizer, home, tokens, _content(source))
            _report(source, tokens, tokenizer, is_own=is_own)
    return tokenizer, open_stream(data, home) if streams else tokens


def _complete(corpus: Path, tokenizer: Tokenizer | None, own_home: Path) -> tuple[Tokenizer, Path] | None:
    """Return the tokenizer and the folder of the token files if both are complete in the folder `corpus`, otherwise None.

    `tokenizer`: the given tokenizer, or None for the one in the folder `own_home`.
    """
    if tokenizer is None and (own_home / "tokenizer.json").exists():
        tokenizer = load_tokenizer(own_home)
    if tokenizer is None or not (_tokens_folder(corpus, tokenizer) / "tokens.json").exists():
        return None
    return tokenizer, _tokens_folder(corpus, tokenizer)


def _tokens_folder(corpus: Path, tokenizer: Tokenizer) -> Path:
    return corpus / f"tokens-{tokenizer.hash[:12]}"


def find_token_files(data: DataConfig, tokenizer: Tokenizer | None, known: str | None) -> Path | None:
    """Return the folder of the token files that were written with `tokenizer` for the text with the fingerprint `known`.

    Returns None if no complete token files exist, if the corpus is streamed (`data.tokens_per_epoch`), or if `tokenizer` or
    `known` is None.
    """
    if tokenizer is None or known is None or data.tokens_per_epoch is not None:
        return None
    for header in sorted(expanded(data.dir).glob(f"*/tokens-{tokenizer.hash[:12]}/tokens.json")):
        if read_json(header).get("fingerprint") == known:
            return header.parent
    return None


def is_made_of(folder: Path, source: Source) -> bool:
    """Tell whether the token files in `folder` were made of the text of `source`, whose files were copied since then.

    A copy of a large file has another fingerprint if it has another time of modification. Its whole content is read here.
    Returns False if the token files do not record what is needed to find this out.
    """
    content = read_json(folder / "tokens.json").get("content")
    return content is not None and content == _content(source)


def _content(source: Source) -> str | None:
    return source.content_fingerprint() if isinstance(source, FileSource) else None


def _report(source: Source, tokens: Path, tokenizer: Tokenizer, *, is_own: bool) -> None:
    """Log the sizes of the training and validation texts, and what was skipped.

    Log a warning if a word tokenizer finds few words in the text. Log another warning, with advice, if more than 1 % of the
    training tokens are <unk>. `is_own`: true if the tokenizer was made for this corpus; the advice is then to choose another
    tokenizer. It is false if the tokenizer belongs to the weights with which the run starts and so cannot be changed.
    """
    train, val = (TokenFiles(tokens, split, tokenizer) for split in SPLITS)
    if summary := source.summary():
        logger.info(f"{train.n_bytes:,} bytes for training, {val.n_bytes:,} for validation; {summary}")
    size = train.n_bytes + val.n_bytes
    if source.limit_bytes is not None and size > MUCH_LARGER * source.limit_bytes:
        logger.info(
            f"{size / 1e6:.2f} MB of text instead of {source.limit_bytes / 1e6:g} MB, because this source is read in pieces of "
            "about half a megabyte to a megabyte"
        )
    if tokenizer.kind == "word" and train.n_bytes > MAX_BYTES_PER_TOKEN * train.n_tokens:
        logger.warning(
            f"tokenizer=word finds only {train.n_tokens:,} words in {train.n_bytes:,} bytes, because this text "
            "has few spaces between words: use tokenizer=char or tokenizer=spm_4k"
        )
    if tokenizer.has_unknown:
        unknown = float((train.read(0, min(train.n_tokens, UNKNOWN_SAMPLE_TOKENS)) == 0).mean())
        if unknown > 0.01:
            larger = "a larger tokenizer.vocab_size=, or " if tokenizer.kind == "word" else ""
            remedy = (
                f"give {larger}tokenizer=spm_16k, which encodes any text"
                if is_own
                else "it belongs to the weights with which the run starts; a new run without them can have tokenizer=spm_16k, "
                "which encodes any text"
            )
            logger.warning(
                f"{unknown:.1%} of the tokens are <unk> (unknown), because the {tokenizer.kind} tokenizer cannot encode "
                f"this part of the text: {remedy}"
            )


def _own_tokenizer(source: Source, choice: TokenizerConfig, home: Path, streams: bool) -> Tokenizer:
    if (home / "tokenizer.json").exists():
        return load_tokenizer(home)
    make_folder(home)
    reads_sample = True
    match choice.kind:
        case "char":
            reads_sample = streams  # other texts are read completely, so that each of their characters becomes a token
            logger.info("training the char tokenizer" + (" on the beginning of the text" if reads_sample else ""))
        case "word" | "sentencepiece":
            logger.info(f"training the {choice.kind} tokenizer on the beginning of the text")
        case "tiktoken" | "huggingface":
            pass  # the vocabulary is fixed: nothing is read
        case _:
            assert_never(choice.kind)
    tokenizer = train_tokenizer(choice, _sample(source, TOKENIZER_SAMPLE_BYTES if reads_sample else None))
    tokenizer.save(home)
    if choice.kind in ("word", "sentencepiece") and choice.vocab_size and tokenizer.vocab_size < choice.vocab_size:
        logger.info(
            f"the vocabulary has {tokenizer.vocab_size:,} tokens, fewer than tokenizer.vocab_size={choice.vocab_size}, "
            "because the text is too small for more"
        )
    return tokenizer


def _sample(source: Source, limit: int | None) -> Iterator[str]:
    """Yield the first documents of a source, until their total size is at least `limit` or `source.limit_bytes` bytes.

    None means that there is no such limit. The size is compared with the limits only at the end of each task (a part of the
    corpus), so the documents may have more bytes than the limit.
    """
    limits = [size for size in (limit, source.limit_bytes) if size is not None]
    size = tasks = 0
    for task in source.tasks():
        if task == WAIT:
            source.release(tasks)  # deletes files to make space; a file that is needed again is downloaded again
            continue
        tasks += 1
        for document in source.read(task):
            yield document.text
            size += len(document.text.encode("utf-8"))
        if limits and size >= min(limits):
            return
