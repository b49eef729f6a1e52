"""Measure generated stories: whether the grammar's parser accepts them, how varied they are, and how much is copied.

The grammar is that of the built-in stories. The parser accepts a text if the grammar can produce it.
"""

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

BATCH = 25  # number of texts that are generated at a time
# Length of a sequence of tokens that counts as copied, as in Carlini et al. 2023, "Quantifying memorization across neural
# language models".
COPIED_TOKENS = 50
CHUNK = 1 << 20  # number of training tokens that are compared at a time


@dataclass(frozen=True)
class Quality:
    """Hold measurements of generated stories, as shares between 0 and 1.

    `accepted` is the share of stories that the grammar's parser accepts. `distinct_2` and `distinct_3` are the results of
    `distinct` for sequences of two and three words. `copied` is the share of sequences of 50 tokens (COPIED_TOKENS) that are in
    the training text. It is None if no story has at least 50 tokens.
    """

    accepted: float  # share that the grammar's parser accepts as a whole
    distinct_2: float  # share of pairs of words that are distinct (Li et al. 2016, "A diversity-promoting objective")
    distinct_3: float  # share of sequences of three words that are distinct
    copied: (
        float | None
    )  # share of sequences of 50 tokens (COPIED_TOKENS) that are in the training text; None: no such sequences


@dataclass(frozen=True)
class Following:
    """Hold the shares of answers that follow the request, that the grammar's parser accepts, and that end with a stop token.

    A stop token is a special token at which an answer ends, such as <|end|>.
    """

    followed: float  # answers with the requested hero, object, place and plot; other errors are tolerated
    accepted: float  # answers that the grammar's parser accepts, with any content
    ended: float  # answers that end with a stop token before the limit of tokens


def write_stories(writer: Writer, count: int, sampling: Sampling, seed: int, max_tokens: int) -> list[Written]:
    """Generate `count` stories without a prompt: the model is given only the token that begins a document.

    Story i is sampled with the seed `seed` + i and has at most `max_tokens` tokens.
    """
    begin = [writer.tokenizer.special_id(END_OF_TEXT)]
    return _write(writer, [begin] * count, sampling, seed, max_tokens, list(writer.tokenizer.end_ids))


def answer_requests(
    writer: Writer, conversations: Sequence[Conversation], sampling: Sampling, seed: int, max_tokens: int
) -> list[Written]:
    """Generate the model's answer to the first message of each conversation.

    Answer i is sampled with the seed `seed` + i and has at most `max_tokens` tokens.
    """
    prompts = [conversation.prompt_ids(example.messages[:1], writer.tokenizer) for example in conversations]
    return _write(writer, prompts, sampling, seed, max_tokens, conversation.stop_ids(writer.tokenizer))


def _write(
    writer: Writer, prompts: list[list[int]], sampling: Sampling, seed: int, max_tokens: int, stops: list[int]
) -> list[Written]:
    texts: list[Written] = []
    for start in progress(range(0, len(prompts), BATCH), "writing stories"):
        batch = prompts[start : start + BATCH]
        engine = writer.engine()
        texts += engine.written(batch, sampling, max_tokens=max_tokens, seed=seed + start, stop_ids=stops)
    return texts


def quality(texts: Sequence[str], tokenizer: Tokenizer, training: TokenFiles) -> Quality:
    """Measure the share of accepted texts, the variety of the texts, and the share of their token sequences that are copied.

    A text is accepted if the parser of the story grammar accepts it. For the last share, all sequences of 50 neighbouring
    tokens (COPIED_TOKENS) in the texts are counted. A sequence is copied if it occurs in the training text, whose tokens
    `training` contains. There must be at least one text.
    """
    accepted = sum(bool(stories.parse(text)) for text in progress(texts, "parsing stories")) / len(texts)
    return Quality(accepted, distinct(texts, 2), distinct(texts, 3), copied(texts, tokenizer, training))


def following(written: Sequence[Written], requests: Sequence[stories.Request]) -> Following:
    """Measure how well answers follow requests; answer i belongs to request i."""
    followed = [stories.follows(answer.text, request) for answer, request in zip(written, requests, strict=True)]
    accepted = [bool(stories.parse(answer.text)) for answer in written]
    n = len(written)
    return Following(sum(followed) / n, sum(accepted) / n, sum(answer.ended for answer in written) / n)


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different sequences of `n` words in the texts, divided by the number of all such sequences.

    Returns 0 if all texts are shorter than `n` words.
    """
    runs = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


def copied(texts: Sequence[str], tokenizer: Tokenizer, training: TokenFiles, n: int = COPIED_TOKENS) -> float | None:
    """Return the share of the texts' sequences of `n` tokens that are in the training text, compared by 64-bit hashes.

    Returns None if all texts are shorter than `n` tokens.
    """
    hashes = np.concatenate([_hashes(np.array(ids), n) for ids in tokenizer.encode_batch(list(texts))])
    if not len(hashes):
        return None
    distinct_hashes, shared = np.unique(hashes), np.zeros(0, dtype=np.uint64)
    for start in progress(range(0, training.n_tokens, CHUNK), "searching the training text"):
        stop = min(training.n_tokens, start + CHUNK + n - 1)  # a sequence may cross two chunks
        training_hashes = _hashes(training.read(start, stop - start), n)
        shared = np.union1d(shared, np.intersect1d(distinct_hashes, training_hashes))
    return float(np.isin(hashes, shared).mean())


def _hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """Return a hash of each sequence of `n` neighbouring ids, (len(ids) - n + 1,).

    The result is empty if there are fewer than `n` ids. The hash of the sequence a_1, ..., a_n is the following number, where c
    is an odd constant:

        ((a_1 + 1) c^(n-1) + (a_2 + 1) c^(n-2) + ... + (a_n + 1)) mod 2^64
    """
    count = max(0, len(ids) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n if count else 0):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return hashes
