"""Find the texts on which runs are measured: a side of a run's own text, or a file."""

from __future__ import annotations

import dataclasses
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np

from positron import stories
from positron.config import DataConfig, TokenizerConfig
from positron.data.corpus import find_token_files, prepare
from positron.data.decoding import Reading
from positron.data.files import cached_path, list_texts, read_pieces
from positron.data.open import open_source
from positron.data.shards import TokenFiles
from positron.run.base import pretrained_run
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.errors import UserError
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

logger = logging.getLogger(__name__)

MIN_TOKENS_READ = 64  # fewer tokens of a cut document may not hold one complete character
TORN_CHARACTERS = 4  # that may be incomplete where a document is cut between tokens


class Lossy(str):
    """Hold a text with � in place of unknown tokens; `n_bytes` is the size of the original in bytes."""

    n_bytes: int | None = None


class Beginning(Lossy):
    """Hold the beginning of a document that a limit cut, so that no end-of-text token is scored after it."""


def token_files(run: Run, split: str, instead: str = "--text FILE measures on another text") -> TokenFiles:
    """Return the tokens of one side of the text that a run was pretrained on, prepared again if they were deleted.

    `split` is "train" or "val". Raises UserError, whose message ends with the advice `instead`, if the text is not
    available or has changed.
    """
    try:
        run = pretrained_run(run)
    except UserError as error:
        raise UserError(f"{error}; its text is needed: {instead}") from error
    values, tokenizer = run.config(), load_tokenizer(run.tokenizer_folder)
    data, known = from_dict(DataConfig, values["data"]), run.facts().data_fingerprint
    folder = find_token_files(data, tokenizer, known)
    if data.url is not None and not cached_path(data.url, data.sha256).exists():
        if folder is None:  # the address may be a stranger's: only the user's own command fetches
            url = one_line(data.url, 200)
            raise UserError(
                f"the text that {run.folder} was trained on is not on this machine, and the address that the run names, "
                f"{url}, is fetched only by your own command (python -m positron.prepare data=text data.url=...): {instead}"
            )
        return TokenFiles(folder, split, tokenizer)
    try:
        current = known if folder is not None and data.source != "text" else open_source(data).fingerprint
        changed = known not in (None, current) and data.tokens_per_epoch is None
        if folder is None and not changed:
            data = _only_as_trusted(data, known)
            _, folder = prepare(data, from_dict(TokenizerConfig, values["tokenizer"]), tokenizer)
    except UserError as error:
        if folder is None:
            raise UserError(
                f"the text that {run.folder} was trained on is not available ({error}): {instead}"
            ) from error
        changed = True
    if folder is None:
        raise UserError(f"the text that {run.folder} was trained on has changed since then: restore it, or {instead}")
    if changed:
        logger.info(
            f"the text that {run.folder} was trained on has changed or is gone: its tokens in {folder} are read"
        )
    if data.tokens_per_epoch is not None:
        epochs = (path.parent for path in folder.glob("epoch-*/tokens.json"))
        folder = folder / "validation" if split == "val" else min(epochs)
    return TokenFiles(folder, split, tokenizer)


def _only_as_trusted(data: DataConfig, known: str | None) -> DataConfig:
    """Return the data with a folder that may be written: the run's configuration may be a stranger's.

    A folder that it names is used only if Positron already keeps tokens there. A file or address that it names is read
    only for a run that knows the fingerprint of the text.
    """
    if known is None and (data.path or data.url):
        raise UserError(
            f"{data.path or data.url} is not read, because run.json has no checksum (data_fingerprint) that proves "
            "that it is the text of this run"
        )
    is_ours = any(Path(data.dir).expanduser().glob("*/lock"))
    return data if is_ours else dataclasses.replace(data, dir=DataConfig.dir)


