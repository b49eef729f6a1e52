"""Summarise configurations: the text of a run, and the settings that differ between jobs of a sweep or between two runs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePath
from typing import Any

from positron.settings import flat

MAX_VALUE_LENGTH = 200  # characters of a value that are shown


def text_of(config: dict[str, Any]) -> str:
    """Name the text that a run learns from: stories, book.txt, OWNER/NAME; "" if the configuration does not say."""
    data = config.get("data")
    if not isinstance(data, dict):
        return ""
    path, repo = data.get("path"), data.get("repo")
    if isinstance(path, str) and path:
        return PurePath(path).name or path
    return repo if isinstance(repo, str) and repo else str(data.get("source") or "")


def shorten_overrides(rows: list[dict[str, Any]]) -> None:
    """Add `differs` to the rows of /api/runs: for a job of a sweep the settings that not all its jobs share, else all."""
    sweeps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sweeps[row["id"].rpartition("/")[0]].append(row)
    for jobs in sweeps.values():
        shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
        for job in jobs:
            job["differs"] = " ".join(text for text in job["overrides"] if text not in shared)
            job["overrides"] = " ".join(job["overrides"])


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[list[str]]:
    """List [key, value, other value] for the settings, except the name, in which two configurations differ."""
    a, b = flat(ours), flat(theirs)
    keys = [key for key in {**a, **b} if key != "name" and a.get(key) != b.get(key)]
    return [[key, _shown(a, key), _shown(b, key)] for key in keys]


def _shown(flat: dict[str, Any], key: str) -> str:
    return str(flat[key])[:MAX_VALUE_LENGTH] if key in flat else "not set"
