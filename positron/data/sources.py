"""Where text comes from: what every source of `open.py` provides.

A source is cut into tasks, small and picklable, which `read` turns into documents: so that several processes can work
on one corpus, and every process gets the same documents from the same task. Which side of the train/validation split a
document is on depends on its text alone, so equal documents are always on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

ROWS_FILE = "rows.jsonl"  # in a corpus: rows of the hub that are kept as they came
MEMORY = "memory"  # folder below data.dir of what Python programs give as data
WAIT = "wait"  # a task that is none: the source has no more to give before some of its tasks are done


@dataclass(frozen=True)
class Document:
    text: str
    is_val: bool
    bits: float | None = None  # -log2 p(text), where it is known
    ends: bool = True  # False: the next document goes on where this one stops


class Source(Protocol):
    name: str  # of its folder below data.dir
    fingerprint: str
    earlier_fingerprint: str  # what earlier versions gave to the same text, if they read or split it otherwise

    def tasks(self, skip: int = 0) -> Iterator[Any]:
        """All but the first `skip`, and perhaps WAIT in between."""

    def read(self, task: Any) -> list[Document]: ...

    def summary(self) -> str:
        """One line for the user after the source was read to its end; empty if there is nothing to tell."""

    def release(self, tasks_done: int | None) -> None:
        """So many tasks, from the beginning of the corpus, were read (None: all that will be): what they needed may go."""

    @property
    def limit_bytes(self) -> int | None:
        """Where to stop, None: at the end; what a task brings beyond it is kept."""

    @property
    def total_bytes(self) -> int | None:
        """About how much text there is, where that is known: for the progress bar."""


def is_validation(text: str, seed: int, val_fraction: float) -> bool:
    """Tell whether the text is for validation: a function of the text and the seed alone."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64
