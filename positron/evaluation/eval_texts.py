"""Find the texts on which runs are measured: the training or validation text of a run, or a file."""

from __future__ import annotations

import dataclasses
import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from positron import stories
from positron.config import DataConfig, TokenizerConfig
from positron.data.corpus import find_token_files, is_made_of, prepare
from positron.data.decoding import Reading
from positron.data.files import cached_path, list_texts, not_downloaded, read_pieces
from positron.data.listing import CHECK_SPELLING
from positron.data.open import open_source
from positron.data.shards import TokenFiles
from positron.data.stream import open_split
from positron.run.base import pretrained_run
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.errors import UserError, without_advice
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, contains_unknown

logger = logging.getLogger(__name__)

MIN_TOKENS_READ = 64  # fewer tokens of a document may not contain a complete character
TORN_CHARACTERS = 4  # number of characters that may be incomplete at the end of a document that is cut between tokens
INSTEAD = "give --text FILE to measure on a text of your choice"


class Lossy(str):
    """Hold a text that was decoded from tokens and may differ from the original text.

    It has � in place of unknown tokens, and an imported tokenizer may have changed the text before it encoded it. `n_bytes` is
    the size of the original text in bytes, or None if it is not known. `ids` are the token ids from which the text was decoded,
    `ends` has the number of characters of the text up to the end of each token, and `tokenizer_hash` identifies the tokenizer.
    `ids` and `ends` are empty, and the hash is None, if the text was not decoded from tokens.
    """

    n_bytes: int | None = None
    ids: Sequence[int] = ()
    ends: Sequence[int] = ()
    tokenizer_hash: str | None = None


class Beginning(Lossy):
    """Hold the beginning of a document that was cut. No end-of-text token is scored after it.

    `n_bytes` is an estimate of the number of bytes of the original text in this beginning. It is computed only for a `Lossy`
    document (a text with � in place of unknown tokens) of known size. Otherwise, it is None.
    """


def token_files(run: Run, split: str, instead: str = INSTEAD) -> TokenFiles:
    """Return the training or validation tokens (`split` "train" or "val") of the text that a run was pretrained on.

    If the token files were deleted, they are written again from the text. If the text has changed or is missing, but the token
    files still exist, they are used, and the change is logged. Raises UserError, whose message ends with the advice `instead`,
    if neither the token files nor the unchanged text is available.
    """
    try:
        run = pretrained_run(run)
    except UserError as error:
        raise UserError(f"the text that the model was pretrained on is not available ({error}): {instead}") from error
    values, tokenizer = run.config(), load_tokenizer(run.tokenizer_folder)
    data, known = from_dict(DataConfig, values["data"]), run.facts().data_fingerprint
    if data.source == "imported":
        raise UserError(f"{run.folder} was imported, so the text that it was trained on is unknown: {instead}")
    folder = find_token_files(data, tokenizer, known)
    if data.url is not None and not cached_path(data.url, data.sha256).exists():
        if folder is None:  # another person may have written the address, so only a command of the user downloads it
            checksum = [] if data.sha256 is None else [f"data.sha256={one_line(data.sha256, 80)}"]
            download = command("prepare", "data=text", f"data.url={one_line(data.url, 200)}", *checksum)
            raise UserError(f"{not_downloaded(run.folder)}run {download}; or {instead}")
        return TokenFiles(folder, split, tokenizer)
    try:
        changed = False
        if folder is None or data.source == "text":
            source = open_source(data)
            changed = known not in (None, source.fingerprint) and data.tokens_per_epoch is None
            changed = changed and (folder is None or not is_made_of(folder, source))
        if folder is None and not changed:
            data = _only_as_trusted(data, known)
            if data.tokens_per_epoch is None:
                _, folder = prepare(data, from_dict(TokenizerConfig, values["tokenizer"]), tokenizer)
            else:
                folder = open_split(data, run.tokenizer_folder, split)
    except UserError as error:
        if folder is None:
            # the paths stand in the settings of the run, so the user cannot give others
            reason = without_advice(error).partition(CHECK_SPELLING)[0]
            raise UserError(
                f"the text that {run.folder} was trained on is not available ({reason}): {instead}"
            ) from error
        changed = True
    if folder is None:
        raise UserError(f"the text that {run.folder} was trained on has changed since then: restore it, or {instead}")
    if changed:
        logger.info(
            f"the text that {run.folder} was trained on has changed or is missing: using the stored token files of the "
            f"earlier text in {folder}"
        )
    return TokenFiles(folder, split, tokenizer)


