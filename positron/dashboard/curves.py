"""Read metrics.jsonl incrementally into columns, and reduce its curves to the points that a screen can show."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from positron.run.lines import STEP_BEFORE_FIRST, DamagedLine, describe_damage, split_lines
from positron.run.metrics import parse_row
from positron.system.disk import open_inside
from positron.system.errors import UserError

MAX_POINTS = 1000  # maximum number of points of a curve, about as many as a screen has columns
X_AXES = ("step", "tokens", "time_s")


class Metrics:
    """Hold the content of one metrics.jsonl: for each key, its values and the indices of the rows that contain them.

    `file` identifies the file that was read: its inode number, and how many files this object has read before. `offset` is the
    number of bytes read. `trouble` says what is damaged in the file or why it cannot be read; it is "" if there is nothing to
    report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = 0
        self._start_over(inode="")

    def _start_over(self, inode: object) -> None:
        # a string, because JavaScript's integers are too small
        self._inode, self.file = inode, f"{inode}-{self._files}"
        self._files += 1
        self._last_line = b""
        self.offset, self.trouble = 0, ""
        self._lines, self._step = 0, STEP_BEFORE_FIRST
        self._ends = array("q")  # position of the end of each row, in bytes
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def read(self) -> None:
        """Read the complete lines that were added since the last call.

        A file that became shorter or was replaced, for example by a run that was resumed, is read from the beginning.
        """
        try:
            with open_inside(self.path, "rb") as file:
                # a new file may have the inode of the old one, but not the same line in the same place
                file.seek(self.offset - len(self._last_line))
                read_before = file.read(len(self._last_line))
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode or read_before != self._last_line:
                    self._start_over(inode)
                    file.seek(0)
                added = file.read()
        except (OSError, UserError) as error:
            self._start_over(inode="")
            if not isinstance(error, FileNotFoundError):
                reason = error.strerror if isinstance(error, OSError) else error
                self.trouble = f"cannot read {self.path.name}: {reason}"
            return
        for line in split_lines(added)[0]:
            self.offset += len(line)
            self._last_line = line
            self._add(line)

    def _add(self, line: bytes) -> None:
        self._lines += 1
        try:
            row = parse_row(line, self._step)
        except DamagedLine as fault:
            self.trouble = describe_damage(self.path, self._lines, fault)
            return
        self._step = row["step"]
        for key, value in row.items():
            if value is not None:
                rows, values = self._columns.setdefault(key, (array("q"), array("d")))
                rows.append(len(self._ends))
                values.append(value)
        self._ends.append(self.offset)

    @property
    def keys(self) -> list[str]:
        """Return the names of the metrics that can be plotted."""
        return sorted(self._columns.keys() - set(X_AXES))

    def values(self, key: str) -> Sequence[float]:
        """Return all values of a metric, in the order of their steps."""
        return self._columns[key][1] if key in self._columns else ()

    def last(self, key: str) -> float | None:
        """Return the newest value of a metric, or None if the metric has no values."""
        values = self.values(key)
        return values[-1] if values else None

    def curve(self, key: str, file: str, after: int) -> dict[str, Any]:
        """Return the points of the metric `key` that are new since the last call, reduced to about MAX_POINTS (see `reduced`).

        `file` and `after` are the `file` and `offset` of the last result; in the first call, give "" and 0. If metrics.jsonl
        was replaced since the last call, the points of the whole file are returned.

        The result is the content of /api/curve: `step`, `tokens`, `time_s` and `value` are lists with one entry for each point.
        If `fresh` is true, the page must replace its points; otherwise, it must append the new ones. `keys` are the names of
        all metrics of the run.
        """
        fresh = after == 0 or file != self.file
        rows, values = self._columns.get(key, (array("q"), array("d")))
        begin = 0 if fresh else bisect_left(rows, bisect_right(self._ends, after))
        points = [begin + i for i in reduced(values[begin:])]
        curve = {name: [self._at(name, rows[i]) for i in points] for name in X_AXES}
        return {
            **curve,
            "value": [values[i] for i in points],
            "fresh": fresh,
            "file": self.file,
            "offset": self.offset,
            "keys": self.keys,
        }

    def _at(self, key: str, row: int) -> float | None:
        rows, values = self._columns.get(key, (array("q"), array("d")))
        i = bisect_left(rows, row)
        return values[i] if i < len(rows) and rows[i] == row else None


def reduced(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Return the indices of about `limit` values that are sufficient to draw the curve, in ascending order.

    If there are at most `limit` values, these are all indices. Otherwise, they are the indices of the first value, of the last
    value, and of the minimum and maximum of many intervals. Half of the intervals have equal lengths; the others grow
    geometrically, so that a logarithmic axis has enough points, too.
    """
    n = len(values)
    if n <= limit:
        return list(range(n))
    intervals = range(limit // 4 + 1)
    edges = {i * n // (limit // 4) for i in intervals} | {round(n ** (4 * i / limit)) for i in intervals}
    points = {0, n - 1}
    for begin, end in pairwise(sorted(edges)):
        points |= {min(range(begin, end), key=values.__getitem__), max(range(begin, end), key=values.__getitem__)}
    return sorted(points)
