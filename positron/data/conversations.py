"""Conversations for fine-tuning: files of instructions or chats, and requests for the built-in stories."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from positron.config import DataConfig
from positron.data.conversation_shapes import Malformed, is_conversation, parse_conversation
from positron.data.decoding import Reading
from positron.data.records import Broken, Record, read_records
from positron.data.sources import is_validation
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text.conversation import Message, is_learned

logger = logging.getLogger(__name__)

SAMPLE_PATH = Path(__file__).parent / "tiny_instruct_sample.jsonl"
NO_ANSWER = "without an answer"
MAX_PLACES = 3  # rows that are named for each kind of mistake
_SURROGATE = re.compile("[\ud800-\udfff]")
SKIPPED_WARNING_SHARE = 0.05  # if a larger share of the rows is skipped, the summary is a warning


@dataclass(frozen=True)
class Conversation:
    """Hold the messages of a conversation, and whether it belongs to validation."""

    messages: tuple[Message, ...]
    is_val: bool
    bits: float | None = None  # -log2 p(answers | questions), if known


@dataclass
class _Reading:
    """Count the rows, formats and mistakes of one `data.path`, for a summary of one line."""

    rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    unused: dict[str, None] = field(default_factory=dict)  # names of fields, in order of appearance
    skipped: dict[str, list[str]] = field(default_factory=dict)  # kind of mistake -> places
    first_error: str | None = None

    @property
    def malformed(self) -> int:
        return sum(len(places) for label, places in self.skipped.items() if label != NO_ANSWER)

    def skip(self, record: Record, label: str, message: str | None) -> None:
        self.skipped.setdefault(label, []).append(record.place)
        if message is not None and self.first_error is None:
            self.first_error = f"{record.file}, {record.place} {message}"

    def line(self) -> str:
        """Return the summary: `ShareGPT format: 300 conversations, 12 skipped: 10 without an answer (line 3, ...), ...`."""
        names = " and ".join(self.shapes) or "unknown"
        text = f"{names} format: {self.rows:,} conversation{'s' * (self.rows != 1)}"
        if skipped := sum(map(len, self.skipped.values())):
            warning = "WARNING: " if skipped > SKIPPED_WARNING_SHARE * self.rows else ""
            text = f"{warning}{text}, {skipped:,} skipped: {self.reasons()}"
        if self.unused:
            text += f"; fields not used: {', '.join(list(self.unused)[:8])}{', ...' * (len(self.unused) > 8)}"
        return text

    def reasons(self) -> str:
        """Return the kinds of mistakes, the most frequent first, each with its count and its first MAX_PLACES rows."""
        parts = []
        for label, places in sorted(self.skipped.items(), key=lambda item: -len(item[1])):
            named = ", ".join([*places[:MAX_PLACES], *["..."] * (len(places) > MAX_PLACES)])
            parts.append(f"{len(places):,} {label} ({named})")
        return ", ".join(parts)


def read_conversations(config: DataConfig) -> list[Conversation]:
    """Read all conversations in the order of the file.

    A conversation is for training or for validation depending on a hash of its first question. Malformed rows are
    skipped, counted and logged with their positions. Raises UserError if more than half of the rows are malformed, or if
    no conversation is left.
    """
    match config.source:
        case "story_instruct":
            return list(story_requests(config.seed, 0, config.examples, config.val_fraction))
        case "instruct":
            return _conversations_of_files(config)
        case "stories" | "text" | "hub" | "imported":
            raise UserError(f"data={config.source} contains text, not conversations: give data=instruct data.path=FILE")
        case _:
            assert_never(config.source)


def _conversations_of_files(config: DataConfig) -> list[Conversation]:
    path = str(SAMPLE_PATH) if config.path is None else config.path
    if config.repo is not None:
        from positron.data.hub_rows import fetch_rows

        path = str(fetch_rows(config))
    reading, conversations = _Reading(), []
    replaces = Reading(on_invalid=config.on_invalid).replaces
    for record in read_records(path, config.on_invalid, is_conversation):
        reading.rows += 1
        messages = _messages(record, reading, replaces)
        if messages:
            question = next((m.content for m in messages if m.role == "user"), "")
            conversations.append(Conversation(messages, is_validation(question, config.seed, config.val_fraction)))
    if not reading.rows:
        raise UserError(f"data.path={path} is empty: give conversations, for example one JSON object per line")
    if 2 * reading.malformed > reading.rows or (reading.malformed and not conversations):
        others = f"; of {reading.rows:,} rows, {reading.reasons()}" if reading.rows > 1 else ""
        raise UserError(f"{reading.first_error}{others}")
    if not conversations:
        raise UserError(
            f"data.path={path} has no answer to learn from in {counted(reading.rows, 'conversation')}: give messages with the "
            "role assistant whose weight is not 0"
        )
    logger.info(reading.line())
    return conversations


def _messages(record: Record, reading: _Reading, replaces: bool) -> tuple[Message, ...]:
    """Return the messages of a row, or () if the row is skipped; record the format or the mistake in `reading`."""
    if isinstance(record.value, Broken):
        reading.skip(record, record.value.label, record.value.message)
        return ()
    value = _replace_surrogates(record.value) if replaces else record.value
    try:
        parsed = parse_conversation(value)
    except Malformed as error:
        reading.skip(record, error.label, str(error))
        return ()
    reading.shapes[parsed.shape] += 1
    reading.unused |= dict.fromkeys(parsed.unused)
    if not any(map(is_learned, parsed.messages)):
        reading.skip(record, NO_ANSWER, None)
        return ()
    return parsed.messages


def _replace_surrogates(value: Any) -> Any:
    """Replace each lone surrogate, which JSON can express and UTF-8 cannot, by U+FFFD."""
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case list():
            return [_replace_surrogates(item) for item in value]
        case dict():
            return {_replace_surrogates(name): _replace_surrogates(item) for name, item in value.items()}
        case _:
            return value


def story_requests(seed: int, start: int, stop: int, val_fraction: float) -> Iterator[Conversation]:
    """Yield conversations start .. stop - 1, each a request with a built-in story as its answer.

    A combination of name, object and place that occurs in validation does not occur in training.
    """
    from positron import stories

    for index in range(start, stop):
        request = stories.requests(seed, index)
        story = stories.generate(seed, index, request)
        messages = (Message("user", stories.ask(request, seed, index)), Message("assistant", story.text))
        combination = f"{request.name}|{request.object}|{request.place}"
        yield Conversation(messages, is_validation(combination, seed, val_fraction), story.bits)
