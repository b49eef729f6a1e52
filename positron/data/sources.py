"""Define the protocol of text sources, which every source of `open.py` follows.

A source is divided into tasks, and `read` turns a task into documents. A task can be pickled and gives the same documents in
every process, so several processes can work on one corpus. A hash of a document's text decides whether it is used for training
or for validation (`is_validation`), so that equal documents are never in both; the class `FileSource` describes the exception
for small texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

ROWS_FILE = "rows.jsonl"  # the rows of a hub dataset, in the folder of the corpus
MEMORY = "memory"  # folder below data.dir for data that Python programs pass to `positron.train`
WAIT = "wait"  # yielded instead of a task: the source can continue only after earlier tasks are released


@dataclass(frozen=True)
class Document:
    """Hold a document, or a part of a long document, and whether it is for validation.

    `bits` is -log2 of the probability of the text, or None if it is unknown. If `ends` is false, the next `Document` of the
    source is the next part of the same document.
    """

    text: str
    is_val: bool
    bits: float | None = None  # -log2 p(text), if known
    ends: bool = True  # False: the next `Document` is the next part of the same document


class Source(Protocol):
    """Provide the documents of a corpus, task by task. A task is a part of the corpus, which `read` turns into documents."""

    name: str  # the name of the corpus's folder below data.dir
    fingerprint: str  # hash of the text, and of the settings that change how it is read and split
    earlier_fingerprint: str  # what earlier versions of Positron computed as `fingerprint` of this text (often equal)

    def tasks(self, skip: int = 0) -> Iterator[Any]:
        """Yield the tasks of the corpus after the first `skip`. A task is a part of the corpus, an argument of `read`.

        If the source cannot continue before earlier tasks are released, it yields the constant WAIT instead of a task. The
        caller must then read the tasks that it already has and `release` them, before it asks for the next item.
        """

    def read(self, task: Any) -> list[Document]:
        """Return the documents of `task`, an item that `tasks` has yielded.

        The constant WAIT, which `tasks` can yield, too, is not a task; this method must not be called with it.
        """
        ...

    def summary(self) -> str:
        """Return a line about what was read, or "" if there is nothing to report. Called after the last task was read."""

    def release(self, tasks_done: int | None) -> None:
        """Delete the downloaded files that are needed only for the first `tasks_done` tasks (None: delete all).

        Call this method when these tasks have been read. A source without downloaded files does nothing.
        """

    @property
    def limit_bytes(self) -> int | None:
        """Return the number of bytes of text after which no further item of `tasks` is read, or None for no limit.

        The last item is read completely, so that the text may become larger than the limit.
        """

    @property
    def total_bytes(self) -> int | None:
        """Return the approximate number of bytes of text, for the progress bar, or None if it is unknown."""


def is_validation(text: str, seed: int, val_fraction: float) -> bool:
    """Tell whether a document is used for validation, which depends only on its text, the seed and `val_fraction`."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


def is_balanced(sizes: list[int], val_fraction: float) -> bool:
    """Tell whether the share of validation is close to `val_fraction`.

    `sizes` holds the numbers of characters, or of examples, for training and for validation. The share is close enough if
    neither number is 0, if the share lies between val_fraction / 5 and 5 val_fraction, and if it is at most
    (1 + val_fraction) / 2.
    """
    share = sizes[True] / sum(sizes)
    return all(sizes) and val_fraction / 5 <= share <= min(5 * val_fraction, (1 + val_fraction) / 2)
