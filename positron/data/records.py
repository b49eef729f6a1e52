"""Read the rows of JSON, CSV, Parquet and Arrow files as Python values, each with its position in the file.

`listing.py` finds the files, and `decoding.py` decompresses and decodes them, as for files of training text.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from positron.config import OnInvalid
from positron.data.decoding import Reading, explain_read_error, read_text
from positron.data.listing import format_of, list_files
from positron.data.rows import arrow_reader, csv_rows
from positron.system.commands import command
from positron.system.errors import UserError, where_not_json

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
)  # taken from a folder, also with .gz or .zst
MAX_BROKEN = 100
_VALUE_AT_LINE_START = re.compile(r"\n[{\[]")
_SPACES = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Broken:
    """Stand for a row that cannot be read.

    `message` says what is wrong with this row, such as "is not JSON". The user sees it after the position of the row: "line 3
    is not JSON".

    `label` names the kind of mistake, such as "not JSON". The user sees it in a summary, between the number and the positions
    of such rows: "2 not JSON (line 3, line 8)".
    """

    label: str
    message: str


@dataclass(frozen=True)
class Record:
    """Hold a row of a file: its position (`place`), such as "line 3", and its JSON value, or `Broken` if it cannot be read."""

    file: Path
    place: str
    value: Any


def read_records(path: str, on_invalid: OnInvalid, is_record: Callable[[Any], bool]) -> Iterator[Record]:
    """Yield all rows of the files that `path` names: a file, a folder, or a pattern.

    `on_invalid`: what to do with bytes that are not UTF-8, "error" or "replace". `is_record` tells whether a JSON value is a
    row. If a whole file is one JSON value and this value is not a row, rows are looked for inside it (see
    `_rows_of_document`). The files of a folder or pattern that are skipped are logged. Raises UserError, with the file's
    name, if a file cannot be read at all.
    """
    listing = list_files(path, f"data.path={path}", SUFFIXES)
    if skipped := listing.describe_skipped():
        logger.info(f"skipped files: {skipped}")
    for file in listing.files:
        try:
            yield from _records_of_file(file, on_invalid, is_record)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot read {file}: {explain_read_error(error, file)}") from error


def _records_of_file(path: Path, on_invalid: OnInvalid, is_record: Callable[[Any], bool]) -> Iterator[Record]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in (".gz", ".zst") else "".join(suffixes[-1:])
    if kind == ".parquet":
        rows: Iterator[tuple[str, Any]] = _numbered(parquet_rows(path), path)
    elif kind == ".arrow":
        rows = _numbered(_arrow_rows(path), path)
    else:
        text = read_text(path, Reading(on_invalid=on_invalid))
        if kind in (".csv", ".tsv"):
            rows = _csv_rows(text, path)
        else:
            rows = _json_rows(text, path, is_record, by_line=kind in (".jsonl", ".ndjson"))
    for place, value in rows:
        yield Record(path, place, value)


def parquet_rows(path: Path, row_group: int | None = None) -> Iterator[Any]:
    """Yield the rows of a Parquet file: those of the row group with the index `row_group`, or all rows if it is None."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for rows in file.iter_batches(batch_size=1000, row_groups=None if row_group is None else [row_group]):
            yield from rows.to_pylist()


def _arrow_rows(path: Path) -> Iterator[Any]:
    with arrow_reader(path) as reader:
        for rows in reader:
            yield from rows.to_pylist()


