"""Progress of work that takes longer than a moment: a bar on a terminal, a line now and then elsewhere. Always on stderr.

Standard library only.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

SILENT_SECONDS = 3.0  # work that is done sooner shows nothing
BAR_SECONDS, LINE_SECONDS = 0.2, 15.0  # between two states of the bar, between two lines
MAX_WIDTH = 100


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, and show how many are done if that takes longer than three seconds."""
    begun = shown = time.monotonic()
    drawn = False
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            interval = BAR_SECONDS if sys.stderr.isatty() else LINE_SECONDS
            if done and now - begun > SILENT_SECONDS and (now - shown > interval or not drawn):
                shown, drawn = now, True
                _show(what, done, len(items), now - begun)
            yield item
    finally:
        if drawn and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _show(what: str, done: int, total: int, seconds: float) -> None:
    share = done / total
    left = clock(seconds * (1 - share) / share)
    if not sys.stderr.isatty():
        print(f"{what}: {share:.0%}, {left} left", file=sys.stderr, flush=True)
        return
    text = f" {share:4.0%}, {left} left"
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns - 1) - len(what) - len(text) - 3
    bar = f" [{'#' * round(share * width):-<{width}}]" if width > 5 else ""
    sys.stderr.write(f"\r\x1b[K{what}{bar}{text}")
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Write a duration as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
