"""Open the source that a configuration names: the built-in stories, files, or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import assert_never

from positron.config import DataConfig
from positron.data.sources import Document, Source, is_validation
from positron.system.errors import UserError

STORIES_PER_TASK = 500


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
            Document(story.text, is_validation(story.text, self.seed, self.val_fraction), story.bits)
            for story in stories.documents(self.seed, task, task + STORIES_PER_TASK)
        ]


def open_source(config: DataConfig) -> Source:
    """The corpus that a configuration names. UserError where it is missing, empty or unreadable."""
    match config.source:
        case "stories":
            return StoriesSource(config)
        case "text":
            from positron.data.files import FileSource

            return FileSource(config)
        case "hub":
            from positron.data.hub import HubSource, Repository
            from positron.data.hub_rows import HubRowsSource

            repository = Repository(config)
            if repository.files or config.tokens_per_epoch is not None:
                return HubSource(config)
            return HubRowsSource(repository, config)
        case "instruct" | "story_instruct":
            raise UserError(
                f"data={config.source} holds conversations, not text: data=text data.path=FILE, or data=stories"
            )
        case _:
            assert_never(config.source)
