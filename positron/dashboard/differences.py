"""Summarise configurations: name the text of a run, and find the settings in which jobs of a sweep, or two runs, differ."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePath
from typing import Any

from positron.settings import flat

MAX_VALUE_LENGTH = 200  # number of characters of a value that are shown


def text_of(config: dict[str, Any]) -> str:
    """Return the name of the text that a run is trained on, such as book.txt or OWNER/NAME; "" if it is unknown.

    `config` holds the settings of the run as nested dicts. The name of the built-in stories contains the size of the corpus in
    MB, because each size is another text.
    """
    data = config.get("data")
    if not isinstance(data, dict):
        return ""
    path, repo = data.get("path"), data.get("repo")
    if isinstance(path, str) and path:
        return PurePath(path).name or path
    if isinstance(repo, str) and repo:
        return repo
    source, size = data.get("source"), data.get("size_mb")
    return f"stories, {size:g} MB" if source == "stories" and isinstance(size, int | float) else str(source or "")


def val_tokens_of(config: dict[str, Any]) -> int | None:
    """Return the largest number of tokens on which a run is validated, or None if it is unknown."""
    train = config.get("train")
    limit = train.get("val_tokens") if isinstance(train, dict) else None
    return limit if isinstance(limit, int) else None


def shorten_overrides(rows: list[dict[str, Any]]) -> None:
    """Add `differs` to each row of /api/runs: the overrides of the run that are not common to all jobs of its sweep.

    An override is a setting of the command line, such as optimizer.lr=1e-3. For a run that is not part of a sweep, `differs`
    contains all overrides. Also replaces the list `overrides` of each row by one string that contains all of them.
    """
    sweeps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sweeps[row["id"].rpartition("/")[0]].append(row)
    for jobs in sweeps.values():
        shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
        for job in jobs:
            job["differs"] = " ".join(text for text in job["overrides"] if text not in shared)
            job["overrides"] = " ".join(job["overrides"])


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """Return [key, value in `config`, value in `other`] for each setting that differs, except the name of the run."""
    a, b = flat(config), flat(other)
    keys = [key for key in {**a, **b} if key != "name" and a.get(key) != b.get(key)]
    return [[key, _shown(a, key), _shown(b, key)] for key in keys]


def _shown(flat: dict[str, Any], key: str) -> str:
    return str(flat[key])[:MAX_VALUE_LENGTH] if key in flat else "not set"
