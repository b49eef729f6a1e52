"""Convert the bytes of a file to text: decompress them, decode them as UTF-8, and replace each line end by a newline."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, assert_never

from positron.config import OnInvalid
from positron.data.listing import compression_of, describe_binary, format_of
from positron.system.commands import quoted
from positron.system.console import one_line
from positron.system.errors import UserError, why_unreadable

BLOCK_BYTES = 1 << 20
CHECKED_FILES = 16  # number of files whose beginning is checked before a run starts
MAX_REPLACED = 0.01  # share of a file's characters; a file with more invalid ones is not UTF-8
_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # must come before UTF-16LE: the mark of UTF-32LE begins with the one of UTF-16LE
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass
class Reading:
    """Hold the settings for reading files, and count what was changed in the text while reading.

    `replaced` is the number of characters that were replaced by U+FFFD; `line_ends` is the number of files whose line ends were
    changed to newlines.
    """

    field: str = "text"  # name of the field of a JSON row, or of the column of a table, that contains the text
    on_invalid: OnInvalid = "error"  # what to do with bytes that are not UTF-8, and with lone surrogates in JSON
    is_one_of_several: bool = False  # whether other files are read, too (their fields may differ)
    has_settings: bool = True  # whether error messages may advise the user to set data.field or data.on_invalid
    replaced: int = 0  # characters that became U+FFFD
    line_ends: int = 0  # files in which \r\n or \r became \n

    def __post_init__(self) -> None:
        _ = self.replaces  # raises an error for an unknown `on_invalid` now, and not only at the first invalid byte

    @property
    def replaces(self) -> bool:
        """Tell whether invalid bytes are replaced by U+FFFD instead of raising an error."""
        match self.on_invalid:
            case "replace":
                return True
            case "error":
                return False
            case _:
                assert_never(self.on_invalid)

    @property
    def field_name(self) -> str:
        """Return the field's name for messages: `"text" (data.field)`, or `"text"` if the user cannot set `data.field`."""
        return f'"{self.field}"' + (" (data.field)" if self.has_settings else "")

    def choice_of(self, fields: Sequence[str]) -> str:
        """Return advice for a file without text in the requested field, such as `give data.field=body`.

        `fields` are the names of the file's fields that contain text. If the user cannot set `data.field`, the advice is to
        rename the field, or to give another file.
        """
        listed = one_line(", ".join(fields), 200)
        match self.has_settings, len(fields):
            case _, 0:
                return "no other field contains text; give another file"
            case False, _:
                return f'rename the field or column with the text to "{self.field}" (the file has: {listed})'
            case True, 1:
                several = (
                    ", if all files have this field; otherwise leave this file out" if self.is_one_of_several else ""
                )
                return f"give data.field={listed}{several}"
            case _:
                return f"give data.field= with one of: {listed}"

    def replace_surrogates(self, text: str, place: str) -> str:
        """Replace lone surrogates, which JSON can express and UTF-8 cannot, by U+FFFD.

        If `on_invalid` is "error" and the text has a lone surrogate, raises UserError, which names the position `place`.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            if not self.replaces:
                remedy = ", or give data.on_invalid=replace to read it as �" if self.has_settings else ""
                raise UserError(
                    f"{place} has half of a surrogate pair, \\u{ord(text[error.start]):04x}, which is not a character: "
                    f"remove it{remedy}"
                ) from error
            whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            self.replaced += max(1, whole.count("�") - text.count("�"))
            return whole
        return text

    def decode(self, content: bytes, place: str) -> str:
        """Decode `content`, the UTF-8 bytes of a cell of a table.

        Raises UserError, which names the position `place`, if the bytes are not UTF-8 and `on_invalid` is "error".
        """
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            if not self.replaces:
                remedy = ", or give data.on_invalid=replace to replace invalid bytes by �" if self.has_settings else ""
                raise UserError(
                    f"{place} is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}): convert the text to "
                    f"UTF-8{remedy}"
                ) from error
            text = content.decode("utf-8", "replace")
            self.replaced += text.count("�") - content.count("�".encode())
            return text


def open_decompressed(path: Path) -> IO[bytes] | Any:
    """Open a file for reading; .gz and .zst files are decompressed while they are read."""
    compression = compression_of(path)
    if compression is None:
        return path.open("rb")
    import pyarrow

    return pyarrow.input_stream(str(path), compression=compression)


def refuse_unreadable(files: Sequence[Path], label: str, reading: Reading) -> None:
    """Raise UserError if all `files` are empty, or if one of them does not begin with text.

    Only the first megabyte of each of the first CHECKED_FILES (16) files is checked. Compressed, Parquet and Arrow files are
    not checked here, because an error in them is raised when they are read. `label` is the name of the files in the message.
    `reading` decides whether invalid UTF-8 is an error.
    """
    try:
        if not any(path.stat().st_size for path in files):
            fault = "is empty" if len(files) == 1 and label.endswith(str(files[0])) else "contains only empty files"
            raise UserError(f"{one_line(label)} {fault}: give a file with text")
        for path in files[:CHECKED_FILES]:
            if compression_of(path) is None and format_of(path) not in ("parquet", "arrow"):
                with open_decompressed(path) as file:
                    next(decode_blocks(file, path, reading), None)
    except OSError as error:
        raise UserError(f"cannot read {one_line(label)}: {why_unreadable(error)}") from error


def read_text(path: Path, reading: Reading) -> str:
    """Read a whole file, decompress it if necessary, and decode it. Raises the errors of `decode_blocks`."""
    with open_decompressed(path) as file:
        return "".join(decode_blocks(file, path, reading))


def explain_read_error(error: Exception, path: Path) -> str:
    """Return the reason why a file could not be read and, if known, what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    if "too much memory" in reason:
        long = f"zstd -d --long=31 {_quoted_path(path)}"
        return f"zstd compressed the file with a window larger than 128 MB: unpack it with {long}"
    if "incorrect header check" in reason or "Unknown frame descriptor" in reason:
        return (
            f"its name ends in {path.suffix}, but its content is not (or not only) {compression_of(path)} data: correct "
            f"the name, or compress the file again ({one_line(reason, 300)})"
        )
    is_damaged = getattr(error, "errno", None) is None  # otherwise, the system refused to read the file
    return one_line(reason, 300) + ("; copy, download or create the file again" if is_damaged else "")


