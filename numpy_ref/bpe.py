"""Byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909; on bytes: GPT-2).

Training. Text is split into words (a space belongs to the word after it); a word is a sequence of bytes. Repeatedly, the
most frequent pair of neighbours becomes a new token. Every byte is a token, so every text can be encoded, and decoding
joins bytes: every text is restored exactly.

Speed. Counting all pairs anew for each merge would cost words x merges. A merge changes only the words that contain the
merged pair. So only the pairs of these words are counted again. A heap yields the most frequent pair; an entry of the heap
with an outdated count is corrected when it comes to the top.

Encoding repeats the merges: of all pairs of neighbours in a word, the pair that was learned first is merged first.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from numpy_ref.tokenizers import END_OF_TEXT, SPECIALS

Pair = tuple[int, int]
# Every character is of exactly one class: letter, digit, white space, or other; so no character is ever skipped.
WORDS = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s")


class BPETokenizer:
    """Encode text with byte-level byte-pair encoding.

    The first ids are the special tokens, then the 256 bytes, then one id per merge. `merges` holds the two ids that each merge
    joins, in the order in which the merges were learned. Raises ValueError if an id of a merge is neither a byte nor an earlier
    merge.
    """

    kind = "bpe"
    n_special = len(SPECIALS)
    end_of_text = SPECIALS.index(END_OF_TEXT)

    def __init__(self, merges: list[Pair]) -> None:
        first = self.n_special + 256
        self.merges = merges
        self.vocab_size = first + len(merges)
        self._rank = {pair: i for i, pair in enumerate(merges)}
        self._bytes = [b""] * self.n_special + [bytes([b]) for b in range(256)]
        for i, (a, b) in enumerate(merges):
            if not self.n_special <= min(a, b) <= max(a, b) < first + i:
                raise ValueError(
                    f"merge {i} joins the ids {a} and {b}, but only bytes and earlier merges can be joined"
                )
            self._bytes.append(self._bytes[a] + self._bytes[b])
        self._word = lru_cache(maxsize=1 << 16)(self._encode_word)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Create a tokenizer: learn merges from `text` until there are `vocab_size` ids, or until no pair occurs twice.

        If `vocab_size` is too small for the special tokens and the 256 bytes, the tokenizer has these ids and no merges.
        """
        counts = Counter(WORDS.findall(text))
        words = [[cls.n_special + b for b in word.encode("utf-8")] for word in counts]
        n_merges = vocab_size - cls.n_special - 256
        return cls(learn_merges(words, list(counts.values()), n_merges, cls.n_special + 256))

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, word by word."""
        return [i for word in WORDS.findall(text) for i in self._word(word)]

    def _encode_word(self, word: str) -> list[int]:
        ids = [self.n_special + b for b in word.encode("utf-8")]
        while len(ids) > 1:
            rank, pair = min((self._rank.get(pair, len(self._rank)), pair) for pair in pairwise(ids))
            if rank == len(self._rank):
                break
            ids = merge(ids, pair, self.n_special + 256 + rank)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text. Bytes that are not valid UTF-8 become U+FFFD; special tokens are left out."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        """Return the kind of the tokenizer ("bpe") and its merges, from which `from_json` restores it."""
        return {"kind": self.kind, "merges": self.merges}


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Return `ids` with every occurrence of the pair, from left to right, replaced by the id `new`."""
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def learn_merges(words: list[list[int]], counts: list[int], n_merges: int, first: int) -> list[Pair]:
    """Merge the most frequent pair of neighbours, up to `n_merges` times; return the pairs in the order of the merges.

    The pairs get the ids `first`, `first` + 1, ... `words[i]` is the list of ids of a word; `words` is changed in place.
    `counts[i]` is the number of times that word i occurs in the text. If several pairs are equally frequent, the smallest pair,
    compared as a tuple, is merged first. Learning ends early if no pair occurs twice.
    """
    totals: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> indices of the words that may contain it
    for i, word in enumerate(words):
        for pair in pairwise(word):
            totals[pair] += counts[i]
            words_with[pair].add(i)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        total, pair = heapq.heappop(heap)
        if -total != totals[pair]:  # outdated
            if totals[pair] > 0:
                heapq.heappush(heap, (-totals[pair], pair))
            continue
        if totals[pair] < 2:
            break
        new = first + len(merges)
        merges.append(pair)
        new_pairs: set[Pair] = set()
        for i in words_with.pop(pair):
            old, word = words[i], merge(words[i], pair, new)
            for before in pairwise(old):
                totals[before] -= counts[i]
            for after in pairwise(word):
                totals[after] += counts[i]
                words_with[after].add(i)
                if new in after:
                    new_pairs.add(after)
            words[i] = word
        for after in new_pairs:
            heapq.heappush(heap, (-totals[after], after))
    return merges
