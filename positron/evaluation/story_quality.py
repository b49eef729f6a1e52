"""What written stories are worth: read by the grammar's parser, and held against the grammar's own stories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from positron import stories
from positron.data.conversations import Conversation
from positron.data.shards import TokenFiles
from positron.inference.engine import Written
from positron.inference.sampling import Sampling
from positron.inference.text_model import Writer
from positron.system.progress import progress
from positron.text import conversation
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

BATCH = 25  # texts at a time
COPIED = 50  # tokens in a row, as in Carlini et al. 2023, "Quantifying memorization across neural language models"
CHUNK = 1 << 20  # training tokens looked at at a time


@dataclass(frozen=True)
class Quality:
    accepted: float  # share that the parser reads from the first letter to the last
    distinct_2: float  # different pairs of words among all pairs (Li et al. 2016, "A diversity-promoting objective")
    distinct_3: float
    copied: float | None  # share of the runs of COPIED tokens that stand in the training text, None for shorter texts


@dataclass(frozen=True)
class Following:
    followed: float  # hero, object, place and plot are those asked for; the parser forgives slips in what was not
    accepted: float  # the parser accepts it as it stands, whatever it tells
    ended: float  # by itself


def write_stories(writer: Writer, count: int, sampling: Sampling, seed: int, max_tokens: int) -> list[Written]:
    """Stories from nothing but the beginning of a document."""
    end = [writer.tokenizer.special_id(END_OF_TEXT)]
    return _write(writer, [end] * count, sampling, seed, max_tokens, end)


def answer_requests(
    writer: Writer, talks: Sequence[Conversation], sampling: Sampling, seed: int, max_tokens: int
) -> list[Written]:
    """What the model answers to the first message of each."""
    prompts = [conversation.prompt_ids(talk.messages[:1], writer.tokenizer) for talk in talks]
    return _write(writer, prompts, sampling, seed, max_tokens, conversation.stop_ids(writer.tokenizer))


def _write(
    writer: Writer, prompts: list[list[int]], sampling: Sampling, seed: int, max_tokens: int, stops: list[int]
) -> list[Written]:
    found: list[Written] = []
    for start in progress(range(0, len(prompts), BATCH), "writing stories"):
        some = prompts[start : start + BATCH]
        engine = writer.engine()
        found += engine.written(some, sampling, max_tokens=max_tokens, seed=seed + start, stop_ids=stops)
    return found


def quality(texts: Sequence[str], tokenizer: Tokenizer, training: TokenFiles) -> Quality:
    accepted = sum(bool(stories.parse(text)) for text in progress(texts, "reading stories")) / len(texts)
    return Quality(accepted, distinct(texts, 2), distinct(texts, 3), copied(texts, tokenizer, training))


def following(written: Sequence[Written], requests: Sequence[stories.Request]) -> Following:
    followed = [stories.follows(one.text, asked) for one, asked in zip(written, requests, strict=True)]
    accepted = [bool(stories.parse(one.text)) for one in written]
    n = len(written)
    return Following(sum(followed) / n, sum(accepted) / n, sum(one.ended for one in written) / n)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of n words, of all runs of n words."""
    runs = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


def copied(texts: Sequence[str], tokenizer: Tokenizer, training: TokenFiles, n: int = COPIED) -> float | None:
    """Share of the texts' runs of n tokens that stand in the training text, by 64-bit hashes of the runs."""
    ours = np.concatenate([_hashes(np.array(ids), n) for ids in tokenizer.encode_batch(list(texts))])
    if not len(ours):
        return None
    wanted, found = np.unique(ours), np.zeros(0, dtype=np.uint64)
    for start in progress(range(0, training.n_tokens, CHUNK), "searching the training text"):
        stop = min(training.n_tokens, start + CHUNK + n - 1)  # a run may lie across two chunks
        theirs = _hashes(training.read(start, stop - start), n)
        found = np.union1d(found, np.intersect1d(wanted, theirs))
    return float(np.isin(ours, found).mean())


def _hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A polynomial in an odd number, modulo 2^64, of each run of n ids: (len(ids) - n + 1,)."""
    count = max(0, len(ids) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n if count else 0):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return hashes
