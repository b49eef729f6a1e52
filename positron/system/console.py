"""Make standard streams robust, make text from files and models safe to print, and break lines between words.

This module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

# Control characters can move the cursor, set the window's title or send input; format characters can reorder a line.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SHOWN = {"\n", "\t", "\u200c", "\u200d"}  # joiners are part of words and emoji


def open_streams() -> None:
    """Make stdin, stdout and stderr usable, even if the parent process has closed them.

    A closed stream becomes the null device. A character that the stream's encoding does not have is replaced, and no
    UnicodeEncodeError is raised. On Windows, all streams use UTF-8, as on other systems, instead of the code page of the
    system, which lacks most characters.
    """
    encoding = "utf-8" if sys.platform == "win32" else None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            errors = {"stdin": None, "stdout": "replace", "stderr": "backslashreplace"}[name]
            stream.reconfigure(encoding=encoding, errors=errors)


@contextlib.contextmanager
def despite_closed_stderr() -> Iterator[None]:
    """If the block cannot write to stderr, raise no error, and show nothing more there.

    The terminal or the pipe is closed, for example because the connection to another machine has ended, or the disk of a log
    file is full. The work of the command does not depend on what it shows.
    """
    try:
        yield
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def say(line: str) -> None:
    """Print a line to stderr, if possible (see `despite_closed_stderr`)."""
    with despite_closed_stderr():
        print(line, file=sys.stderr, flush=True)


def say_loading(subject: str) -> None:
    """Print `loading SUBJECT` to stderr before slow imports, so that a command shows something at once.

    If torch is already imported, the other imports are fast, and nothing is printed.
    """
    if "torch" not in sys.modules:
        say(f"loading {one_line(subject)}")


def printable(text: str) -> str:
    r"""Replace each unsafe character by an escape such as `\x1b`; newlines and tabs are kept.

    Unsafe characters are those that control a terminal, and those that change the order in which a line is shown.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _SHOWN or unicodedata.category(c) not in _UNSAFE else _escaped(c) for c in text)


def one_line(text: str, limit: int = 2000) -> str:
    """Return text as one printable line of at most `limit` characters, so that it cannot add a forged line to a log."""
    shown = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def json_line(value: object, limit: int = 60) -> str:
    """Return a value as JSON in one printable line of at most `limit` characters; a longer line is cut and ends with "..."."""
    return one_line(json.dumps(value, ensure_ascii=False), limit)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class Screen:
    """Write text that arrives in pieces. Control characters become escapes; on a terminal, lines break between words.

    On a terminal, a word is held back until it is complete. If the stream is a pipe or a file, every piece is written at once,
    without added line breaks. Call `flush` at the end.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._wraps = self._stream.isatty()
        self._column, self._spaces, self._word, self._return = 0, "", "", ""

    def write(self, text: str) -> None:
        """Write a piece of text."""
        text, self._return = self._return + text, ""
        if text.endswith("\r"):  # a piece may end inside "\r\n"
            text, self._return = text[:-1], "\r"
        self._put(text.replace("\r\n", "\n"))

    def flush(self) -> None:
        """Write the last word of the text, which was held back because more letters could have followed."""
        carriage_return, self._return = self._return, ""
        self._put(carriage_return)
        self._end_word()
        self._stream.write(self._spaces)
        self._column, self._spaces = self._column + len(self._spaces), ""
        self._stream.flush()

    def line(self, text: str = "") -> None:
        """Write text and end the line."""
        self.write(text)
        self.flush()
        self._put("\n")
        self._stream.flush()

    def _put(self, text: str) -> None:
        text = printable(text)
        if not self._wraps:
            self._stream.write(text)
        else:
            for character in text:
                self._take(character)
        self._stream.flush()

    def _take(self, character: str) -> None:
        if character == "\n":
            self._end_word()
            self._stream.write("\n")
            self._column, self._spaces = 0, ""
        elif character in " \t":
            self._end_word()
            self._spaces += character if character == " " else " " * (8 - (self._column + len(self._spaces)) % 8)
        else:
            if width_of(character) == 2:  # between Chinese characters a line may break anywhere
                self._end_word()
            self._word += character

    def _end_word(self) -> None:
        if not self._word:
            return
        columns, width = shutil.get_terminal_size().columns, sum(map(width_of, self._word))
        if self._column and self._column + len(self._spaces) + width > columns:
            self._stream.write("\n")
            self._column, self._spaces = 0, ""
        self._stream.write(self._spaces + self._word)
        self._column = (self._column + len(self._spaces) + width - 1) % max(1, columns) + 1
        self._spaces = self._word = ""


def width_of(character: str) -> int:
    """Return the number of columns that a terminal uses for a character."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shows_bars() -> bool:
    """Tell whether a progress bar can be shown on stderr, that is, on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
