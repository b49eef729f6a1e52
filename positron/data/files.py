"""Text from files: .txt, .jsonl, .parquet, each also as .gz or .zst; one file, a folder, or a glob.

Everything is read as a stream, a megabyte at a time, so a corpus may be larger than the memory.
"""

from __future__ import annotations

import glob
import hashlib
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from positron.config import DataConfig, UserError
from positron.data.sources import Document, side
from positron.fetch import cache_folder, fetch

SEPARATOR = "<|endoftext|>"  # a line of its own between the documents of a text file
SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".parquet")  # what is taken from a folder, also with .gz or .zst
CHARS_PER_TASK = 1 << 20
FEWEST_DOCUMENTS = 20  # fewer than this, and a text is split at a place instead of by document
HASHED_WHOLE = 1 << 26  # bytes; of larger files, the ends, the size and the time of change are hashed

Piece = tuple[str, bool]  # some text, and whether its document ends here


class FileSource:
    """One or many files. Documents are rows, lines of JSON, or parts of a text between lines `<|endoftext|>`.

    The fingerprint is that of the content. Which documents are for validation is drawn by their text; of fewer than
    FEWEST_DOCUMENTS, the end of the text is.
    """

    def __init__(self, config: DataConfig) -> None:
        path = config.path if config.url is None else _fetched(config.url, config.sha256)
        assert path is not None
        self.limit_bytes = None if config.max_mb is None else round(config.max_mb * 1e6)
        self.files, self.field, self.on_invalid = list_files(path), config.field, config.on_invalid
        self.seed, self.val_fraction = config.seed, config.val_fraction
        facts: list[object] = ["text", config.seed, config.val_fraction, config.field, config.on_invalid, config.max_mb]
        facts += map(_digest, self.files)
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
        self.name = f"text-{Path(path).stem.strip('*') or 'files'}-{self.fingerprint[:8]}"
        packed = any(path.suffix in (".gz", ".zst", ".parquet") for path in self.files)
        self.total_bytes = None if packed else sum(path.stat().st_size for path in self.files)
        self._val_from = self._end_of_training(path)

    def _end_of_training(self, path: str) -> int | None:
        """The character at which validation begins, where there are few documents. Reads no further than it must."""
        documents = characters = 0
        for text, ends in self._pieces():
            documents, characters = documents + ends, characters + len(text)
            if documents >= FEWEST_DOCUMENTS:
                return None
        if characters == 0:
            raise UserError(f"data.path={path} is empty")
        return round(characters * (1 - self.val_fraction))

    def _pieces(self) -> Iterator[Piece]:
        for path in self.files:
            for text, ends in read_pieces(path, self.field, self.on_invalid):
                # a long document is cut after a newline, where tokenizers cut too
                while len(text) > CHARS_PER_TASK:
                    cut = text.rfind("\n", 0, CHARS_PER_TASK) + 1 or CHARS_PER_TASK
                    yield text[:cut], False
                    text = text[cut:]
                yield text, ends

    def _documents(self) -> Iterator[Document]:
        if self._val_from is None:
            whole = None  # the side of a document that comes in pieces is drawn by its first one
            for text, ends in self._pieces():
                whole = side(text, self.seed, self.val_fraction) if whole is None else whole
                yield Document(text, whole, ends=ends)
                whole = None if ends else whole
            return
        place = 0
        for text, ends in self._pieces():
            cut = max(0, min(len(text), self._val_from - place))
            place += len(text)
            if 0 < cut < len(text):
                cut = text.rfind("\n", 0, cut) + 1 or cut
                yield Document(text[:cut], is_val=False)
                yield Document(text[cut:], is_val=True, ends=ends)
            else:
                yield Document(text, is_val=cut == 0, ends=ends)

    def tasks(self, skip: int = 0) -> Iterator[list[Document]]:
        """About a million characters each. What is skipped is read all the same, which takes a hundredth of the time."""
        yield from islice(self._tasks(), skip, None)

    def _tasks(self) -> Iterator[list[Document]]:
        task: list[Document] = []
        size = 0
        for document in self._documents():
            task.append(document)
            size += len(document.text)
            if size >= CHARS_PER_TASK:
                yield task
                task, size = [], 0
        if task:
            yield task

    def release(self, tasks_done: int | None) -> None:
        """The files are the user's."""

    def read(self, task: list[Document]) -> list[Document]:
        return task


def _fetched(url: str, sha256: str | None) -> str:
    """The path of a downloaded file, in our cache; UserError within seconds where it cannot be had."""
    path = cache_folder() / "text" / url.rsplit("/", 1)[-1]
    fetch(url, path, sha256, instead="use data=stories, which needs no network")
    return str(path)


