"""Read texts from files of rows: JSON lines, JSON arrays, CSV, Parquet and Arrow. Errors name the file and the row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from positron.data.decoding import Reading, open_decompressed
from positron.data.listing import delimiter_of
from positron.system.console import one_line
from positron.system.errors import UserError, where_not_json, why_not_json
from positron.system.formatting import counted

_BLANKS = re.compile(r"[\s,]*")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[^"\[\]{}]+')
_QUOTED = re.compile('"[^"]*"')
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)
MAX_DIGITS = 4000  # Python refuses to convert integers with more than 4,300 digits


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


_ANY_INTEGER = json.JSONDecoder(parse_int=_number)  # numbers of other fields may have any number of digits


class FieldMissing(UserError):
    """Report that a row of a file (or a table) has no field (or column) with the requested name."""


def json_texts(blocks: Iterable[str], path: Path, reading: Reading, *, is_lines: bool) -> Iterator[str]:
    """Yield the field `reading.field` of each row of a JSON file whose content is `blocks`; skip empty texts.

    If `is_lines` is true and the file does not begin with `[`, the file is read as one JSON object per line. Otherwise, it is
    read as an array of rows, or JSON values that follow each other. Raises UserError for malformed JSON and for a value that is
    not text, FieldMissing for a row without the field.
    """
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
            shown = f"{one_line(str(path))}, line {number}"
            if line.strip() == "{":
                raise UserError(
                    f"{shown} is only the beginning of a JSON object: write each object on one line, or let the name of the "
                    "file end in .json"
                ) from error
            raise UserError(f"{shown} is not JSON: {where_not_json(error)}; correct or remove the line") from error
        if text := _text_of(row, path, ("line", number), reading):
            yield text


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    r"""Yield the lines without their ends. Only \n ends a line, since JSON strings may contain characters such as U+2028."""
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
        return _ANY_INTEGER.decode(_without_nested_values(line))
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        return _ANY_INTEGER.decode(line)


def _without_nested_values(line: str) -> str:
    """Replace the nested values of a JSON object by null, since they may be nested more deeply than Python can parse."""
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
    """Yield the entries of a JSON array, or JSON values that follow each other, without keeping the whole file in memory."""
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
                raise UserError(
                    f"{shown}, entry {number + 1} is nested too deeply to be parsed: remove or flatten it"
                ) from error
            except ValueError as error:
                next_text = _at_least(blocks, len(text) - at)
                if not next_text:
                    raise UserError(
                        f"{shown}, entry {number + 1} is not JSON: {why_not_json(error)}; correct or remove it"
                    ) from error
                text, at = text[at:] + next_text, 0
                continue
            number += 1
            yield value
    if in_array:
        raise UserError(
            f"{shown} ends after entry {number}, without the ] of its array: add the ], or copy or download the file again if "
            "more is missing"
        )


def _at_least(blocks: Iterator[str], size: int) -> str:
    """Return the next blocks, joined, with at least `size` characters if there are so many, or "" if no block is left.

    The caller has read the beginning of an entry and gives the length of this beginning as `size`. So the text is twice as long
    before it is parsed again. If it were parsed again after each block, reading a long entry would take quadratic time.
    """
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
    position = f"{one_line(str(path))}, {place[0]} {place[1]}"
    if not isinstance(text, str):
        others = [name for name, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
        if isinstance(row, dict) and reading.field in row:
            advice = "correct or remove this row"
            if place[1] == 1 and text is not None and others:  # probably all rows have such a value
                advice = f"{reading.choice_of(others)}, or correct this row"
            raise UserError(
                f"{position} has {_KINDS[type(text)]} in the field {reading.field_name}, not text: {advice}"
            )
        if isinstance(row, dict):
            advice = reading.choice_of(others) if place[1] == 1 else "add it, or remove this row"
        else:
            remedy = "correct or remove this row"
            if isinstance(row, str | int | float) and not isinstance(row, bool):
                remedy = f'write each text as {{"{one_line(reading.field)}": "..."}}'
            advice = f"the row is {_KINDS[type(row)]}, not an object with fields; {remedy}"
        raise FieldMissing(f"{position} has no field {reading.field_name}: {advice}")
    return reading.replace_surrogates(text, position)


def csv_texts(blocks: Iterable[str], path: Path, reading: Reading) -> Iterator[str]:
    """Yield the texts of the column `reading.field` of a .csv or .tsv file, whose first line names the columns.

    Empty cells are skipped. Cells may be quoted and contain line ends. Raises FieldMissing if there is no such column,
    UserError if the file is malformed.
    """
    shown, rows = one_line(str(path)), csv_rows(blocks, path)
    names = [name.strip() for name in next(rows, (0, []))[1]]
    if not names:
        return
    if reading.field not in names:
        raise FieldMissing(f"{shown} has no column {reading.field_name} in its first line: {reading.choice_of(names)}")
    column = names.index(reading.field)
    for line, cells in rows:
        if len(cells) != len(names):
            advice = (
                "quote cells that contain a separator"
                if len(cells) > len(names)
                else "add the missing cells, and quote cells that contain a line end"
            )
            raise UserError(
                f"{shown}, line {line} has {counted(len(cells), 'cell')}, but the first line has {len(names)}: {advice}"
            )
        if cells[column]:
            yield cells[column]


def csv_rows(blocks: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row of a .csv or .tsv file, with the number of the line in which the row begins.

    The first row contains the names of the columns. Empty lines are skipped. Cells may be quoted and contain line ends. In a
    .csv file, the cells are separated by the most frequent of comma, semicolon and tab in the first row, outside of quotes. A
    line such as `sep=;` before the first row, as for Excel, is no row, but names the separator. Raises UserError if a quoted
    cell does not end, or if text follows the end of a quoted cell.
    """
    shown = one_line(str(path))
    csv.field_size_limit((1 << 31) - 1)
    lines = (f"{line}\n" for line in _lines(blocks))
    before, named = 0, None  # number of lines before the first row; separator that one of them names
    for first in lines:
        if named is None and (match := _SEPARATOR_LINE.fullmatch(first)):
            named = match[1]
        elif first.strip():
            break
        before += 1
    else:
        return
    delimiter = named or delimiter_of(path)
    if named is None and (delimiter == "," or delimiter not in first):
        delimiter = max(delimiter, ";", "\t", key=_QUOTED.sub("", first).count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    begin = before + 1  # the line in which a row begins
    try:
        for cells in rows:
            if cells:
                yield begin, cells
            begin = before + rows.line_num + 1
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise UserError(
                f"{shown}, line {begin} begins a row with a quoted cell that does not end: add the missing quote (a quote "
                "inside a quoted cell is written twice)"
            ) from error
        line = before + rows.line_num
        row = f", in the row that begins at line {begin}," if begin < line else ""
        raise UserError(
            f"{shown}, line {line}{row} is not CSV: {error}; check its quotes (a quote inside a quoted cell is written twice)"
        ) from error


def parquet_texts(path: Path, reading: Reading, row_group: int | None = None) -> Iterator[str]:
    """Yield the texts of the column `reading.field` of a Parquet file.

    `row_group`: the index of the row group to read; None means all row groups. Raises UserError if the column is missing or is
    not text, or if the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow, path, reading)
            groups = None if row_group is None else [row_group]
            batches = file.iter_batches(batch_size=1000, row_groups=groups, columns=[reading.field])
            earlier = sum(file.metadata.row_group(group).num_rows for group in range(row_group or 0))
            yield from _column_texts(batches, path, reading, earlier)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def arrow_texts(path: Path, reading: Reading) -> Iterator[str]:
    """Yield the texts of the column `reading.field` of an Arrow file.

    Raises UserError if the column is missing or is not text, or if the file is damaged.
    """
    import pyarrow

    try:
        with arrow_reader(path) as reader:
            _check_column(reader.schema, path, reading)
            yield from _column_texts((batch.select([reading.field]) for batch in reader), path, reading, 0)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


@contextmanager
def arrow_reader(path: Path) -> Iterator[Any]:
    """Open an Arrow file as a reader of record batches.

    The file may have Arrow's stream format, which `Dataset.save_to_disk` writes, or Arrow's file format.
    """
    import pyarrow

    with open_decompressed(path) as file:
        head = file.read(6)
    with open_decompressed(path) as file:
        if head == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield pyarrow.RecordBatchReader.from_batches(reader.schema, batches)
        else:
            yield pyarrow.ipc.open_stream(file)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = one_line(" ".join(str(error).split()), 200).removesuffix(".")
    return UserError(f"cannot read {one_line(str(path))}: {reason}; copy, download or create the file again")


def _check_column(schema: Any, path: Path, reading: Reading) -> None:
    """Raise UserError if a table lacks the column `reading.field`, or if this column does not contain text."""
    shown = one_line(str(path))
    texts = [name for name, type_ in zip(schema.names, schema.types, strict=True) if _is_text(type_)]
    if reading.field not in schema.names:
        raise UserError(f"{shown} has no column {reading.field_name}: {reading.choice_of(texts)}")
    type_ = schema.field(schema.names.index(reading.field)).type
    if not _is_text(type_):
        raise UserError(
            f"{shown}: the column {reading.field_name} holds {one_line(str(type_), 80)}, not text: {reading.choice_of(texts)}"
        )


def _column_texts(batches: Iterable[Any], path: Path, reading: Reading, earlier: int) -> Iterator[str]:
    """Yield the texts of record batches of one column; skip empty texts and nulls.

    `earlier`: the number of rows of the file before the batches, so that an error names the row of the file.
    """
    shown, number = one_line(str(path)), earlier
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
    except UnicodeDecodeError:  # the column is declared as text, but contains bytes that are not UTF-8
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        wide = pyarrow.types.is_large_string(column.type)
        values = column.cast(pyarrow.large_binary() if wide else pyarrow.binary()).to_pylist()
    return values


def _is_text(kind: Any) -> bool:
    """Tell whether an Arrow type holds text, or bytes that may be UTF-8."""
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