def decode_blocks(file: Any, path: Path, reading: Reading) -> Iterator[str]:
    r"""Yield the text of a file in blocks, without a byte order mark and with \n for \r\n and \r.

    `file` is the opened file, and `path` is its name in messages. Raises UserError if the file is binary, or if it has invalid
    UTF-8 and `reading` does not replace invalid bytes.

    If `reading` replaces invalid bytes, raises UserError if there are too many: at least two, and more than 1 % (MAX_REPLACED)
    of the characters read so far.
    """
    return _plain_line_ends(_utf8(file, path, reading), reading)


def _utf8(file: Any, path: Path, reading: Reading) -> Iterator[str]:
    shown = one_line(str(path))
    waiting, place, characters, before = b"", 0, 0, reading.replaced
    while True:
        block = file.read(BLOCK_BYTES)
        if place == 0:
            _refuse_binary(block, path)
            block_start = 3 if block.startswith(codecs.BOM_UTF8) else 0
        else:
            block_start = 0
        content = waiting + block[block_start:] if waiting or block_start else block
        place += block_start
        try:
            text, used = codecs.utf_8_decode(content, "strict", not block)
        except UnicodeDecodeError as error:
            if not reading.replaces:
                at = place - len(waiting) + error.start
                remedy = (
                    "; or, if only a few bytes are invalid, give data.on_invalid=replace to replace them by �"
                    if reading.has_settings
                    else ""
                )
                raise UserError(
                    f"{shown} is not UTF-8 (byte {at} is 0x{content[error.start]:02x}): "
                    f"{_convert(path, 'WINDOWS-1252')}{remedy}"
                ) from error
            text, used = codecs.utf_8_decode(content, "replace", not block)
            reading.replaced += text.count("�") - content[:used].count("�".encode())
        waiting = content[used:]
        characters += len(text)
        place += len(block) - block_start
        replaced = reading.replaced - before
        if replaced > max(1, MAX_REPLACED * characters):
            raise UserError(
                f"{shown} is not UTF-8 text: {replaced:,} of its first {characters:,} characters are invalid, too many "
                f"for data.on_invalid=replace; {_convert(path, 'WINDOWS-1252')}"
            )
        yield text
        if not block:
            return


def _refuse_binary(head: bytes, path: Path) -> None:
    shown = one_line(str(path))
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            raise UserError(f"{shown} is {encoding}, not UTF-8: {_convert(path, encoding)}")
    kind = describe_binary(head, path)
    if kind is not None and compression_of(path) is None:
        raise UserError(f"{shown} is {kind}")
    head = head[:8192]
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        for zeros, others, encoding in ((odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")):
            if zeros >= 8 and zeros > 0.3 * (len(head) // 2) and zeros > 10 * others:
                raise UserError(f"{shown} looks like {encoding}, not UTF-8: {_convert(path, encoding)}")
        raise UserError(f"{shown} looks like a binary file, because byte {head.index(0)} is zero: give a text file")


def _convert(path: Path, encoding: str) -> str:
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    condition = "" if encoding.startswith("UTF") else f"if its encoding is {encoding}, "
    if sys.platform == "win32":  # which has no iconv
        unpack = "unpack it, " if compression_of(path) is not None else ""
        return f"{condition}{unpack}open it in a text editor, such as Notepad, and save it with the encoding UTF-8"
    if compression_of(path) is not None:
        return f"{condition}unpack it, convert it by iconv -f {encoding} -t UTF-8, and use the new file instead"
    conversion = f"iconv -f {encoding} -t UTF-8 {_quoted_path(path)} > {_quoted_path(target)}"
    return f"{condition}convert it by {conversion}, and use the new file instead (in a folder, move the old file out)"


def _quoted_path(path: Path) -> str:
    return one_line(quoted(str(path)))


def _plain_line_ends(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    waiting, changed = "", False
    for block in blocks:
        text, waiting = waiting + block, ""
        if "\r" in text:
            changed = True
            if text.endswith("\r"):  # perhaps the first half of \r\n
                text, waiting = text[:-1], "\r"
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield text
    if waiting:
        yield "\n"
    reading.line_ends += changed
