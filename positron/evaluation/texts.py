"""The texts that runs are measured on: a run's own validation side, or any file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from positron.config import DataConfig, TokenizerConfig, UserError
from positron.data import stories
from positron.data.files import FEWEST_DOCUMENTS, list_files, read_pieces
from positron.data.pretrain import prepare
from positron.data.shards import TokenFiles
from positron.runs import Run, find_run
from positron.settings import from_dict
from positron.text.choose import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT

SHORT = 1_000  # characters: the documents of a file that has few are cut into pieces of about this size


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
    return up_to([tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(cuts)], limit)


def up_to(texts: list[str], limit: int) -> list[str]:
    """The first ones that are not empty, until they have `limit` bytes (0: all)."""
    found, size = [], 0
    for text in filter(None, texts):
        found.append(text)
        size += len(text.encode("utf-8"))
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
    """The documents of any file that training can read, long ones in pieces. UserError for none."""
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
    # an interval needs more than a few documents
    return texts if len(texts) >= FEWEST_DOCUMENTS else [piece for text in texts for piece in _pieces(text)]


def _pieces(text: str) -> list[str]:
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= SHORT and not line.strip():
            pieces.append(piece)
            piece = ""
    return [piece for piece in [*pieces, piece] if piece]