def list_files(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """In the order of their names; of a folder, those with one of `suffixes`. UserError where there are none."""
    given = Path(path).expanduser()
    if given.is_dir():
        found = [p for p in sorted(given.rglob("*")) if p.is_file() and _kind(p, suffixes) is not None]
        if not found:
            raise UserError(f"data.path={path} holds no file that ends in {', '.join(suffixes)} (.gz and .zst, too)")
        return found
    if any(mark in path for mark in "*?["):
        found = [Path(p) for p in sorted(glob.glob(str(given), recursive=True)) if Path(p).is_file()]
        if not found:
            raise UserError(f"data.path={path} matches no file")
        return found
    if not given.exists():
        raise UserError(f"cannot read data.path={path}: No such file or directory")
    return [given]


def _kind(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> str | None:
    """The suffix that tells the format, without that of a compression; None for one that is not known."""
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    return suffix if suffix in suffixes else None


def _digest(path: Path) -> tuple[str, int, str]:
    size, content = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= HASHED_WHOLE:
            content.update(file.read())
        else:
            content.update(file.read(1 << 20))
            file.seek(-(1 << 20), 2)
            content.update(file.read())
            content.update(str(path.stat().st_mtime_ns).encode())
    return path.name, size, content.hexdigest()


def read_pieces(path: Path, field: str, on_invalid: str) -> Iterator[Piece]:
    """A file's text in pieces. UserError names the file and the place of what is wrong with it."""
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from ((text, True) for text in parquet_rows(path, field))
            return
        with _opened(path) as file:
            blocks = _decoded(file, path, on_invalid)
            if kind == ".jsonl":
                yield from ((text, True) for text in _json_lines(blocks, path, field))
            else:
                yield from split_documents(blocks)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, on_invalid: str) -> str:
    """Read a whole file, decompressed and decoded."""
    with _opened(path) as file:
        return "".join(_decoded(file, path, on_invalid))


def _opened(path: Path) -> IO[bytes] | Any:
    if path.suffix not in (".gz", ".zst"):
        return path.open("rb")
    import pyarrow

    return pyarrow.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else "zstd")


def _decoded(file: Any, path: Path, on_invalid: str) -> Iterator[str]:
    """Blocks of text, exactly (newlines too)."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace" if on_invalid == "replace" else "strict")
    place = 0
    while True:
        block = file.read(1 << 20)
        if place == 0 and b"\0" in block[:8192]:
            raise UserError(f"{path} looks like a binary file: byte {block.index(0)} is zero; give plain text")
        waiting = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = place - waiting + error.start
            raise UserError(
                f"{path} is not UTF-8: byte {at} is 0x{error.object[error.start]:02x}; "
                "data.on_invalid=replace reads it with � in such places"
            ) from error
        if not block:
            return
        place += len(block)


def split_documents(blocks: Iterator[str]) -> Iterator[Piece]:
    """Documents between lines `<|endoftext|>`, without the newlines around these; empty ones are left out."""
    text, fresh, line_start = "", True, True  # fresh: at a document's beginning; line_start: text begins a line
    separated = False
    for block in _with_end(blocks):
        text += block or ""
        if line_start and text.startswith(SEPARATOR + "\n"):
            text = "\n" + text
        *documents, rest = text.split(f"\n{SEPARATOR}\n")
        for document in documents:
            document = (_after_separator(document) if fresh and separated else document).rstrip("\n")
            document = "" if fresh and document == SEPARATOR else document
            if document or not fresh:
                yield document, True
            fresh = line_start = separated = True
        text = _after_separator(rest) if fresh and separated else rest
        if block is None:
            last = text.removesuffix("\n")
            ended = (last == SEPARATOR and line_start) or last.endswith(f"\n{SEPARATOR}")
            if ended or separated:
                text = last.removesuffix(SEPARATOR).rstrip("\n") if ended else text.rstrip("\n")
            if text or not fresh:
                yield text, True
        elif len(text) > CHARS_PER_TASK:
            # what may still turn out to be a separator, with newlines before it, stays
            keep = len(text[: -len(SEPARATOR) - 2].rstrip("\n"))
            cut = text.rfind("\n", 0, keep) + 1 or keep
            if cut:
                yield text[:cut], False
                text, fresh, line_start = text[cut:], False, text[cut - 1] == "\n"


def _after_separator(text: str) -> str:
    """What follows a separator's line, without more such lines and newlines: one separator's end may be the next one's
    beginning."""
    while True:
        text = text.lstrip("\n")
        if text.startswith(SEPARATOR + "\n"):
            text = text.removeprefix(SEPARATOR)
        else:
            return text


def _with_end(blocks: Iterator[str]) -> Iterator[str | None]:
    yield from blocks
    yield None


def _json_lines(blocks: Iterator[str], path: Path, field: str) -> Iterator[str]:
    rest, number = "", 0
    for block in _with_end(blocks):
        lines = (rest + (block if block is not None else "\n")).split("\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{path}, line {number} has no text in data.field={field}; it has: {fields}")
            if row[field]:
                yield row[field]


def parquet_rows(path: Path, field: str, row_group: int | None = None) -> Iterator[str]:
    """The texts of one column, of one row group or of all. UserError where the column is missing or the file damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UserError(f"{path} has no column data.field={field}; it has: {', '.join(names)}")
            groups = None if row_group is None else [row_group]
            for rows in file.iter_batches(batch_size=1000, row_groups=groups, columns=[field]):
                yield from (text for text in rows.column(0).to_pylist() if text)
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
