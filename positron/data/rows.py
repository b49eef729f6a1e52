"""Texts from files of rows: JSON lines, JSON arrays, CSV, parquet and Arrow. Errors name the file and the row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from positron.data.decoding import Reading, opened
from positron.data.listing import delimiter_of
from positron.system.console import one_line
from positron.system.errors import UserError

_BLANKS = re.compile(r"[\s,]*")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[^"\[\]{}]+')
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
_ANY_INTEGER = json.JSONDecoder(parse_int=str)  # numbers of other fields may have any number of digits


class FieldMissing(UserError):
    """A file of rows has no field, or no column, of the asked name."""


def json_texts(blocks: Iterable[str], path: Path, reading: Reading, *, is_lines: bool) -> Iterator[str]:
    """The text of each row. `is_lines`: one JSON object per line; else, or if it begins with `[`, any JSON values."""
    blocks, head = iter(blocks), ""
    for block in blocks:
        head += block
        if head.strip():
            break
    rows = chain([head], blocks)
    if is_lines and head.lstrip()[:1] != "[":
        yield from _line_texts(rows, path, reading)
    else:
        for number, value in enumerate(_json_values(rows, path), 1):
            if text := _text_of(value, path, ("entry", number), reading):
                yield text


def _line_texts(blocks: Iterable[str], path: Path, reading: Reading) -> Iterator[str]:
    for number, line in enumerate(_lines(blocks), 1):
        if not line.strip():
            continue
        try:
            row = _loads(line)
        except ValueError as error:
            raise UserError(f"{one_line(str(path))}, line {number} is not JSON: {error}") from error
        if text := _text_of(row, path, ("line", number), reading):
            yield text


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines without their ends; only \\n ends one, since JSON may hold U+2028 and its like raw."""
    rest = ""
    for block in blocks:
        lines = (rest + block).split("\n")
        rest = lines.pop()
        yield from lines
    if rest:
        yield rest


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return _ANY_INTEGER.decode(_shallow(line))
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        return _ANY_INTEGER.decode(line)


def _shallow(line: str) -> str:
    """The same JSON object with null for what is nested in it, which may be deeper than Python can read."""
    parts, depth = [], 0
    for match in _TOKENS.finditer(line):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth == 2:
                parts.append("null")
        if depth < 2:
            parts.append(token)
        if token in "]}":
            depth -= 1
    return "".join(parts)


def _json_values(blocks: Iterable[str], path: Path) -> Iterator[Any]:
    """The entries of an array, or values that follow one another; one at a time, however long the file is."""
    shown = one_line(str(path))
    text, at, number, in_array = "", 0, 0, False
    blocks = iter(blocks)
    while True:
        blanks = _BLANKS.match(text, at)
        assert blanks is not None
        at = blanks.end()
        if at == len(text):
            block = next(blocks, None)
            if block is None:
                break
            text, at = block, 0
        elif text[at] == "[" and not in_array:
            in_array, at = True, at + 1
        elif text[at] == "]" and in_array:
            in_array, at = False, at + 1
        else:
            try:
                value, at = _ANY_INTEGER.raw_decode(text, at)
            except RecursionError as error:
                raise UserError(f"{shown}, entry {number + 1} is nested too deeply to be read") from error
            except ValueError as error:
                more = _at_least(blocks, len(text) - at)
                if not more:
                    raise UserError(
                        f"{shown}, entry {number + 1} is not JSON: {error.args[0].split(': line')[0]}"
                    ) from error
                text, at = text[at:] + more, 0
                continue
            number += 1
            yield value
    if in_array:
        raise UserError(f"{shown} ends inside of its array, after entry {number}: is it cut off?")


def _at_least(blocks: Iterator[str], size: int) -> str:
    """The next blocks, as many characters as are waiting, so that a long entry is not read again for each block."""
    parts = []
    for block in blocks:
        parts.append(block)
        size -= len(block)
        if size <= 0 and "".join(parts):
            break
    return "".join(parts)


def _text_of(row: Any, path: Path, place: tuple[str, int], reading: Reading) -> str:
    text = row.get(reading.field) if isinstance(row, dict) else None
    if isinstance(text, str) and text.isascii():
        return text
    where = f"{one_line(str(path))}, {place[0]} {place[1]}"
    if not isinstance(text, str):
        if isinstance(row, dict) and reading.field in row:
            raise UserError(f"{where} has {_KINDS[type(text)]} in {reading.field_name}, not text")
        fields = ", ".join(row) if isinstance(row, dict) else f"no fields, it is {_KINDS[type(row)]}"
        raise FieldMissing(f"{where} has no text in {reading.field_name}; it has: {one_line(fields, 200)}")
    return reading.replace_surrogates(text, where)