def texts_of_run(run: Run, split: str, limit: int, instead: str = "--text FILE measures on another text") -> list[str]:
    """Return the first documents of one side of the run's pretraining text, about `limit` bytes in all (0: all documents).

    Raises UserError, whose message ends with the advice `instead`, if the text is not available or empty.
    """
    files = token_files(run, split, instead)
    tokenizer = load_tokenizer(run.tokenizer_folder)
    end = tokenizer.special_id(END_OF_TEXT)
    # of three tokens of a document one at least has a byte: there may be an end of text and a blank that only joins
    ids = files.read(0, min(files.n_tokens, max(3 * limit, MIN_TOKENS_READ) if limit else files.n_tokens))
    cuts = [*np.flatnonzero(ids == end), *([len(ids)] if len(ids) == files.n_tokens else [])]
    lengths = files.token_bytes(tokenizer)
    texts = [_decoded(tokenizer, ids[a + 1 : b], lengths) for a, b in pairwise(cuts)]
    if len(ids) < files.n_tokens:  # the last one is longer than what was read: its last characters may be torn
        last = _decoded(tokenizer, ids[cuts[-1] + 1 :], lengths)
        texts.append(_beginning(last, max(0, len(last) - TORN_CHARACTERS)))
    texts = up_to(texts, limit)
    if not texts:
        part = "validation" if split == "val" else "training"
        raise UserError(f"the {part} part of the text of {run.folder} is empty: {instead}")
    return texts


def size_of(text: str) -> int:
    """Return the size of a text in bytes of UTF-8; for a text with unknown tokens, the size of the original."""
    original = text.n_bytes if isinstance(text, Lossy) else None
    return len(text.encode("utf-8")) if original is None else original


def _decoded(tokenizer: Tokenizer, ids: np.ndarray, lengths: np.ndarray) -> str:
    """Decode ids, with the size of the original if some are unknown; `lengths` (V,) are the bytes of each id."""
    text = tokenizer.decode(ids.tolist())
    if not tokenizer.has_unknown or not (ids == 0).any():
        return text
    lossy = Lossy(text)
    lossy.n_bytes = round(lengths[ids].sum())
    return lossy


def up_to(texts: list[str], limit: int) -> list[str]:
    """Return the first non-empty texts, until they have at least `limit` bytes (0: all).

    Texts are kept whole; only a text that is longer than the limit by itself is cut.
    """
    kept_texts: list[str] = []
    size = 0
    for text in filter(None, texts):
        length = size_of(text)
        if limit and length > limit:
            kept = text.encode("utf-8")[: limit - size].decode("utf-8", errors="ignore")
            text = _beginning(text, max(1, len(kept)))
        kept_texts.append(text)
        size += length
        if limit and size >= limit:
            break
    return kept_texts


def _beginning(text: str, characters: int) -> Beginning:
    beginning = Beginning(text[:characters])
    if isinstance(text, Lossy) and text.n_bytes is not None:
        beginning.n_bytes = round(text.n_bytes * characters / max(1, len(text)))
    return beginning


def floor_of(texts: list[str]) -> float:
    """Return the entropy of built-in stories in bits per byte. Raises UserError if a text is not a built-in story."""
    try:
        return sum(map(stories.bits, texts)) / sum(len(text.encode("utf-8")) for text in texts)
    except ValueError as error:
        raise UserError(
            "--stories needs built-in stories as the text: a run trained with data=stories, and no other --text"
        ) from error


def floor_of_run(run: Run, split: str, texts: list[str]) -> float | None:
    """Return the entropy of `texts`, taken from a side of the run's text, in bits per byte; None if it is unknown.

    The entropy of a whole side was recorded when it was prepared. That of a part is computed, which is only possible
    for the built-in stories.
    """
    files = token_files(run, split)
    if files.floor_bpb is None or sum(map(size_of, texts)) == files.n_bytes:
        return files.floor_bpb
    try:
        return floor_of(texts)
    except UserError:  # a cut story, or documents of a source that knows the bits of whole texts only
        return None


def texts_of_file(path: str) -> list[str]:
    """Return the documents of a file or folder in any format that training reads. Raises UserError if it has no text."""
    reading = Reading(has_settings=False)
    texts, text = [], ""
    for file in list_texts(path, reading).files:
        for piece, ends in read_pieces(file, reading):
            text += piece
            if ends:
                texts.append(text)
                text = ""
    texts = [text for text in [*texts, text] if text]
    if not texts:
        raise UserError(f"{path} contains no text: give a file or folder with text")
    return texts
