"""What identifies a text: the content of its files, and how they are read."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from positron.data.decoding import opened, why_unreadable
from positron.data.listing import compression_of, format_of
from positron.system.console import one_line
from positron.system.errors import UserError

HASHED_WHOLE = 1 << 26  # bytes; of larger files, the ends, the size and the time of change are hashed


def hash_of(facts: list[object]) -> str:
    return hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()


_FORMERLY_KNOWN = (".txt", ".md", ".text", ".jsonl", ".parquet")
_FORMERLY_OTHER = re.compile(rb"^\xef\xbb\xbf|\r|<\|endoftext\|>[ \t]")


def digest_of(path: Path) -> tuple[tuple[str, int, str], bool]:
    """Name, size and hash of a file, and whether earlier versions read it otherwise (as far as its ends tell)."""
    try:
        size, content = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            if size <= HASHED_WHOLE:
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
            with opened(path) as file:
                sample = file.read(1 << 16)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {one_line(str(path))}: {why_unreadable(error, path)}") from error
    kind = format_of(path)
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if kind not in (None, "text"):
        otherwise = suffix not in _FORMERLY_KNOWN
    else:
        otherwise = path.suffix.lower() != path.suffix and compression_of(path) is not None
        otherwise = otherwise or _FORMERLY_OTHER.search(sample) is not None
    return (path.name, size, content.hexdigest()), otherwise
