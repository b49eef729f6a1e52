"""Show the progress of long work on stderr: a bar on a terminal, a line every 15 seconds elsewhere.

This module imports only the standard library.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from positron.system.console import despite_closed_stderr, say

T = TypeVar("T")

SILENT_SECONDS = 3.0  # shorter work shows nothing
BAR_SECONDS, LINE_SECONDS = 0.2, 15.0  # time between two updates of the bar, and between two lines
MAX_WIDTH = 100  # columns


class Meter:
    """Show how much of the work is done: a share of the total, or an amount if the total is unknown.

    Nothing is shown during the first three seconds.
    """

    def __init__(self, label: str, total: float | None, amount: float = 0.0, unit: float = 0.0) -> None:
        """Begin at `amount` of `total`; `label` is shown before the bar.

        If `total` is known, the share of `total` and the remaining time are shown, and `unit` is not used. If `total` is None
        (unknown) and `unit` is 0, the amount itself is shown. If `unit` is not 0, the amount times `unit` is shown as
        megabytes: give 1e-6 if the amount is in bytes.
        """
        self.label, self.total, self.first, self.unit = label, total, amount, unit
        self.started = self.shown = time.monotonic()
        self.drawn = False

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        """Erase the bar, so that the next output takes its place."""
        if self.drawn and sys.stderr.isatty():
            _write("\r\x1b[K")

    def show(self, amount: float) -> None:
        """Show `amount` in the bar or in a new line, if enough time has passed since the last update."""
        now = time.monotonic()
        interval = BAR_SECONDS if sys.stderr.isatty() else LINE_SECONDS
        if (
            amount > self.first
            and now - self.started > SILENT_SECONDS
            and (now - self.shown > interval or not self.drawn)
        ):
            self.shown, self.drawn = now, True
            self._draw(amount, now - self.started)

    def _draw(self, amount: float, seconds: float) -> None:
        if not self.total:
            line = f"{self.label}: {amount * self.unit:,.0f} MB" if self.unit else f"{self.label}: {amount:,.0f}"
            text = share = None
        else:
            share = min(1.0, amount / self.total)
            left = seconds * max(0.0, self.total - amount) / (amount - self.first)
            text = f" {share:4.0%}, {clock(left)} left"
            line = f"{self.label}: {share:.0%}, {clock(left)} left"
        if not sys.stderr.isatty():
            say(line)
            return
        if text is not None and share is not None:
            width = min(MAX_WIDTH, shutil.get_terminal_size().columns - 1) - len(self.label) - len(text) - 3
            bar = f" [{'#' * round(share * width):-<{width}}]" if width > 5 else ""
            line = f"{self.label}{bar}{text}"
        _write(f"\r\x1b[K{line}")


def _write(text: str) -> None:
    with despite_closed_stderr():
        sys.stderr.write(text)
        sys.stderr.flush()


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield the items and, after the first three seconds, show which share of them is done."""
    with Meter(label, len(items)) as meter:
        for n_done, item in enumerate(items):
            meter.show(n_done)
            yield item


def clock(seconds: float) -> str:
    """Format a duration in seconds as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
