"""Where text comes from: the built-in stories, or a text file.

A source is cut into tasks, small and picklable, which `read` turns into documents: so that several processes can work
on one corpus, and every process gets the same documents from the same task. Which side of the train/validation split a
document is on depends on its text alone, so equal documents are always on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from positron.config import DataConfig, UserError

SEPARATOR = "<|endoftext|>"  # a line of its own between the documents of a text file
STORIES_PER_TASK = 500
CHARS_PER_TASK = 1 << 20
FEWEST_DOCUMENTS = 20  # fewer than this, and a text is split at a place instead of by document


@dataclass(frozen=True)
class Document:
    text: str
    is_val: bool
    bits: float | None = None  # -log2 p(text), where it is known
    ends: bool = True  # False: the next document goes on where this one stops


class Source(Protocol):
    name: str  # of its folder below data.dir
    fingerprint: str

    def tasks(self) -> Iterator[Any]: ...

    def read(self, task: Any) -> list[Document]: ...

    @property
    def size_bytes(self) -> int:
        """Where to stop; what a task brings beyond it is kept."""


def side(text: str, seed: int, val_fraction: float) -> bool:
    """True: validation."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


class StoriesSource:
    """The built-in corpus. Story i is a pure function of (seed, i), so nothing needs to be kept to make it again."""

    def __init__(self, config: DataConfig) -> None:
        self.seed, self.val_fraction = config.seed, config.val_fraction
        self.size_bytes = round(config.size_mb * 1e6)
        from positron.data import stories

        facts = f"stories {stories.GRAMMAR_VERSION} {self.size_bytes} {self.seed} {self.val_fraction}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.name = f"stories-{config.size_mb:g}mb-{self.fingerprint[:8]}"

    def tasks(self) -> Iterator[int]:
        start = 0
        while True:
            yield start
            start += STORIES_PER_TASK

    def read(self, task: int) -> list[Document]:
        from positron.data import stories

        return [
            Document(story.text, side(story.text, self.seed, self.val_fraction), story.bits)
            for story in stories.documents(self.seed, task, task + STORIES_PER_TASK)
        ]


class TextSource:
    """One UTF-8 text file. Documents are separated by lines `<|endoftext|>`; without any, its end is for validation."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        path = Path(config.path).expanduser()
        text = read_utf8(path)
        self.size_bytes = len(text.encode("utf-8"))
        self._documents = _split(text, config.seed, config.val_fraction)
        facts = f"text {config.seed} {config.val_fraction} {hashlib.sha256(text.encode('utf-8')).hexdigest()}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.name = f"text-{path.stem}-{self.fingerprint[:8]}"

    def tasks(self) -> Iterator[list[Document]]:
        """About a million characters each; a longer document is cut after a newline, where tokenizers cut too."""
        task: list[Document] = []
        size = 0
        for document in self._documents:
            rest = document.text
            while len(rest) > CHARS_PER_TASK:
                cut = rest.rfind("\n", 0, CHARS_PER_TASK) + 1 or CHARS_PER_TASK
                yield [*task, Document(rest[:cut], document.is_val, ends=False)]
                task, size, rest = [], 0, rest[cut:]
            task.append(Document(rest, document.is_val))
            size += len(rest)
            if size > CHARS_PER_TASK:
                yield task
                task, size = [], 0
        if task:
            yield task

    def read(self, task: list[Document]) -> list[Document]:
        return task


def read_utf8(path: Path) -> str:
    """The file's text, exactly (newlines too). UserError where it is missing, empty or not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read data.path={path}: {error.strerror or error}") from error
    if not content:
        raise UserError(f"data.path={path} is empty")
    if b"\0" in content[:8192]:
        raise UserError(f"data.path={path} looks like a binary file: byte {content.index(0)} is zero; give plain text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.path={path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}") from error


def _split(text: str, seed: int, val_fraction: float) -> list[Document]:
    parts = [part.strip("\n") for part in text.split(f"\n{SEPARATOR}\n")]
    last = parts[-1].removesuffix(f"\n{SEPARATOR}").removesuffix(SEPARATOR)
    documents = [part for part in (*parts[:-1], last) if part]
    if len(documents) >= FEWEST_DOCUMENTS:
        return [Document(part, side(part, seed, val_fraction)) for part in documents]
    place = round(len(text) * (1 - val_fraction))  # one long text: its end is for validation
    place = text.rfind("\n", 0, place) + 1 or place
    return [Document(text[:place], is_val=False), Document(text[place:], is_val=True)]


def open_source(config: DataConfig) -> Source:
    return StoriesSource(config) if config.source == "stories" else TextSource(config)
