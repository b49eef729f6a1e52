"""Read conversations or pairs of answers, one in each row of a file or of a dataset of the Hugging Face hub.

The rows may have one of several formats. A summary says in one line what was read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from positron.config import DataConfig
from positron.data.conversation_shapes import Malformed
from positron.data.decoding import Reading
from positron.data.records import Broken, Record, read_records
from positron.system.errors import UserError

MAX_PLACES = 3  # rows that are named for each kind of mistake
SKIPPED_WARNING_SHARE = 0.05  # if a larger share of the rows is skipped, the summary is a warning
_SURROGATE = re.compile("[\ud800-\udfff]")


class Parsed(Protocol):
    """Hold the content of a row, the name of its format, and the names of the fields that were not used."""

    @property
    def shape(self) -> str:
        """Return the name of the row's format, such as "ShareGPT" or "question and answer"."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Return the names of the row's fields that its format does not use."""


P = TypeVar("P", bound=Parsed)


@dataclass
class RowSummary:
    """Count the rows of the data that a command reads, with their formats and mistakes, for a summary of one line.

    `noun`: what a row contains, in the singular, such as "conversation". `harmless`: the labels (see `skip`) of rows that are
    skipped although they are not malformed.
    """

    noun: str
    harmless: tuple[str, ...] = ()
    rows: int = 0  # including the skipped rows
    shapes: Counter[str] = field(default_factory=Counter)  # name of a format -> number of rows
    unused: dict[str, None] = field(default_factory=dict)  # names of unused fields, in order of appearance
    skipped: dict[str, list[str]] = field(default_factory=dict)  # kind of mistake -> positions of these rows
    first_error: str | None = None  # file, position and message of the first malformed row

    @property
    def malformed(self) -> int:
        """Return the number of malformed rows."""
        return sum(len(places) for label, places in self.skipped.items() if label not in self.harmless)

    def skip(self, record: Record, label: str, message: str | None) -> None:
        """Count a row that is not used.

        `label`: the reason in the words of the summary, such as "not JSON". `message`: what is wrong with the row, such as "is
        not JSON". Of all messages, only the first is kept, with the position of its row, for the error that `refuse_malformed`
        may raise. `message` is None if the row is well-formed.
        """
        self.skipped.setdefault(label, []).append(record.place)
        if message is not None and self.first_error is None:
            self.first_error = f"{record.file}, {record.place} {message}"

    def line(self) -> str:
        """Return the summary: `ShareGPT format: 300 conversations, 12 skipped: 10 without an answer (line 3, ...), ...`."""
        names = " and ".join(self.shapes) or "unknown"
        text = f"{names} format: {self.rows:,} {self.noun}{'s' * (self.rows != 1)}"
        if skipped := sum(map(len, self.skipped.values())):
            warning = "WARNING: " if skipped > SKIPPED_WARNING_SHARE * self.rows else ""
            text = f"{warning}{text}, {skipped:,} skipped: {self.reasons()}"
        if self.unused:
            text += f"; fields not used: {', '.join(list(self.unused)[:8])}{', ...' * (len(self.unused) > 8)}"
        return text

    def reasons(self) -> str:
        """Return the kinds of mistakes, the most frequent first, each with its count and its first three rows."""
        parts = []
        for label, places in sorted(self.skipped.items(), key=lambda item: -len(item[1])):
            named = ", ".join([*places[:MAX_PLACES], *["..."] * (len(places) > MAX_PLACES)])
            parts.append(f"{len(places):,} {label} ({named})")
        return ", ".join(parts)

    def refuse_malformed(self, label: str, n_used: int) -> None:
        """Raise UserError if there are no rows, if more than half are malformed, or if some are malformed and none is used.

        `label`: the name of the data in messages, such as `data.path=FILE` (see `name_of`). `n_used`: the number of rows that
        are used.
        """
        if not self.rows:
            raise UserError(f"{label} contains no {self.noun}s: give some, for example one JSON object per line")
        if 2 * self.malformed > self.rows or (self.malformed and not n_used):
            n = sum(map(len, self.skipped.values()))
            others = f"; {n:,} of the {self.rows:,} rows cannot be used: {self.reasons()}" if self.rows > 1 else ""
            raise UserError(f"{self.first_error}{others}")


def path_of(config: DataConfig, default: str) -> str:
    """Return the path of the file, folder or pattern that contains the rows.

    If `data.repo` is given, its rows are downloaded to a file, whose path is returned. Otherwise, `data.path` is returned, or
    `default` if `data.path` is not given. Raises the errors of `fetch_rows`.
    """
    if config.repo is not None:
        from positron.data.hub_rows import fetch_rows

        return str(fetch_rows(config))
    return default if config.path is None else config.path


def name_of(config: DataConfig) -> str:
    """Return the setting that says where the rows are, for messages: `data.repo=OWNER/NAME` or `data.path=FILE`."""
    return f"data.path={config.path}" if config.repo is None else f"data.repo={config.repo}"


def parsed_rows(
    path: str, config: DataConfig, summary: RowSummary, is_row: Callable[[Any], bool], parse: Callable[[Any], P]
) -> Iterator[tuple[Record, P]]:
    """Yield each well-formed row together with the result of `parse`, which gets the content of the row.

    `path` is a file, a folder or a pattern. `parse` must raise Malformed for a malformed row. Such rows are left out. All rows,
    their formats and the malformed rows are counted in `summary`. `is_row` decides whether a JSON value that fills a whole file
    is itself one row.
    """
    replaces = Reading(on_invalid=config.on_invalid).replaces
    for record in read_records(path, config.on_invalid, is_row):
        summary.rows += 1
        if isinstance(record.value, Broken):
            summary.skip(record, record.value.label, record.value.message)
            continue
        try:
            parsed = parse(_replace_surrogates(record.value) if replaces else record.value)
        except Malformed as error:
            summary.skip(record, error.label, str(error))
            continue
        summary.shapes[parsed.shape] += 1
        summary.unused |= dict.fromkeys(parsed.unused)
        yield record, parsed


def _replace_surrogates(value: Any) -> Any:
    """Replace each lone surrogate in a JSON value by U+FFFD. JSON can express lone surrogates, but UTF-8 cannot."""
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case list():
            return [_replace_surrogates(item) for item in value]
        case dict():
            return {_replace_surrogates(name): _replace_surrogates(item) for name, item in value.items()}
        case _:
            return value
