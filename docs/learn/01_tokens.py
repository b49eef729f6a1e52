"""The numbers of chapter 1: merges of a text of four words."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import numpy_ref
from numpy_ref.bpe import WORDS, BPETokenizer
from positron.evaluation.score import Score
from scripts.learn_pages import Value, panels

TEXT = "low lower lowest low"
NEW_TEXT = "low lowly"
UNICODE = "naïve 😀"


def shown(tokenizer: BPETokenizer, ids: list[int]) -> str:
    """Write ids as their texts in Markdown code, with a visible space."""
    return " ".join(f"`{tokenizer.decode([i]).replace(' ', '␣')}`" for i in ids)


def example() -> dict[str, Value]:
    """Learn merges from a text of four words, and encode a new one."""
    tokenizer = BPETokenizer.train(TEXT, vocab_size=300)
    first = tokenizer.n_special + 256
    bytes_only = BPETokenizer([])
    pairs = Counter(pair for word in WORDS.findall(TEXT) for pair in pairwise(bytes_only.encode(word)))
    rows = []
    for i, pair in enumerate(tokenizer.merges):
        before = BPETokenizer(tokenizer.merges[:i])
        count = sum(pair == other for word in WORDS.findall(TEXT) for other in pairwise(before.encode(word)))
        rows.append(
            f"| {i + 1} | {shown(tokenizer, list(pair))} | {count} | {shown(tokenizer, [first + i])} | {first + i} |"
        )
    ids = tokenizer.encode(NEW_TEXT)
    return {
        "text": TEXT,
        "first_count": max(pairs.values()),
        "merge_table": "\n".join(rows),
        "vocab_size": tokenizer.vocab_size,
        "n_special": tokenizer.n_special,
        "n_merges": len(tokenizer.merges),
        "new_text": NEW_TEXT,
        "n_pieces": len(ids),
        "pieces": f"{shown(tokenizer, ids)}, with the ids {', '.join(map(str, ids))}.",
        "wrapped": int(np.array([100_255]).astype(np.uint16)[0]),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    tokenizer = BPETokenizer.train(TEXT, vocab_size=300)
    ids = tokenizer.encode("slow")
    return [
        {"slow_pieces": shown(tokenizer, ids), "slow_count": len(ids)},
        {
            "bpb_a": Score(nats=2.4 * 1000, bytes=3600, tokens=1000).bpb,
            "bpb_b": Score(nats=0.7 * 1000, bytes=1000, tokens=1000).bpb,
        },
        {"byte_count": len(BPETokenizer([]).encode(UNICODE))},
    ]


def figure() -> Figure:
    """Draw how many bytes a token has, over the number of merges."""
    text = (Path(numpy_ref.__file__).parent / "stories.txt").read_text(encoding="utf-8")
    training, unseen = text[:40_000], text[-10_000:]
    merges = BPETokenizer.train(training, vocab_size=6 + 256 + 1024).merges
    counts = [0, *(2**k for k in range(int(math.log2(len(merges))) + 1))]
    n_bytes = len(unseen.encode("utf-8"))
    lengths = [n_bytes / len(BPETokenizer(merges[:n]).encode(unseen)) for n in counts]
    drawing, (ax,) = panels(6, 2.8)
    ax.plot(counts, lengths, marker="o", markersize=4)
    ax.set_xlabel("number of merges")
    ax.set_ylabel("bytes per token of unseen text")
    return drawing
