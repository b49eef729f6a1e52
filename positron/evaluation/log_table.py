"""Format tables for docs/LOG.md, and find the commit and the machine of a run."""

from __future__ import annotations

from typing import Any

from positron.run.folder import Run
from positron.run.provenance import read_provenance, start_of


def cell(value: Any, column: dict[str, str]) -> str:
    """Return a value in the format of its column, or "" if the value is missing.

    `column` is an entry of the list `columns` in docs/results/*.json. A value may be a list, such as a mean and half the width
    of its interval. The parts of a list are formatted one by one, and joined by the sign `column["pair"]`, such as "±".
    """
    if isinstance(value, list):
        return f" {column['pair']} ".join(cell(part, column) for part in value)
    if value is None or "format" not in column:
        return value or ""
    spec, _, unit = column["format"].partition(" ")
    if spec.endswith("M"):
        spec, unit = spec[:-1], "M"
        return f"{value:{spec}}{unit}"
    return f"{value:{spec}} {unit}".rstrip()


def table(result: dict[str, Any]) -> str:
    """Return the rows of `result`, which has the format of docs/results/*.json, as a table in Markdown."""
    columns = result["columns"]
    lines = [[column["title"] for column in columns], ["---:" if "format" in column else "---" for column in columns]]
    lines += [[cell(row.get(column["key"]), column) for column in columns] for row in result["rows"]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def origin(run: Run) -> dict[str, Any]:
    """Return the commit and the machine of the last start of a run; values that the run does not record are None."""
    start = start_of(read_provenance(run.folder), run.facts().step or 0)
    hardware, versions, git = (start.get(key) or {} for key in ("hardware", "versions", "git"))
    return {
        "commit": git["commit"][:7] if git.get("commit") else None,
        "machine": {"cpu": hardware.get("cpu"), "cores": hardware.get("cores"), "torch": versions.get("torch")},
    }