def _numbered(rows: Iterator[Any], path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow

    try:
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200].removesuffix(".")
        raise UserError(f"cannot read {path}: {reason}; copy, download or create the file again") from error


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (position, row) for each row; a row is a dict whose keys are the names in the first line.

    The position is a text such as "line 3". Missing cells are None. A row with too many cells is `Broken`. Raises UserError if
    the quotes of the file are wrong, because it is then not known where its rows end.
    """
    rows = csv_rows([text], path)
    _, names = next(rows, (0, []))
    for line, cells in rows:
        if len(cells) > len(names):
            reason = (
                f"has {len(cells)} cells, but the first line has {len(names)}: quote texts that contain the separator"
            )
            yield f"line {line}", Broken("with too many cells", reason)
        else:
            yield f"line {line}", dict(zip_longest(names, cells))


def _json_rows(text: str, path: Path, is_record: Callable[[Any], bool], *, by_line: bool) -> Iterator[tuple[str, Any]]:
    """Yield (position, row) for each row of a JSON text. The row is `Broken` if it is not valid JSON.

    Three formats are tried in this order:
    1. The whole text is one JSON value (see `_rows_of_document`).
    2. The text has one JSON value on each line. This format fits if at least half of the non-empty lines are valid.
    3. JSON values follow each other, each on one or more lines. This format fits if at least half of the values are valid.
    If no format fits, the text is read in the second format if at least one line is valid or if `by_line` is true (the suffix
    of the file is .jsonl or .ndjson). Otherwise, raises UserError.
    """
    if not text.strip():
        return
    whole = _parsed(text, "correct it")
    if not isinstance(whole, Broken):
        yield from _rows_of_document(whole, path, is_record)
        return
    # only a newline ends a line: strings may contain U+2028 and U+0085 unescaped
    lines = [(f"line {i}", _parsed(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    n_valid = sum(not isinstance(value, Broken) for _, value in lines)
    if 2 * n_valid >= len(lines):
        yield from lines
        return
    values = _values_in_a_row(text)
    if 2 * sum(not isinstance(value, Broken) for _, value in values) >= len(values):
        yield from values
    elif by_line or n_valid:
        yield from lines
    elif text.lstrip()[0] not in "{[":
        train = command("train", "data=text", f"data.path={path}")
        raise UserError(
            f"{path} contains plain text, not conversations or pairs: give a file that has one JSON object per line"
            + ("" if format_of(path) == "json" else f"; to train on plain text, run {train}")
        )
    else:
        raise UserError(f"{path} {whole.message}")


def _parsed(text: str, remedy: str = "correct or remove it") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Broken("not JSON", f"is not JSON: {where_not_json(error)}; {remedy}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 nested lists
        return Broken("not JSON", f"is not JSON that can be read: {' '.join(str(error).split())[:100]}; {remedy}")


def _values_in_a_row(text: str) -> list[tuple[str, Any]]:
    """Parse JSON values that follow each other, each on one or more lines, and return pairs (position, value).

    The position is the line in which the value begins, as a text such as "line 3". An invalid value is returned as `Broken`.
    After it, parsing continues at the next line that begins with { or [. The rest of the text is not parsed if there are more
    than 100 invalid values (MAX_BROKEN) and more than two for each valid one: the text is then not in this format, and each
    invalid value takes a time that is proportional to the length of the text.
    """
    decoder, at, n_broken = json.JSONDecoder(), 0, 0
    values: list[tuple[str, Any]] = []
    line, counted = 1, 0  # the number of the line at text[counted]
    while True:
        spaces = _SPACES.match(text, at)
        assert spaces is not None  # the pattern matches anywhere
        start = spaces.end()
        if start >= len(text):
            return values
        line, counted = line + text.count("\n", counted, start), start
        value: Any
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = _parsed(text[start:])
            next_value = _VALUE_AT_LINE_START.search(text, start)
            at = next_value.start() + 1 if next_value else len(text)
            n_broken += 1
        values.append((f"line {line}", value))
        if n_broken > MAX_BROKEN and 3 * n_broken > 2 * len(values):
            return values


def _rows_of_document(whole: Any, path: Path, is_record: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """Yield (position, row) for each row of a JSON value.

    The value has one of five forms: one row; a list of rows; an object with a list of rows in one of its fields; a table, as an
    object that maps the name of each column to its values; or an object whose values are rows. `is_record` tells whether a
    value is a row. Raises UserError if several fields of an object contain a list of rows.
    """
    if is_record(whole):
        yield "line 1", whole
    elif isinstance(whole, list):
        yield from ((f"entry {i}", value) for i, value in enumerate(whole, 1))
    elif isinstance(whole, dict):
        yield from _rows_of_object(whole, path, is_record)
    else:
        yield "line 1", whole


def _rows_of_object(whole: dict[str, Any], path: Path, is_record: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    lists = {
        key: value
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(row, (dict, list)) for row in value)
    }
    if len(lists) == 1:
        ((key, rows),) = lists.items()
        yield from ((f"`{key}`, entry {i}", row) for i, row in enumerate(rows, 1))
    elif len(lists) > 1:
        raise UserError(f"{path} contains several lists ({', '.join(lists)}): give a file with one of them")
    elif rows := _rows_of_columns(whole, is_record):
        yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
    elif any(map(is_record, whole.values())) and all(isinstance(value, (dict, list)) for value in whole.values()):
        yield from ((f"entry {key!r}", value) for key, value in whole.items())
    else:
        yield "line 1", whole


def _rows_of_columns(whole: dict[str, Any], is_record: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """Convert a table, given as an object that maps the name of each column to its values, to rows.

    A column is a list, or an object that maps row numbers to values, as pandas writes it. Returns [] if `whole` has another
    form, if its columns have different lengths, or if `is_record` does not accept the first row.
    """
    columns = {key: list(value.values()) if isinstance(value, dict) else value for key, value in whole.items()}
    if not all(isinstance(column, list) for column in columns.values()) or len(set(map(len, columns.values()))) != 1:
        return []
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows if rows and is_record(rows[0]) else []
