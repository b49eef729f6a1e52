"""Where text comes from: the built-in stories here, files in `files.py`, the hub in `hub.py`.

A source is cut into tasks, small and picklable, which `read` turns into documents: so that several processes can work
on one corpus, and every process gets the same documents from the same task. Which side of the train/validation split a
document is on depends on its text alone, so equal documents are always on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from positron.config import DataConfig

STORIES_PER_TASK = 500
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


def side(text: str, seed: int, val_fraction: float) -> bool:
    """True: validation."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


class StoriesSource:
    """The built-in corpus. Story i is a pure function of (seed, i), so nothing needs to be kept to make it again."""

    def __init__(self, config: DataConfig) -> None:
        self.seed, self.val_fraction = config.seed, config.val_fraction
        self.limit_bytes = self.total_bytes = round(config.size_mb * 1e6)
        from positron import stories

        facts = f"stories {stories.GRAMMAR_VERSION} {self.limit_bytes} {self.seed} {self.val_fraction}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.earlier_fingerprint = self.fingerprint
        self.name = f"stories-{config.size_mb:g}mb-{self.fingerprint[:8]}"

    def tasks(self, skip: int = 0) -> Iterator[int]:
        start = skip * STORIES_PER_TASK
        while True:
            yield start
            start += STORIES_PER_TASK

    def summary(self) -> str:
        return ""

    def release(self, tasks_done: int | None) -> None:
        """Stories leave nothing behind."""

    def read(self, task: int) -> list[Document]:
        from positron import stories

        return [
            Document(story.text, side(story.text, self.seed, self.val_fraction), story.bits)
            for story in stories.documents(self.seed, task, task + STORIES_PER_TASK)
        ]


def open_source(config: DataConfig, say: Callable[[str], None] = print) -> Source:
    """The corpus that a configuration names. UserError where it is missing, empty or unreadable."""
    if config.source == "stories":
        return StoriesSource(config)
    if config.source == "hub":
        from positron.data.hub import HubSource

        return HubSource(config, say)
    from positron.data.files import FileSource

    return FileSource(config)
