"""The texts that runs are measured on: a run's own validation side, or any file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from positron.config import DataConfig, TokenizerConfig, UserError, from_dict
from positron.data.pretrain import prepare
from positron.data.shards import TokenFiles
from positron.data.sources import WAIT, open_source
from positron.runs import Run, find_run
from positron.text.choose import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT

SHORT = 1_000  # bytes: a file without any document's end is cut into pieces of about this size, for the interval


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


def validation_texts(run: Run, limit: int, say: Callable[[str], None]) -> list[str]:
    """The first validation documents, about `limit` bytes of them."""
    files = token_files(run, "val", say)
    tokenizer = load_tokenizer(run.tokenizer_folder)
    end = tokenizer.special_id(END_OF_TEXT)
    ids = files.read(0, min(files.n_tokens, limit))  # a token is at least a byte
    cuts = np.flatnonzero(ids == end)
    found, size = [], 0
    for a, b in pairwise([*cuts, *([len(ids)] if len(cuts) < 2 else [])]):
        found.append(tokenizer.decode(ids[a + 1 : b].tolist()))
        size += len(found[-1].encode("utf-8"))
        if size >= limit:
            break
    return [text for text in found if text]


def texts_of_file(path: str) -> list[str]:
    """The documents of any file that training can read."""
    source = open_source(DataConfig("text", path))
    texts = [document.text for task in source.tasks() if task != WAIT for document in source.read(task)]
    if not any(texts):
        raise UserError(f"{path} holds no text")
    if len(texts) == 1:  # one long document: its paragraphs make an interval possible
        texts = _pieces(texts[0])
    return [text for text in texts if text]


def _pieces(text: str) -> list[str]:
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= SHORT and not line.strip():
            pieces.append(piece)
            piece = ""
    return [*pieces, piece]
