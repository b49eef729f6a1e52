"""Compute fingerprints of a text: hashes of the content of its files and of the settings for reading them."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from positron.data.decoding import explain_read_error, open_decompressed
from positron.data.listing import compression_of, format_of
from positron.system.console import one_line
from positron.system.errors import UserError

MAX_HASHED_BYTES = (
    1 << 26
)  # for a larger file, the first and last MiB, the size and the time of modification are hashed


def hash_facts(facts: list[object]) -> str:
    """Return the SHA-256 of `repr(facts)` as 64 hexadecimal digits."""
    return hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()


def is_hashed_in_parts(path: Path) -> bool:
    """Tell whether the hash of `file_digest` covers only parts of a file, and its time of modification."""
    return path.stat().st_size > MAX_HASHED_BYTES


def content_digest(path: Path) -> tuple[str, str]:
    """Return (name, hash of the whole content) of a file. It takes a few seconds for 1 GB. Raises UserError if it fails."""
    try:
        with path.open("rb") as file:
            return path.name, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {one_line(str(path))}: {explain_read_error(error, path)}") from error


_FORMERLY_KNOWN = (".txt", ".md", ".text", ".jsonl", ".parquet")
_FORMERLY_OTHER = re.compile(rb"^\xef\xbb\xbf|\r|<\|endoftext\|>[ \t]")


def file_digest(path: Path) -> tuple[tuple[str, int, str], bool]:
    """Return (name, size in bytes, hash) of a file, and whether earlier versions of Positron read the file differently.

    If a file is larger than 64 MiB (MAX_HASHED_BYTES), the hash covers only its first and last MiB and its time of
    modification.

    Earlier versions knew fewer file formats. In plain text, they read a byte order mark, a carriage return, and `<|endoftext|>`
    followed by white space differently. A plain text file is therefore searched for these. If the file is larger than 64 MiB,
    only its first and last MiB are searched. If it is compressed, only the first 64 KiB of the decompressed text are searched.

    Raises UserError if the file cannot be read.
    """
    try:
        size, content = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            if size <= MAX_HASHED_BYTES:
                sample = file.read()
                content.update(sample)
            else:
                first = file.read(1 << 20)
                file.seek(-(1 << 20), 2)
                last = file.read()
                content.update(first)
                content.update(last)
                content.update(str(path.stat().st_mtime_ns).encode())
                sample = first + last
        if compression_of(path):
            with open_decompressed(path) as file:
                sample = file.read(1 << 16)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {one_line(str(path))}: {explain_read_error(error, path)}") from error
    kind = format_of(path)
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if kind not in (None, "text"):
        is_changed = suffix not in _FORMERLY_KNOWN
    else:
        is_changed = path.suffix.lower() != path.suffix and compression_of(path) is not None
        is_changed = is_changed or _FORMERLY_OTHER.search(sample) is not None
    return (path.name, size, content.hexdigest()), is_changed
