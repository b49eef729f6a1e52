"""The protocol of text sources, which every source of `open.py` follows.

A source is divided into tasks, which are small and picklable, and `read` turns a task into documents. So several
processes can work on one corpus, and a task yields the same documents in every process. The side of the train/validation
split depends on a document's text alone, so that equal documents are on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

ROWS_FILE = "rows.jsonl"  # the rows of a hub dataset, in the folder of the corpus
MEMORY = "memory"  # folder below data.dir for data that Python programs pass
WAIT = "wait"  # yielded instead of a task: the source can continue only after earlier tasks are released


@dataclass(frozen=True)
class Document:
    """Hold a text, or a part of one, and the side of the split that it belongs to."""

    text: str
    is_val: bool
    bits: float | None = None  # -log2 p(text), if known
    ends: bool = True  # False: the next document continues this one


class Source(Protocol):
    """Provide the documents of a corpus, task by task."""

    name: str  # of its folder below data.dir
    fingerprint: str
    earlier_fingerprint: str  # what earlier versions computed for the same text, if they read or split it differently

    def tasks(self, skip: int = 0) -> Iterator[Any]:
        """Yield all tasks after the first `skip`, with WAIT in between where the source cannot continue yet."""

    def read(self, task: Any) -> list[Document]:
        """Return the documents of a task."""
        ...

    def summary(self) -> str:
        """Describe in one line what was read, after the last task; an empty string if there is nothing to report."""

    def release(self, tasks_done: int | None) -> None:
        """Delete the files of the first `tasks_done` tasks, which were read (None: of all tasks)."""

    @property
    def limit_bytes(self) -> int | None:
        """Bytes of text after which reading stops, or None for all; the task that exceeds the limit is read whole."""

    @property
    def total_bytes(self) -> int | None:
        """The approximate bytes of text, for the progress bar, or None if unknown."""


def is_validation(text: str, seed: int, val_fraction: float) -> bool:
    """Tell whether a text is for validation: a function of the text, the seed and `val_fraction` alone."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64
