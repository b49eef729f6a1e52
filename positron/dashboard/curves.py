"""metrics.jsonl as columns, read on from where the last reading ended, and curves of it, thinned for the eye."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from positron.run.lines import BEFORE_THE_FIRST, DamagedLine, describe_damage, split_lines
from positron.run.metrics import parse_row
from positron.system.disk import open_inside
from positron.system.errors import UserError

POINTS = 1000  # of a curve: about as many as a screen has columns
TIMES = ("step", "tokens", "time_s")  # what a curve may be drawn against


class Metrics:
    """The numbers of one metrics.jsonl: for each key the rows that have it, and its values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_over(file="")

    def _start_over(self, file: str) -> None:
        self.file, self.offset, self.trouble = file, 0, ""
        self._lines, self._step = 0, BEFORE_THE_FIRST
        self._ends = array("q")  # where each row ends, in bytes
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def read(self) -> None:
        """Take in the whole lines that were added; the last one may be half written.

        A file that was replaced (a resumed run cuts what it will write again) or became shorter is read anew.
        """
        try:
            with open_inside(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                if str(facts.st_ino) != self.file or facts.st_size < self.offset:
                    self._start_over(file=str(facts.st_ino))  # a string: JavaScript has no such large numbers
                file.seek(self.offset)
                added = file.read()
        except (OSError, UserError) as error:
            self._start_over(file="")
            if not isinstance(error, FileNotFoundError):
                reason = error.strerror if isinstance(error, OSError) else error
                self.trouble = f"cannot read {self.path.name}: {reason}"
            return
        for line in split_lines(added)[0]:
            self.offset += len(line)
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
        """What can be drawn."""
        return sorted(self._columns.keys() - set(TIMES))

    def values(self, key: str) -> Sequence[float]:
        return self._columns[key][1] if key in self._columns else ()

    def last(self, key: str) -> float | None:
        values = self.values(key)
        return values[-1] if values else None

    def curve(self, key: str, file: str, after: int) -> dict[str, Any]:
        """The points of rows that end after byte `after` of `file`; of the whole file where it is another one by now.

        `fresh` says that they replace what the reader has, instead of going on from it.
        """
        fresh = after == 0 or file != self.file
        rows, values = self._columns.get(key, (array("q"), array("d")))
        begin = 0 if fresh else bisect_left(rows, bisect_right(self._ends, after))
        picked = [begin + i for i in thinned(values[begin:])]
        curve = {name: [self._at(name, rows[i]) for i in picked] for name in TIMES}
        return {
            **curve,
            "value": [values[i] for i in picked],
            "fresh": fresh,
            "file": self.file,
            "offset": self.offset,
            "keys": self.keys,
        }

    def _at(self, key: str, row: int) -> float | None:
        rows, values = self._columns.get(key, (array("q"), array("d")))
        i = bisect_left(rows, row)
        return values[i] if i < len(rows) and rows[i] == row else None


def thinned(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Which of the values to draw: all, or of each of many stretches the lowest and the highest, the first and the last.

    Half of the stretches are equally long, half grow geometrically, so that a logarithmic axis has its points, too.
    """
    n = len(values)
    if n <= most:
        return list(range(n))
    stretches = range(most // 4 + 1)
    edges = {i * n // (most // 4) for i in stretches} | {round(n ** (4 * i / most)) for i in stretches}
    kept = {0, n - 1}
    for begin, end in pairwise(sorted(edges)):
        kept |= {min(range(begin, end), key=values.__getitem__), max(range(begin, end), key=values.__getitem__)}
    return sorted(kept)
