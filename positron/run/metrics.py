"""Read and write `metrics.jsonl`, which has one row per logged step; every line is checked when read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from positron.run.facts import Facts
from positron.run.lines import DamagedLine, append, parse_line, read_lines, to_line
from positron.system.console import one_line
from positron.system.disk import is_number


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append the row of a step to the file `path`, with null for NaN and infinity. Raises UserError if it cannot be written."""
    append(path, to_line(row).text.decode("utf-8"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of `metrics.jsonl`. Raises UserError for a damaged line (see `lines.read_lines`)."""
    return [line.values for line in read_lines(path, check_row)]


def parse_row(line: bytes, step_before: int) -> dict[str, Any]:
    """Return the row in one line of `metrics.jsonl`.

    Raises DamagedLine for an invalid line, or if its step is not greater than `step_before`, the step in the previous line.
    """
    return parse_line(line, step_before, check_row)


def check_row(row: dict[str, Any]) -> None:
    """Raise DamagedLine for a value that is neither a finite number nor null."""
    for key, value in row.items():
        if value is not None and not is_number(value):
            raise DamagedLine(f"{one_line(key, 60)} is not a finite number")


def best_row(rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Return the lowest validation bits per byte in the rows, and its step; inf and 0 if no row has a validation."""
    scored = [(row["val/bpb"], row["step"]) for row in rows if row.get("val/bpb") is not None]
    return min(scored, default=(math.inf, 0))


def best_so_far(rows: list[dict[str, Any]], facts: Facts, step: int) -> tuple[float, int]:
    """Return the lowest validation bits per byte up to `step`, and its step; inf and 0 if none was measured.

    `rows`: the rows of metrics.jsonl. `facts`: the contents of run.json. The lowest value may be missing in one of the two
    files.
    """
    best = best_row([row for row in rows if row["step"] <= step])
    if facts.best_bpb is None or facts.best_step is None or facts.best_step > step:
        return best
    return min(best, (facts.best_bpb, facts.best_step))
