"""Standard streams that never fail, and text from files or models made safe to show.

Standard library only.
"""

from __future__ import annotations

import io
import os
import sys
import unicodedata

# Control characters move the cursor, set the window's title or answer for the user; format characters reorder a line.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SHOWN = {"\n", "\t", "\u200c", "\u200d"}  # joiners are part of words and emoji


def open_streams() -> None:
    """Make stdin, stdout and stderr usable whatever the parent process left behind.

    A closed stream becomes the null device, and a character that the stream's encoding does not have is replaced
    instead of raising UnicodeEncodeError.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show by its escape, `\\x1b` for instance; newlines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _SHOWN or unicodedata.category(c) not in _UNSAFE else _escaped(c) for c in text)


def one_line(text: str, limit: int = 2000) -> str:
    """Make text printable, with newlines and tabs escaped too, so that it cannot forge lines of a log; cut at `limit`."""
    shown = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
