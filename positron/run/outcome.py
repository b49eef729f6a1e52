"""Read job.json, which records the settings that a sweep gave to one of its jobs (the overrides), and how the job ended."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from positron.system.disk import read_json
from positron.system.errors import UserError

_WORDS = {"True": "true", "False": "false", "None": "null"}  # of the command line, by their names in Python


@dataclass(frozen=True)
class Outcome:
    """Hold the overrides of a job of a sweep, such as `optimizer.lr=0.01`, and the reason if the job failed or was refused.

    A job is refused if its run had finished earlier and cannot continue with the settings of this job.
    """

    overrides: list[str] = field(default_factory=list)
    failed: str | None = None
    refused: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """Return the overrides as a dict from key to value."""
        return dict(override.lstrip("+").split("=", 1) for override in self.overrides if "=" in override)


def read_outcome(path: Path) -> Outcome:
    """Return the outcome of a job of a sweep from its file job.json, `path`. Raises UserError if the file is damaged."""
    job = read_json(path)
    if (
        isinstance(job, dict)
        and isinstance(job.get("overrides"), list)
        and all(isinstance(override, str) for override in job["overrides"])
        and isinstance(job.get("failed"), str | None)
        and isinstance(job.get("refused"), str | None)
    ):
        return Outcome(job["overrides"], job.get("failed"), job.get("refused"))
    raise UserError(f"{path} is damaged: restore it from a copy, or give the command of the sweep again")


def canonical(value: Any) -> str:
    """Return the value of a setting as text, in one of its spellings: 1e-3 as 0.001, True as true, [1, 2] as [1,2]."""
    text = _WORDS.get(str(value), str(value)).replace(", ", ",")
    if re.fullmatch(r"[+-]?\d+", text):
        return str(int(text))  # a float is not exact for a large seed
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)