def _only_as_trusted(data: DataConfig, known: str | None) -> DataConfig:
    """Return the data settings of a run, changed so that they are safe to use even if another person wrote the run folder.

    The token files are written below the folder `data.dir`. This setting is kept only if the folder already contains token
    files of Positron. Otherwise, it gets its default value. `known` is the fingerprint (hash) of the text on which the run was
    trained, or None if the run does not record it. Raises UserError if `known` is None and the settings name a file or a URL,
    because nothing shows whether this file or URL still has the same text.
    """
    if known is None and (data.path or data.url):
        raise UserError(
            f"run.json has no data_fingerprint, so it cannot be checked whether {data.path or data.url} is still the same text"
        )
    has_corpora = any(Path(data.dir).expanduser().glob("*/lock"))
    return data if has_corpora else dataclasses.replace(data, dir=DataConfig.dir)


def texts_of_run(run: Run, split: str, limit: int, instead: str = INSTEAD) -> list[str]:
    """Return the first documents of the text of a run, about `limit` bytes (0: all documents).

    `split` is "train" for the training text or "val" for the validation text. The last document is returned whole, unless this
    document is itself longer than `limit` bytes. Then it is cut. Raises UserError, whose message ends with the advice
    `instead`, if the text is empty or not available.
    """
    files = token_files(run, split, instead)
    tokenizer = load_tokenizer(run.tokenizer_folder)
    end = tokenizer.special_id(END_OF_TEXT)
    # Three tokens have at least one byte of text: one may be an end-of-text token, and one a SentencePiece blank without text.
    ids = files.read(0, min(files.n_tokens, max(3 * limit, MIN_TOKENS_READ) if limit else files.n_tokens))
    cuts = [*np.flatnonzero(ids == end), *([len(ids)] if len(ids) == files.n_tokens else [])]
    lengths, tokenizer_hash = files.token_bytes(tokenizer), tokenizer.hash
    is_exact = _is_exact(files, tokenizer, lengths)
    # sums are rounded, not the size of each document, so that errors do not add up
    marks = np.rint(np.concatenate([[0.0], np.cumsum(lengths[ids])])).astype(int)

    def decoded(start: int, stop: int) -> str:
        size = int(marks[stop] - marks[start])
        return _decoded(tokenizer, tokenizer_hash, ids[start:stop], size, is_exact)

    texts = [decoded(a + 1, b) for a, b in pairwise(cuts)]
    if len(ids) < files.n_tokens:  # the last document is cut, and its last characters may be incomplete
        last = decoded(cuts[-1] + 1, len(ids))
        texts.append(_beginning(last, max(0, len(last) - TORN_CHARACTERS)))
    texts = up_to(texts, limit)
    if not texts:
        part = "validation" if split == "val" else "training"
        raise UserError(f"the {part} part of the text of {run.folder} is empty: {instead}")
    return texts


def common_texts(runs: Sequence[Run], split: str, limit: int) -> list[str]:
    """Return the first documents, about `limit` bytes (0: all), of the text that all runs share.

    `split` is "train" for the training text or "val" for the validation text. Raises UserError if these documents differ
    between runs, or if a text is not available.
    """
    first, *others = runs
    texts = texts_of_run(first, split, limit)
    for run in others:
        if texts_of_run(run, split, limit) != texts:
            raise UserError(
                f"{first.folder} and {run.folder} have different {'validation' if split == 'val' else 'training'} texts: "
                f"{INSTEAD}"
            )
    return texts


def has_unknown(text: str) -> bool:
    """Tell whether a text was decoded from tokens and may differ from the original text, for example in unknown words."""
    return isinstance(text, Lossy) and text.n_bytes is not None


