"""metrics.jsonl: one row per logged step, read back without trusting a line of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from positron.run.facts import Facts
from positron.system.console import one_line
from positron.system.disk import is_number, read_bytes
from positron.system.errors import UserError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that a killed process left torn is not one.

    Raises UserError with the number of any other line that is damaged: a history with holes must not pass for whole.
    """
    return [row for row, _ in metrics_lines(path)]


def metrics_lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Return each row with the line that it was read from. Raises UserError like `read_metrics`."""
    if not path.exists() and not path.is_symlink():
        return []
    lines = read_bytes(path).split(b"\n")
    torn = lines.pop()  # empty after a whole last line
    rows: list[tuple[dict[str, Any], bytes]] = []
    for number, line in enumerate(lines, start=1):
        row, fault = _parse(line, rows[-1][0]["step"] if rows else -1)
        if row is None:
            raise UserError(
                f"{path} line {number} is damaged ({fault}): restore the file from a copy, or delete that line"
            )
        rows.append((row, line + b"\n"))
    row, _ = _parse(torn, rows[-1][0]["step"] if rows else -1)
    return rows if row is None else [*rows, (row, torn + b"\n")]


def _parse(line: bytes, step_before: int) -> tuple[dict[str, Any] | None, str]:
    """Return the row of a line, or None and what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except RecursionError:
        return None, "it is nested too deeply"
    except ValueError:
        return None, "it is not JSON"
    if not isinstance(row, dict):
        return None, "it is not an object"
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 10**15:
        return None, "its step is not a whole number"
    if step <= step_before:
        return None, f"its step {step} does not follow {step_before}"
    for key, value in row.items():
        if value is not None and not is_number(value):
            return None, f"{one_line(key, 60)} is not a finite number"
    return row, ""


def best_row(rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Return the lowest validation bits per byte of a run so far and its step; inf and 0 before the first validation."""
    scored = [(row["val/bpb"], row["step"]) for row in rows if row.get("val/bpb") is not None]
    return min(scored, default=(math.inf, 0))


def best_bpb(rows: list[dict[str, Any]]) -> float:
    """Return the lowest validation bits per byte of a run so far, inf before the first validation."""
    return best_row(rows)[0]


def best_so_far(rows: list[dict[str, Any]], facts: Facts, step: int) -> float:
    """Return the lowest validation bits per byte up to `step`, as metrics and run.json know it; inf for none."""
    best = best_row([row for row in rows if row["step"] <= step])[0]
    if facts.best_bpb is None or facts.best_step is None or facts.best_step > step:
        return best
    return min(best, facts.best_bpb)