def csv_texts(blocks: Iterable[str], path: Path, reading: Reading) -> Iterator[str]:
    """One column of a .csv or .tsv, which the first line names; cells may be quoted and hold line ends."""
    shown = one_line(str(path))
    csv.field_size_limit(1 << 31 - 1)
    lines = (f"{line}\n" for line in _lines(blocks))
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    delimiter = delimiter_of(path)
    if delimiter not in first:
        delimiter = next((mark for mark in ";\t" if mark in first), delimiter)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if reading.field not in names:
            raise FieldMissing(
                f"{shown} has no column {reading.field_name}; its first line has: {one_line(', '.join(names), 200)}"
            )
        column = names.index(reading.field)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{shown}, line {rows.line_num} has {len(cells)} cells and the first line {len(names)}: "
                    "a cell with a separator or a line end in it must be quoted"
                )
            if cells[column]:
                yield cells[column]
    except csv.Error as error:
        raise UserError(f"{shown}, line {rows.line_num} is not CSV: {error}") from error


def parquet_texts(path: Path, reading: Reading, row_group: int | None = None) -> Iterator[str]:
    """The texts of one column, of one row group or of all. UserError if it is missing, no text, or damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow, path, reading)
            groups = None if row_group is None else [row_group]
            batches = file.iter_batches(batch_size=1000, row_groups=groups, columns=[reading.field])
            yield from _column_texts(batches, path, reading)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def arrow_texts(path: Path, reading: Reading) -> Iterator[str]:
    """Yield the texts of one column of an Arrow file. UserError if it is missing, no text, or damaged."""
    import pyarrow

    try:
        with arrow_reader(path) as reader:
            _check_column(reader.schema, path, reading)
            yield from _column_texts((batch.select([reading.field]) for batch in reader), path, reading)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


@contextmanager
def arrow_reader(path: Path) -> Iterator[Any]:
    """Open an Arrow file of either kind: a stream, as `Dataset.save_to_disk` writes it, or the one with a footer."""
    import pyarrow

    with opened(path) as file:
        head = file.read(6)
    with opened(path) as file:
        if head == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield pyarrow.RecordBatchReader.from_batches(reader.schema, batches)
        else:
            yield pyarrow.ipc.open_stream(file)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {one_line(str(path))}: {one_line(' '.join(str(error).split()), 200)}")


def _check_column(schema: Any, path: Path, reading: Reading) -> None:
    """Refuse a table without the column, or one whose column holds no text."""
    shown = one_line(str(path))
    if reading.field not in schema.names:
        columns = one_line(", ".join(schema.names), 200)
        raise UserError(f"{shown} has no column {reading.field_name}; it has: {columns}")
    type_ = schema.field(schema.names.index(reading.field)).type
    if not _is_text(type_):
        others = [name for name, type_ in zip(schema.names, schema.types, strict=True) if _is_text(type_)]
        raise UserError(
            f"{shown}: the column {reading.field_name} holds {one_line(str(type_), 80)}, not text"
            + (f"; columns with text: {one_line(', '.join(others), 200)}" if others else "")
        )


def _column_texts(batches: Iterable[Any], path: Path, reading: Reading) -> Iterator[str]:
    """The texts of record batches of one column; empty ones and nulls are left out."""
    shown, number = one_line(str(path)), 0
    for rows in batches:
        for text in _values(rows.column(0)):
            number += 1
            if isinstance(text, bytes):
                text = reading.decode(text, f"{shown}, row {number}")
            if text:
                yield text


def _values(column: Any) -> list[Any]:
    import pyarrow

    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # a column that is declared as text and holds other bytes
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        wide = pyarrow.types.is_large_string(column.type)
        values = column.cast(pyarrow.large_binary() if wide else pyarrow.binary()).to_pylist()
    return values


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type holds text, or bytes that may be UTF-8."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    named = (
        "is_string",
        "is_large_string",
        "is_string_view",
        "is_binary",
        "is_large_binary",
        "is_binary_view",
        "is_null",
    )
    return any(getattr(types, name, bool)(kind) for name in named if hasattr(types, name))
