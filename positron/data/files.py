"""Read text from a file, a folder or a pattern: plain text, JSON, CSV, Parquet and Arrow, also compressed (.gz, .zst).

Files are read a megabyte at a time, so a corpus may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from positron.config import DataConfig
from positron.data.decoding import Reading, decode_blocks, explain_read_error, open_decompressed
from positron.data.fingerprints import content_digest, file_digest, hash_facts, is_hashed_in_parts
from positron.data.listing import Listing, compression_of, format_of, list_files
from positron.data.rows import FieldMissing, arrow_texts, csv_texts, json_texts, parquet_texts
from positron.data.sources import Document, is_balanced, is_validation
from positron.system.console import one_line
from positron.system.download import cache_folder, check_address, fetch
from positron.system.errors import UserError
from positron.system.paths import portable_name

SEPARATOR = "<|endoftext|>"  # a line with only this text separates the documents of a text file
CHARS_PER_TASK = 1 << 20
MIN_DOCUMENTS = 20  # a text with fewer documents is divided at one position instead of by document
# Only this much of a text is read to decide how to divide it: in a larger text, the hashes of the documents give training and
# validation about the sizes that were asked for.
SURVEY_DOCUMENTS, SURVEY_CHARS = 1000, 1 << 25

Piece = tuple[str, bool]  # a piece of text, and whether its document ends with it


@dataclass(frozen=True)
class Split:
    """Describe the division of a text into training and validation.

    `place` is the position, in characters of the whole text, at which validation begins; None means that the hash of a document
    decides whether it is used for training or for validation. `is_new`: true if earlier versions of Positron divided this text
    differently.
    """

    place: int | None
    is_new: bool


class FileSource:
    """Read documents from one or more files.

    In a file of rows (JSON, CSV, Parquet, Arrow), each row is a document. In a text file, lines `<|endoftext|>` separate the
    documents; without such lines, the whole file is one document.

    The attribute `fingerprint` is a hash of the files' content and of the settings that change how they are read and split. The
    hash of a document decides whether it is used for training or for validation. In two cases, the end of the text is used for
    validation instead: if there are fewer than 20 documents (MIN_DOCUMENTS), or if the hashes would give sizes of the training
    and validation text that are far from what `data.val_fraction` asks for. Raises UserError if the files contain no text, or
    if a file is missing, unreadable or cannot be downloaded.
    """

    def __init__(self, config: DataConfig) -> None:
        path = config.path if config.url is None else _fetched(config.url, config.sha256)
        assert path is not None
        self._limit = None if config.max_mb is None else round(config.max_mb * 1e6)
        self.reading = Reading(config.field, config.on_invalid)
        listing = list_texts(path, self.reading)
        self.files, self._skipped = listing.files, listing.describe_skipped()
        self.seed, self.val_fraction = config.seed, config.val_fraction
        settings = [config.seed, config.val_fraction, config.field, config.on_invalid, config.max_mb]
        self._settings: list[object] = ["text", *settings]
        facts, reads_differ = self._settings.copy(), []
        for file in self.files:
            digest, is_read_differently = file_digest(file)
            facts.append(digest)
            reads_differ.append(is_read_differently)
        # what earlier versions computed for the same files; token files with this fingerprint remain valid
        self.earlier_fingerprint = hash_facts(facts)
        self._split = self._find_split(f"data.path={path}" if config.url is None else f"data.url={config.url}")
        changes = [file.name for file, changed in zip(self.files, reads_differ, strict=True) if changed]
        changes += [f"split at {self._split.place}"] if self._split.is_new else []
        packed = any(compression_of(path) or format_of(path) == "parquet" for path in self.files)
        self.total_bytes = None if packed else sum(path.stat().st_size for path in self.files)
        if self._limit is not None and (self.total_bytes is None or self.total_bytes > self._limit):
            changes += ["exact max_mb"]  # earlier versions read up to a million characters more
        self.fingerprint = hash_facts([*facts, changes]) if changes else self.earlier_fingerprint
        stem = portable_name(Path(path).stem.strip("*")) or "files"
        stem = (
            stem
            if len(stem.encode("utf-8", "replace")) < 200
            else hashlib.sha256(stem.encode("utf-8", "replace")).hexdigest()[:20]
        )
        self.name = f"text-{stem}-{self.fingerprint[:8]}"

    def content_fingerprint(self) -> str | None:
        """Return a fingerprint that does not depend on the times of modification of large files.

        It covers the whole content of all files. Returns None if `fingerprint` does so, too, and if `data.max_mb` is given,
        because files of which only the beginning is used may be very large.
        """
        if self._limit is not None or not any(map(is_hashed_in_parts, self.files)):
            return None
        return hash_facts([*self._settings, *map(content_digest, self.files), self._split])

    @property
    def limit_bytes(self) -> int | None:
        """Return None, because the caller has no limit to apply: `tasks` itself ends where `data.max_mb` cuts the text.

        This class applies `data.max_mb` itself, because it may use the end of the text for validation. For this, it must know
        where the text ends.
        """
        return None

    def summary(self) -> str:
        """Describe what was read, skipped and changed. The description is complete only after all text was read."""
        parts = [f"read {len(self.files):,} file{'s' if len(self.files) != 1 else ''}"]
        if self._split.place is not None:
            parts.append("the end of the text is used for validation")
        if self.reading.line_ends:
            parts.append(f"line ends \\r\\n or \\r became \\n in {self.reading.line_ends:,} of the files")
        if self.reading.replaced:
            parts.append(f"WARNING: {self.reading.replaced:,} invalid characters were replaced by �")
        if self._skipped:
            parts.append(f"skipped {self._skipped}")
        return "; ".join(parts)

    def _find_split(self, label: str) -> Split:
        """Decide how the text is divided into training and validation text, and return the division.

        If the text has many documents, the hash of each document decides; otherwise the text is cut at one position. Only the
        first documents are read to find this out. Raises UserError if the text is empty; `label` is the name of the text in the
        message.
        """
        documents = characters = 0
        is_blank = True
        sizes, is_val = [0, 0], None  # characters for training and for validation
        for text, ends in self._pieces():
            is_blank = is_blank and not text.strip()
            is_val = is_validation(text, self.seed, self.val_fraction) if is_val is None else is_val
            sizes[is_val] += len(text)
            is_val = None if ends else is_val
            documents, characters = documents + ends, characters + len(text)
            is_large = documents >= SURVEY_DOCUMENTS or characters >= SURVEY_CHARS
            if is_large and documents >= MIN_DOCUMENTS and all(sizes) and not is_blank:
                return Split(None, is_new=False)
        if is_blank:
            if self._is_cut_short:
                raise UserError(
                    f"data.max_mb= ends {one_line(label)} before its first text: give a larger data.max_mb=, or leave it out"
                )
            if any(format_of(file) not in (None, "text") for file in self.files):
                raise UserError(
                    f"{one_line(label)} contains no text in the field {self.reading.field_name}: give the name of another "
                    "field as data.field=, or another file"
                )
            raise UserError(
                f"{one_line(label)} contains no text{', only blanks' if characters else ''}: give a file with text"
            )
        if documents >= MIN_DOCUMENTS and is_balanced(sizes, self.val_fraction):
            return Split(None, is_new=False)
        return self._place_of(characters, was_drawn=documents >= MIN_DOCUMENTS)

    def _place_of(self, characters: int, was_drawn: bool) -> Split:
        """Divide the text at a line end (or space) near the position that `val_fraction` asks for, and return the division.

        The text is divided after the last line end before this position or, if there is none, after the last space. The search
        goes back by at most half the length of the validation text; if it finds neither, the text is divided exactly at this
        position. `characters`: the length of the text. `was_drawn`: true if earlier versions of Positron divided this text by
        the hashes of its documents. The division is then marked as new. This changes the fingerprint of the text, so that a new
        run does not use the token files of those versions.
        """
        exact = round(characters * (1 - self.val_fraction))
        cut = max(1, min(characters - 1, exact))
        reach = (characters - cut) // 2
        start = 0
        for text, _ in self._pieces():
            if start < cut < start + len(text):
                local = cut - start
                lower_limit = max(0, local - reach)
                boundary = text.rfind("\n", lower_limit, local) + 1 or text.rfind(" ", lower_limit, local) + 1 or local
                line_start = text.rfind("\n", 0, local) + 1 or local
                is_new = was_drawn or self._is_cut_short or cut != exact or boundary != line_start
                return Split(start + boundary, is_new=is_new)
            start += len(text)
        return Split(cut, is_new=was_drawn or self._is_cut_short or cut != exact)

    def _pieces(self) -> Iterator[Piece]:
        """Yield the text of all files, up to `data.max_mb`, as pairs (piece, whether it is the last piece of its document)."""
        self.reading.replaced = self.reading.line_ends = 0
        self._is_cut_short = False
        yield from self._all_pieces() if self._limit is None else self._first_pieces(self._limit)

    def _all_pieces(self) -> Iterator[Piece]:
        for path in self.files:
            for text, ends in read_pieces(path, self.reading):
                # a long document is cut after a newline, where tokenizers cut too
                while len(text) > CHARS_PER_TASK:
                    cut = text.rfind("\n", 0, CHARS_PER_TASK) + 1 or CHARS_PER_TASK
                    yield text[:cut], False
                    text = text[cut:]
                yield text, ends

    def _first_pieces(self, limit: int) -> Iterator[Piece]:
        """Yield the first `limit` bytes of the text as pairs (piece, whether its document ends with it).

        The last piece is cut after a line end or, if there is none in its last 1,000 characters, after a space.
        """
        left = limit
        for text, ends in self._all_pieces():
            content = text.encode("utf-8")
            if len(content) > left:
                self._is_cut_short = True
                kept = content[:left].decode("utf-8", "ignore")
                near = max(0, len(kept) - 1000)
                if kept := kept[: kept.rfind("\n", near) + 1 or kept.rfind(" ", near) + 1 or len(kept)]:
                    yield kept, True
                return
            yield text, ends
            left -= len(content)

    def _documents(self) -> Iterator[Document]:
        if self._split.place is None:
            is_val = None  # computed from the first piece of each document, for all its pieces
            for text, ends in self._pieces():
                is_val = is_validation(text, self.seed, self.val_fraction) if is_val is None else is_val
                yield Document(text, is_val, ends=ends)
                is_val = None if ends else is_val
            return
        place = 0
        for text, ends in self._pieces():
            cut = max(0, min(len(text), self._split.place - place))
            place += len(text)
            if 0 < cut < len(text):
                yield Document(text[:cut], is_val=False)
                yield Document(text[cut:], is_val=True, ends=ends)
            else:
                yield Document(text, is_val=cut == 0, ends=ends)

    def tasks(self, skip: int = 0) -> Iterator[list[Document]]:
        """Yield the tasks after the first `skip`, each a list of documents with about a million characters in total.

        The skipped tasks are read as well, which takes about a hundredth of the time of tokenizing them.
        """
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
        """Do nothing: the files belong to the user."""

    def read(self, task: list[Document]) -> list[Document]:
        """Return the task unchanged, because it is a list of documents."""
        return task


def cached_path(url: str, sha256: str | None) -> Path:
    """Return the path in the cache for the file at `url`, whether or not the file was downloaded already.

    If `sha256` is given, the path depends only on the file name at the end of `url`. If `sha256` is None, the path depends on
    the whole `url`, so that two files with the same name are not confused. Raises UserError unless the address is https, or
    http to this machine.
    """
    check_address(url)
    name = re.sub(r"[^\w.-]", "_", Path(urlsplit(url).path).name).lstrip(".") or "download.txt"
    if sha256 is None:  # files of the same name from two addresses must not be confused
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    return cache_folder("text") / name


def not_downloaded(folder: Path) -> str:
    """Return the beginning of an error message: the text that the run in `folder` was trained on is missing.

    It ends with "if you trust the address, ", so the caller must append what to do.
    """
    return (
        f"the text that {folder} was trained on is not on this machine, and Positron does not download this text "
        "automatically, because the web address in the run folder may come from another person: if you trust the address, "
    )


def _fetched(url: str, sha256: str | None) -> str:
    """Download a file into the cache, unless it is there, and return its path.

    `sha256`: the expected checksum (None: no check). Raises UserError if the download fails or if the checksum is wrong.
    """
    path = cached_path(url, sha256)
    alternative = "give data=text data.path=FILE, or data=stories, which needs no network"
    fetch(url, path, sha256, instead=alternative, sha256_key="data.sha256")
    return str(path)


def list_texts(path: str, reading: Reading) -> Listing:
    """List the files of `path` that contain text.

    In a folder, a .json, .csv or .tsv file is skipped if its first row has no field (or column) `reading.field`, because such a
    file often contains other data. Sets `reading.is_one_of_several` to whether `path` names more than one file. Raises
    UserError if no file is left, or if the first row of a .json, .csv or .tsv file in a folder is malformed.
    """
    label = f"data.path={path}" if reading.has_settings else path
    listing = list_files(path, label)
    reading.is_one_of_several = len(listing.files) > 1
    if not Path(path).expanduser().is_dir():
        return listing
    files = []
    for file in listing.files:
        try:
            if format_of(file) in ("json", "csv"):
                next(read_pieces(file, reading), None)
            files.append(file)
        except FieldMissing:
            listing.skip(file, f'no field "{reading.field}"')
    if not files:
        remedy = (
            "give the name of another field as data.field=, or other files"
            if reading.has_settings
            else "give other files"
        )
        raise UserError(f"{one_line(label)} contains no file that can be used: {listing.describe_skipped()}; {remedy}")
    listing.files = files
    return listing


def read_pieces(path: Path, reading: Reading) -> Iterator[Piece]:
    """Yield the text of a file as pairs (piece of a document, whether it is the document's last piece).

    Raises UserError, which names the file and (in a file of rows) the row, if the file cannot be read.
    """
    kind = format_of(path)
    try:
        if kind in ("parquet", "arrow"):
            texts = parquet_texts(path, reading) if kind == "parquet" else arrow_texts(path, reading)
            yield from ((text, True) for text in texts)
            return
        with open_decompressed(path) as file:
            blocks = decode_blocks(file, path, reading)
            match kind:
                case "json lines" | "json":
                    texts = json_texts(blocks, path, reading, is_lines=kind == "json lines")
                    yield from ((text, True) for text in texts)
                case "csv":
                    yield from ((text, True) for text in csv_texts(blocks, path, reading))
                case _:
                    yield from split_documents(blocks)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {one_line(str(path))}: {explain_read_error(error, path)}") from error


_SPACED_SEPARATOR = re.compile(r"\n<\|endoftext\|>[ \t]+(?=\n)")
_SPACED_START = re.compile(r"<\|endoftext\|>[ \t]*\n")


def split_documents(blocks: Iterator[str]) -> Iterator[Piece]:
    """Yield the text between lines `<|endoftext|>` as pairs (piece of a document, whether it is the document's last piece).

    The newlines around these lines are left out, and empty documents are skipped.
    """
    text, fresh, line_start = "", True, True  # fresh: text begins a document; line_start: text begins a line
    separated = False
    for block in _with_end(blocks):
        text += block or ""
        if line_start and (match := _SPACED_START.match(text)):
            text = f"\n{SEPARATOR}\n" + text[match.end() :]
        documents, rest = _split(text)
        for document in documents:
            document = (_after_separator(document) if fresh and separated else document).rstrip("\n")
            document = "" if fresh and document == SEPARATOR else document
            if document or not fresh:
                yield document, True
            fresh = line_start = separated = True
        text = _after_separator(rest) if fresh and separated else rest
        if block is None:
            last = text.removesuffix("\n")
            bare = last.rstrip(" \t")
            ended = (bare == SEPARATOR and line_start) or bare.endswith(f"\n{SEPARATOR}")
            last = bare if ended else last
            if ended or separated:
                text = last.removesuffix(SEPARATOR).rstrip("\n") if ended else text.rstrip("\n")
            if text or not fresh:
                yield text, True
        elif len(text) > CHARS_PER_TASK:
            # keep the end of the text if it may be part of a separator, with the spaces after and the newlines before it
            visible = text.rstrip(" \t") if text.rstrip(" \t").endswith(SEPARATOR) else text
            stop = len(visible[: -len(SEPARATOR) - 2].rstrip("\n"))
            cut = text.rfind("\n", 0, stop) + 1 or stop
            if cut:
                yield text[:cut], False
                text, fresh, line_start = text[cut:], False, text[cut - 1] == "\n"


def _split(text: str) -> tuple[list[str], str]:
    """Split a text at its separator lines: lines that contain only `<|endoftext|>`.

    Returns a list with the text before each separator line, and the text after the last separator line.
    """
    first, *others = text.split(f"\n{SEPARATOR}")
    if all(other.startswith("\n") for other in others):  # a single pass over the text
        *documents, rest = [first, *(other[1:] for other in others)]
    else:
        *documents, rest = _SPACED_SEPARATOR.sub(f"\n{SEPARATOR}", text).split(f"\n{SEPARATOR}\n")
    return documents, rest


def _after_separator(text: str) -> str:
    """Strip newlines and separator lines (lines `<|endoftext|>`) from the beginning of a text.

    The text is what follows a separator line. If two separator lines follow each other, `_split` finds only the first one,
    because it takes the newline between them as the end of the first one.
    """
    while True:
        text = text.lstrip("\n")
        if text.startswith(SEPARATOR + "\n"):
            text = text.removeprefix(SEPARATOR)
        else:
            return text


def _with_end(blocks: Iterator[str]) -> Iterator[str | None]:
    yield from blocks
    yield None
