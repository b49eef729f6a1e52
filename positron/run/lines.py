"""Read and write `metrics.jsonl` and `samples.jsonl`: each line is a JSON object that contains the number of a training step.

A line is complete when it ends in a newline. Text after the last newline is a torn line: the process that wrote it was killed
or is still writing. `read_lines` accepts a torn line that contains a complete object; a reader that follows a growing file
waits for the newline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from positron.system.console import one_line
from positron.system.disk import append_text, json_ready, read_bytes, remedy_for, whole_file
from positron.system.errors import UserError
from positron.system.paths import relative_to_here

STEP_BEFORE_FIRST = -1  # smaller than every step


class DamagedLine(Exception):
    """Report a damaged line; the message says what is wrong with the line."""


class Line(NamedTuple):
    """Hold a line of a file: the JSON object in it as a dict, and the bytes of the line with its newline."""

    values: dict[str, Any]
    text: bytes


Check = Callable[[dict[str, Any]], None]  # raises DamagedLine for a wrong value


def split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete lines, each with its newline, and the text after the last newline, which may be empty."""
    *whole, torn = content.split(b"\n")
    return [line + b"\n" for line in whole], torn


def parse_line(line: bytes, step_before: int, check: Check) -> dict[str, Any]:
    """Return the JSON object in a line. Raises DamagedLine if the line is damaged.

    A line is damaged if it is not a JSON object with a step, if its step is not greater than `step_before`, the step in the
    previous line, or if `check(object)` raises DamagedLine.
    """
    try:
        values = json.loads(line.decode("utf-8"))
    except RecursionError:
        raise DamagedLine("it is nested too deeply") from None
    except ValueError:
        raise DamagedLine("it is not JSON") from None
    if not isinstance(values, dict):
        raise DamagedLine("it is not a JSON object")
    step = values.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 10**15:
        raise DamagedLine("it has no step that is a whole number")
    if step <= step_before:
        raise DamagedLine(f"its step {step} is not greater than the step before, {step_before}")
    check(values)
    return values


def describe_damage(path: Path, number: int, fault: DamagedLine) -> str:
    """Return the message for a damaged line: file, line number, fault and remedy."""
    return one_line(f"{path} line {number} is damaged ({fault}): restore the file from a copy, or delete that line")


def read_lines(path: Path, check: Check) -> list[Line]:
    """Return the lines of a file, such as metrics.jsonl, or an empty list if it does not exist.

    Each line is a JSON object about one step. `check` raises DamagedLine for an object with wrong content (see `parse_line`).

    Raises UserError, which names the number of the line, if a line is damaged. Damaged lines are not skipped, because nobody
    would notice that steps are missing. Only a damaged last line that does not end with a newline is left out without an error:
    its writer was interrupted.
    """
    if not path.exists() and not path.is_symlink():
        return []
    whole, torn = split_lines(read_bytes(path))
    lines: list[Line] = []
    for number, text in enumerate([*whole, torn], start=1):
        try:
            step_before = lines[-1].values["step"] if lines else STEP_BEFORE_FIRST
            lines.append(Line(parse_line(text, step_before, check), text if text.endswith(b"\n") else text + b"\n"))
        except DamagedLine as fault:
            if number <= len(whole):
                raise UserError(describe_damage(path, number, fault)) from fault
    return lines


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Replace the contents of a file by `lines`."""
    with whole_file(path) as file:
        file.writelines(line.text for line in lines)


def to_line(values: dict[str, Any]) -> Line:
    """Return the line for an object, with null for NaN and infinity, which JSON does not have."""
    finite = json_ready(values)
    return Line(finite, (json.dumps(finite, ensure_ascii=False) + "\n").encode("utf-8"))


def append(path: Path, text: str) -> None:
    """Append text to a file of a run. Raises UserError if it cannot be written."""
    try:
        append_text(path, text)
    except FileNotFoundError as error:
        raise UserError(
            f"cannot write {relative_to_here(path)}, because the folder of the run was deleted or moved: give the same "
            "command again to start anew, or move the folder back first to continue"
        ) from error
    except OSError as error:
        remedy = remedy_for(error, "correct this, and give the same command again to continue")
        raise UserError(f"cannot write {relative_to_here(path)}: {error.strerror or error}; {remedy}") from error
