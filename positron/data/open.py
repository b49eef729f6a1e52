"""Open the source of training text that a configuration names.

A source is one of these: generated stories, generated sums such as `12+34=46`, files, or a dataset of the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import assert_never

from positron.config import DataConfig
from positron.data.addition import AdditionSource
from positron.data.sources import Document, Source, is_validation
from positron.system.errors import UserError

STORIES_PER_TASK = 500


class StoriesSource:
    """Generate the built-in corpus of stories. Story i is a function of (seed, i), so that any story can be generated alone."""

    def __init__(self, config: DataConfig) -> None:
        self.seed, self.val_fraction = config.seed, config.val_fraction
        self.limit_bytes = self.total_bytes = round(config.size_mb * 1e6)
        from positron import stories

        facts = f"stories {stories.GRAMMAR_VERSION} {self.limit_bytes} {self.seed} {self.val_fraction}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.earlier_fingerprint = self.fingerprint
        self.name = f"stories-{config.size_mb:g}mb-{self.fingerprint[:8]}"

    def tasks(self, skip: int = 0) -> Iterator[int]:
        """Yield the tasks from number `skip` on; the iterator never ends.

        A task stands for 500 stories. It is the index of the first one.
        """
        start = skip * STORIES_PER_TASK
        while True:
            yield start
            start += STORIES_PER_TASK

    def summary(self) -> str:
        """Return an empty string: there is nothing to report."""
        return ""

    def release(self, tasks_done: int | None) -> None:
        """Do nothing: the stories are generated, so no downloaded file has to be deleted."""

    def read(self, task: int) -> list[Document]:
        """Generate 500 stories, each with -log2 of its probability under the grammar.

        `task` is the index of the first of these stories.
        """
        from positron import stories

        return [
            Document(story.text, is_validation(story.text, self.seed, self.val_fraction), story.bits)
            for story in stories.documents(self.seed, task, task + STORIES_PER_TASK)
        ]


def open_source(config: DataConfig) -> Source:
    """Open the corpus that a configuration names.

    Raises UserError if the corpus is missing, empty or unreadable, or if it contains conversations or pairs of answers instead
    of text. Raises Unreachable if the corpus must be looked up on the hub and the hub cannot be reached.
    """
    match config.source:
        case "stories":
            return StoriesSource(config)
        case "addition":
            return AdditionSource(config)
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
        case "imported":
            raise UserError(
                "the settings say that the model was imported (data.source=imported), so its training text is unknown: give "
                "data=text data.path=FILE, or data=stories"
            )
        case "instruct" | "story_instruct" | "preferences" | "story_preference":
            content = "pairs of answers" if config.holds_pairs else "conversations"
            raise UserError(
                f"data={config.source} contains {content}, not text: give data=text data.path=FILE, or data=stories"
            )
        case _:
            assert_never(config.source)