def size_of(text: str) -> int:
    """Return the size of a text in bytes of UTF-8.

    A `Lossy` text was decoded from tokens and may differ from the original text. For such a text, return the size of the
    original text if it is known.
    """
    original = text.n_bytes if isinstance(text, Lossy) else None
    return len(text.encode("utf-8")) if original is None else original


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens.

    A `Lossy` text that was decoded with this tokenizer gets the ids from which it was decoded. Its � cannot be encoded again,
    because the vocabulary may contain this character.
    """
    tokenizer_hash = tokenizer.hash
    encoded = tokenizer.encode_batch([str(text) for text in texts])
    return [
        list(text.ids) if isinstance(text, Lossy) and text.tokenizer_hash == tokenizer_hash else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def _is_exact(files: TokenFiles, tokenizer: Tokenizer, lengths: np.ndarray) -> bool:
    """Tell whether decoding the token files gives the original text, except for unknown tokens.

    An imported tokenizer may change a text before it encodes it, or have an unknown token other than the id 0. Then the texts
    of all tokens together have another size than the original text. `lengths`: the result of `files.token_bytes`.
    """
    if tokenizer.kind != "huggingface":
        return True
    plain = tokenizer.token_bytes()
    longest = int(plain.argmax())
    n_decoded = files.n_bytes + (files.n_documents if tokenizer.puts_space_first else 0)
    # the size of the text is to the size of all tokens as the scaled length of a token is to its plain length
    return math.isclose(plain[longest] * files.n_bytes, lengths[longest] * n_decoded, rel_tol=1e-12)


def _decoded(tokenizer: Tokenizer, tokenizer_hash: str, ids: np.ndarray, n_bytes: int, is_exact: bool) -> str:
    """Decode token ids. The result has � in place of each unknown token.

    If there is an unknown token, or if `is_exact` is false because the tokenizer changes texts, the result is a `Lossy`, a str
    with `n_bytes`, the size of the original text in bytes. This size is an estimate from the mean number of bytes of text that
    each id of the vocabulary stands for.
    """
    ids = ids[ids != tokenizer.end_ids[0]]  # scoring appends it to each whole document
    text = tokenizer.decode(ids.tolist())
    if is_exact and not contains_unknown(tokenizer, ids):
        return text
    lossy, decoder = Lossy(text), StreamDecoder(tokenizer)
    lossy.n_bytes, lossy.tokenizer_hash, lossy.ids = n_bytes, tokenizer_hash, ids.tolist()
    lossy.ends = list(accumulate(len(decoder.push(i)) for i in lossy.ids))
    return lossy


def up_to(texts: list[str], limit: int) -> list[str]:
    """Return as many of the first non-empty texts as give at least `limit` bytes together, or all of them if `limit` is 0.

    If the last of these texts alone has more than `limit` bytes, it is cut, so that all returned texts together have about
    `limit` bytes.
    """
    kept_texts: list[str] = []
    size = 0
    for text in filter(None, texts):
        length = size_of(text)
        if limit and length > limit:
            prefix = text.encode("utf-8")[: limit - size].decode("utf-8", errors="ignore")
            text = _beginning(text, max(1, len(prefix)))
        kept_texts.append(text)
        size += length
        if limit and size >= limit:
            break
    return kept_texts


def _beginning(text: str, characters: int) -> Beginning:
    """Return the first `characters` characters of a text; of a text with stored ids, the tokens that lie within them."""
    tokens = 0
    if isinstance(text, Lossy) and text.ids:
        tokens = max(1, bisect_right(text.ends, characters))
        characters = text.ends[tokens - 1]
    beginning = Beginning(text[:characters])
    if isinstance(text, Lossy) and text.n_bytes is not None:
        beginning.n_bytes = round(text.n_bytes * characters / max(1, len(text)))
        beginning.ids, beginning.ends = text.ids[:tokens], text.ends[:tokens]
        beginning.tokenizer_hash = text.tokenizer_hash
    return beginning


def floor_of(texts: list[str]) -> float:
    """Return the entropy of the stories `texts` in bits per byte: -log2 of their probability under the grammar.

    The grammar is the one that generates the built-in stories. Raises UserError if one of the texts is not a complete built-in
    story.
    """
    try:
        return sum(map(stories.bits, texts)) / sum(len(text.encode("utf-8")) for text in texts)
    except ValueError as error:
        if any(isinstance(text, Beginning) for text in texts):
            reason = "--stories needs whole built-in stories, but --limit cuts a document: give a larger --limit, or --limit 0"
        elif any(map(has_unknown, texts)):
            reason = "--stories needs a tokenizer that knows all words of the stories: name another run"
        else:
            reason = "--stories needs built-in stories as the text: name a run trained with data=stories, and leave --text out"
        raise UserError(reason) from error


def floor_of_run(run: Run, split: str, texts: list[str]) -> float | None:
    """Return the entropy of `texts` in bits per byte, or None if the entropy is unknown.

    `texts` are documents of the text of `run`. They belong to the part `split` of this text, "train" or "val". If `texts` are
    the whole part, the result is the entropy that the token files of this part record. If `texts` are only some documents of
    the part, the entropy is computed from them, which is possible only for whole built-in stories. The entropy is unknown in
    all other cases, and if the token files record no entropy. It is no lower bound, and None is returned, if the run's
    tokenizer does not know all words of the texts. Raises UserError if the text of the run is not available.
    """
    files = token_files(run, split)
    if any(map(has_unknown, texts)):
        return None
    if files.floor_bpb is None or sum(map(size_of, texts)) == files.n_bytes:
        return files.floor_bpb
    try:
        return floor_of(texts)
    except UserError:  # a story is cut, or the texts are not built-in stories
        return None


def texts_of_file(path: str) -> list[str]:
    """Return the documents of a file or folder in any format that training reads. Raises UserError if there is no text."""
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
