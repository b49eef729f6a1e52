"""The texts that runs are measured on: a run's own validation side, or any file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from positron.config import DataConfig, TokenizerConfig, UserError
from positron.data import stories
from positron.data.files import list_files, read_pieces
from positron.data.pretrain import prepare
from positron.data.shards import TokenFiles
from positron.runs import Run, find_run
from positron.settings import from_dict
from positron.text.choose import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT

TORN = 4  # characters at a cut between tokens that may not be whole


class Beginning(str):
    """The beginning of a document that a limit cut: its end-of-text is not there to be scored."""


def text_run(run: Run) -> Run:
    """The run whose pretraining text this one has: itself, or what it was fine-tuned from."""
    while run.config().get("sft") is not None:
        run = find_run(run.config()["init_from"])
    return run


def token_files(run: Run, split: str, say: Callable[[str], None]) -> TokenFiles:
    """One side of the pretraining text of a run, made again where it is gone. UserError where it cannot be."""
    run = text_run(run)
    values, tokenizer = run.config(), load_tokenizer(run.tokenizer_folder)
    data = from_dict(DataConfig, values["data"])
    _, folder = prepare(data, from_dict(TokenizerConfig, values["tokenizer"]), tokenizer, say)
    if data.tokens_per_epoch is None:
        return TokenFiles(folder, split, tokenizer)
    place = folder / "validation" if split == "val" else min(p.parent for p in folder.glob("epoch-*/tokens.json"))
    return TokenFiles(place, split, tokenizer)


def texts_of_run(run: Run, split: str, limit: int, say: Callable[[str], None]) -> list[str]:
    """The first documents of a side of the run's pretraining text, at least `limit` bytes of them (0: all)."""
    files = token_files(run, split, say)
    tokenizer = load_tokenizer(run.tokenizer_folder)
    end = tokenizer.special_id(END_OF_TEXT)
    # of three tokens of a document one at least has a byte: there may be an end of text and a blank that only joins
    ids = files.read(0, min(files.n_tokens, 3 * limit or files.n_tokens))
    cuts = [*np.flatnonzero(ids == end), *([len(ids)] if len(ids) == files.n_tokens else [])]
    texts = [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(cuts)]
    if len(ids) < files.n_tokens:  # the last one is longer than what was read: its last characters may be torn
        texts.append(tokenizer.decode(ids[cuts[-1] + 1 :].tolist())[:-TORN])
    return up_to(texts, limit)


def up_to(texts: list[str], limit: int) -> list[str]:
    """The first ones that are not empty, until they have about `limit` bytes (0: all): whole documents.

    Only a document that is longer than the limit by itself is cut.
    """
    found: list[str] = []
    size = 0
    for text in filter(None, texts):
        length = len(text.encode("utf-8"))
        if limit and length > limit:
            text = Beginning(text.encode("utf-8")[: limit - size].decode("utf-8", errors="ignore"))
        found.append(text)
        size += length
        if limit and size >= limit:
            break
    return found


def floor_of(texts: list[str]) -> float:
    """Bits per byte that the texts hold. UserError where one of them is no built-in story."""
    try:
        return sum(map(stories.bits, texts)) / sum(len(text.encode("utf-8")) for text in texts)
    except ValueError as error:
        raise UserError("--stories is for the built-in stories, and this text has others") from error


def texts_of_file(path: str) -> list[str]:
    """The documents of any file that training can read. UserError for none."""
    config = DataConfig("text", path)
    texts, text = [], ""
    for file in list_files(path):
        for piece, ends in read_pieces(file, config.field, config.on_invalid):
            text += piece
            if ends:
                texts.append(text)
                text = ""
    texts = [text for text in [*texts, text] if text]
    if not texts:
        raise UserError(f"{path} holds no text")
    return texts
