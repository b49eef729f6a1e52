"""Accept texts, conversations and pairs of answers from a Python program: lists, generators, a `datasets.Dataset`.

The data is written to a file below `data.dir`; the name of the file is the hash of its content. The file is then used like a
file of the user: other processes can read it, and it still exists when a run is continued later.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from positron.data.sources import MEMORY
from positron.system.console import one_line
from positron.system.disk import expanded, make_folder, rename, whole_file
from positron.system.errors import UserError


def write_texts(texts: Iterable[Any], data_dir: str | Path, field: str = "text") -> Path:
    """Write documents to a file below `data_dir` and return its path.

    The path is the value of data.path for a command with data=text. Each item is a text, or a row (of a `datasets.Dataset`, for
    example) with a text in `field`. Empty texts and missing values are left out. Raises UserError if an item has another type,
    if all texts are empty, or if the first item is the name of a file.
    """

    def row(item: Any, number: int) -> Any:
        text = item.get(field) if isinstance(item, Mapping) else item
        if isinstance(text, Path) or (number == 0 and isinstance(text, str) and _names_a_file(text)):
            raise UserError(
                f"data=: item {number} (counted from 0) is the path of a file, {one_line(str(text), 200)}, not a text: give a "
                "folder or a pattern, as in data='texts/*.txt', or put the texts of the files into the list"
            )
        if not isinstance(text, str):
            if _is_missing(text) and (not isinstance(item, Mapping) or field in item):
                return None
            if not isinstance(item, Mapping):
                fault = _kind(item)
            elif field in item:
                fault = f"has a value of type {type(text).__name__} in this field"
            else:
                fault = f"has the fields {', '.join(map(str, item))}: name the field of the text by data.field="
            raise UserError(
                f"data=: item {number} (counted from 0) must be a text, or a row with a text in the field `{field}`, but it "
                f"{one_line(fault, 200)}"
            )
        return {field: text} if text else None

    return _write(texts, row, data_dir)


def write_conversations(rows: Iterable[Any], data_dir: str | Path) -> Path:
    """Write conversations to a file below `data_dir` and return its path.

    The path is the value of data.path for a command with data=instruct. Each item is a dict or a list of messages, in one of
    the formats that a file of conversations may have. Raises UserError if an item has another type, or if there are no items.
    """

    def row(item: Any, number: int) -> Any:
        if not isinstance(item, Mapping | list):
            raise UserError(
                f"data=: item {number} (counted from 0) must be a conversation, which is a dict or a list of messages, but it "
                f"{_kind(item)}"
            )
        return item

    return _write(rows, row, data_dir)


def write_pairs(rows: Iterable[Any], data_dir: str | Path) -> Path:
    """Write pairs of answers to a file below `data_dir` and return its path.

    The path is the value of data.path for a command with data=preferences. Each item is a dict with `chosen` and `rejected`, in
    one of the formats that a file of pairs may have. Raises UserError if an item has another type, or if there are no items.
    """

    def row(item: Any, number: int) -> Any:
        if not isinstance(item, Mapping):
            raise UserError(
                f"data=: item {number} (counted from 0) must be a pair, which is a dict with `prompt`, `chosen` and "
                f"`rejected`, but it "
                f"{_kind(item)}"
            )
        return item

    return _write(rows, row, data_dir)


def _names_a_file(text: str) -> bool:
    """Tell whether a text is the name of an existing file with a suffix; a list of them would train on the names."""
    return bool(PurePath(text).suffix) and os.path.isfile(text)


def _is_missing(value: Any) -> bool:
    """Tell whether a value is None or a missing value of pandas or NumPy, such as NaN."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _kind(item: Any) -> str:
    return f"is of type {type(item).__name__}"


def _write(items: Iterable[Any], row: Callable[[Any, int], Any], data_dir: str | Path) -> Path:
    if isinstance(items, str | bytes):
        wrapped = "[text]" if isinstance(items, str) else "[content.decode()]"
        raise UserError(f"data= takes a list of texts: put a single text into a list, as in data={wrapped}")
    if isinstance(items, Mapping):
        listed = one_line(", ".join(map(str, items)), 100)
        raise UserError(
            f"data= takes a list or one split of a dataset, not a dict with the keys {listed}: give one of its values, such as "
            "data=splits['train'], or put a single row into a list, as in data=[row]"
        )
    if hasattr(items, "columns"):  # a DataFrame, whose items are the names of its columns; a Dataset has column_names
        raise UserError(
            f"data= takes a list of texts or rows, not a {type(items).__name__}, which is a table: give one column, as in "
            "data=frame['text'], or its rows, as in data=frame.to_dict('records')"
        )
    if isinstance(items, io.IOBase):  # whose items are lines
        raise UserError("data= takes the path of a file, not an open file: give the path, or put the text into a list")
    if isinstance(items, set | frozenset):
        raise UserError(
            "data= takes a list, not a set, whose order differs between programs, so that the run could not be continued: give "
            "data=sorted(texts)"
        )
    folder = make_folder(expanded(data_dir) / MEMORY, instead="give another data.dir=")
    content, count = hashlib.sha256(), 0
    partial = folder / f".{uuid.uuid4().hex}.partial"  # another thread may write the same items
    try:
        with whole_file(partial) as file:
            for line in _lines(items, row):
                content.update(line)
                file.write(line)
                count += 1
        if not count:
            raise UserError("data= contains no text: give at least one text, conversation or pair that is not empty")
        path = folder / f"{content.hexdigest()[:16]}.jsonl"
        rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _lines(items: Iterable[Any], row: Callable[[Any, int], Any]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        value = row(item, number)
        if value is not None:
            # ASCII can express lone surrogates, which the reader then reports
            yield json.dumps(value, default=_plain).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    """Convert an object that JSON does not know: arrays to lists, mappings to dicts, and missing values of pandas to None.

    Any other object becomes a dict with the name of its type. The reader ignores it in a field that is not used, and otherwise
    refuses the row and shows the type: the text of an object, such as "b'Hello'" for bytes, is not what the model should learn.
    """
    if callable(
        getattr(value, "tolist", None)
    ):  # also the numbers of NumPy; pandas reads a list in Parquet as an array
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return None if _is_missing(value) else {"type": type(value).__name__}
