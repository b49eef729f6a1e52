"""Read the runs of a folder for the dashboard, using only the files in the run folders."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from positron.config import GPTConfig
from positron.dashboard.curves import Metrics
from positron.dashboard.differences import differences, shorten_overrides, text_of, val_tokens_of
from positron.run.facts import Facts, damage, read_facts, read_record
from positron.run.folder import SFT, Run
from positron.run.load import gpt_config
from positron.run.paths import FACTS, JOB
from positron.run.samples import read_samples
from positron.run.validated import comparable, validation_text
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.disk import is_temporary, open_inside, read_bytes, read_json, readable_name
from positron.system.errors import UserError
from positron.system.file_cache import FileCache
from positron.system.formatting import above, representative_bpb
from positron.system.locks import is_locked

LIVE_SECONDS = 60.0  # if a run's lock cannot be opened, the run is live for this time after its files changed
MAX_ARCHITECTURES = 4096  # maximum number of architectures that are kept in memory, about 1 kB each
MAX_RECORDS = 4096  # maximum number of run.json, job.json and config.json that are kept in memory, up to 10 kB each
_STAMP = "%Y-%m-%d %H:%M:%S"


class Missing(Exception):
    """Report that a run or a file of a run does not exist, or that a request for its data is invalid."""


class Outputs:
    """Represent a folder of runs: read all runs below it, and keep the content of their files in memory.

    Several threads may use the same object at the same time.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.shown = root.resolve(), str(root)
        self._guard = threading.Lock()
        self._folders: dict[str, Path] = {}
        self._metrics: dict[Path, Metrics] = {}
        self._architectures: FileCache[GPTConfig] = FileCache(MAX_ARCHITECTURES)
        self._facts: FileCache[tuple[Facts, bool]] = FileCache(MAX_RECORDS)
        self._records: FileCache[tuple[dict[str, Any], bool]] = FileCache(MAX_RECORDS)

    def rows(self) -> list[dict[str, Any]]:
        """Return the content of /api/runs: a row for each run. The row of a run that cannot be read contains the reason."""
        with self._guard:
            self._find()
            rows = []
            for name, folder in self._folders.items():
                try:
                    rows.append(self._row(name, folder))
                except Exception as error:  # one damaged run must not hide the others
                    if folder.exists():  # the folder may have been deleted in the meantime
                        rows.append(_broken_row(name, folder, error))
            shorten_overrides(rows)
            for row, text in zip(rows, comparable([row["validated"] for row in rows]), strict=True):
                row["validated"] = f"{text.text} {text.limit if text.n_bytes is None else text.n_bytes}"
            return rows

    def trained(self) -> dict[str, Run]:
        """Return the runs that have a checkpoint, as a dict from names to runs."""
        with self._guard:
            self._find()
            runs = {name: Run(folder) for name, folder in self._folders.items()}
        return {name: run for name, run in runs.items() if run.has_checkpoint}

    def differences(self, name: str, other: str) -> list[list[str]]:
        """Return [key, value in run `name`, value in run `other`] for each setting that differs between the two runs.

        Raises Missing if a run does not exist.
        """
        with self._guard:
            first, second = (self._record(Run(self._folder(run)).config_path, []) for run in (name, other))
        return differences(first, second)

    def curve(self, name: str, key: str, file: str, after: int) -> dict[str, Any]:
        """Return the new points of the metric `key` of the run `name`, as `Metrics.curve` describes.

        `file` and `after` say what the caller has already; in the first call, give "" and 0. Raises Missing if the run does not
        exist.
        """
        with self._guard:
            return self._metrics_of(self._folder(name)).curve(key, file, after)

    def samples(self, name: str) -> list[dict[str, str]]:
        """Return the texts that the run sampled during training, in the order of steps.

        Each entry has a heading, `head`, such as "Step 40 · loss 1.203", and the sampled text, `text`. If the file of the
        samples is damaged, return a single entry with the reason. Raises Missing if the run does not exist.
        """
        with self._guard:
            run = Run(self._folder(name))
        try:
            return [{"head": sample.head, "text": sample.text} for sample in read_samples(run)]
        except UserError as damaged:
            return [{"head": "The samples cannot be read", "text": str(damaged)}]

    def report(self, name: str) -> bytes:
        """Return the report of a run as HTML. Raises Missing if the run or its report does not exist."""
        with self._guard:
            path = Run(self._folder(name)).report_path
        content = _content(path)
        if content is None:
            raise Missing(f"the run {name} has no {path.name}: a run writes this file when it ends")
        return content

    def _find(self) -> None:
        """Search `self.root` for run folders, and store them by name.

        A run folder has a run.json, or the job.json of a job that failed before it wrote run.json.
        """
        folders = {}
        for folder, subfolders, files in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if not is_temporary(Path(name))]
            if FACTS in files or JOB in files:
                name = Path(folder).relative_to(self.root).as_posix()
                folders[readable_name(name)] = Path(folder)
                subfolders.clear()
        self._folders = folders

    def _folder(self, name: str) -> Path:
        """Return the folder of the run `name`. Raises Missing if no run of this name was found below the root folder.

        A name is never used as a path. A request with a name such as `../x` therefore cannot read another folder.
        """
        if name not in self._folders:
            self._find()
        if name not in self._folders:
            raise Missing(f"there is no run {name}")
        return self._folders[name]

    def _metrics_of(self, folder: Path) -> Metrics:
        metrics = self._metrics.setdefault(folder, Metrics(Run(folder).metrics_path))
        metrics.read()
        return metrics

    def _row(self, name: str, folder: Path) -> dict[str, Any]:
        notes: list[str] = []
        run = Run(folder)
        facts = _read(run.facts_path, read_facts, self._facts, notes)
        is_damaged = facts is None and bool(notes)
        facts = facts or Facts()
        job = self._job(run, notes)
        metrics = self._metrics_of(folder)
        if metrics.trouble:
            notes.append(metrics.trouble)
        elif not metrics.offset and not job.get("failed"):
            notes.append("no metrics yet")
        config = self._record(run.config_path, [])
        gpt = self._architecture(run, notes) if facts != Facts() else None
        status, live = _status(folder, facts, job, notes, is_damaged)
        last, best, floor = metrics.last("val/bpb"), min(metrics.values("val/bpb"), default=None), facts.floor_bpb
        on_answers = run.chat_path.exists() and facts.kind in (SFT, None)  # None: a run of an older version
        represents = None if last is None or best is None else representative_bpb(last, best, on_answers)
        return {
            "id": name,
            "name": folder.name if name == "." else name,
            "overrides": list(map(str, job.get("overrides") or [])),
            "notes": notes,
            "status": status,
            "live": live,
            "step": metrics.last("step") or facts.step,
            "max_steps": facts.resolved.max_steps if facts.resolved else None,
            "tokens": metrics.last("tokens") or facts.tokens,
            "bpb": last,
            "best": best,
            "floor": floor,
            "above": above(represents, floor) if represents is not None and floor else None,
            "text": text_of(config),
            "fingerprint": facts.data_fingerprint or "",
            "val_tokens": val_tokens_of(config),
            "val_bytes": facts.val_bytes,
            "validated": validation_text(facts, config),
            "params": gpt.n_params() if gpt else None,
            "flops_per_token": gpt.flops_per_token() if gpt else None,
            "speed": metrics.last("speed/tokens_per_s"),
            "time_s": metrics.last("time_s"),
            "started": _started(folder),
            "updated": _updated(folder, facts, live),
            "file": metrics.file,
            "offset": metrics.offset,
            "samples": _size(run.samples_path) or _size(run.samples_page),
            "report": _size(run.report_path) > 0,
        }

    def _job(self, run: Run, notes: list[str]) -> dict[str, Any]:
        job = self._record(run.job_path, notes)
        if not isinstance(job.get("overrides"), list | None):
            notes.append(f"{run.job_path} is damaged: `overrides` is not a list")
            return {**job, "overrides": None}
        return job

    def _record(self, path: Path, notes: list[str]) -> dict[str, Any]:
        """Read a JSON file that contains an object.

        Returns {} if the file is missing or cannot be read; problems are added to `notes`.
        """
        return _read(path, read_record, self._records, notes) or {}

    def _architecture(self, run: Run, notes: list[str]) -> GPTConfig | None:
        """Return the architecture of a run. If it cannot be read, add the reason to `notes` and return None."""
        try:
            return self._architectures.get((run.config_path, run.architecture_path), lambda: architecture(run))
        except (OSError, UserError) as error:  # a file that is missing, damaged, or not readable for this user
            notes.append(f"size unknown: {error}")
            return None


def architecture(run: Run) -> GPTConfig:
    """Read a run's architecture without torch. Raises UserError if a file is missing or damaged.

    If the run folder contains an exported model, the architecture is read from this model. Otherwise, it is derived from the
    configuration and the tokenizer.
    """
    if run.architecture_path.exists():
        return from_dict(GPTConfig, read_json(run.architecture_path, run.folder))
    from positron.text.factory import load_tokenizer

    return gpt_config(run.config(), load_tokenizer(run.tokenizer_folder).vocab_size)


def _broken_row(name: str, folder: Path, error: Exception) -> dict[str, Any]:
    """Return the row of a run whose files cannot be read: only its name and the reason are known."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    numbers = ("step", "max_steps", "tokens", "bpb", "best", "floor", "above", "params", "flops_per_token", "speed")
    return {
        "id": name,
        "name": folder.name if name == "." else name,
        "overrides": [],
        "notes": [one_line(reason, 300)],
        "status": "damaged",
        "live": False,
        **dict.fromkeys((*numbers, "time_s", "started", "updated")),
        "text": text_of({}),
        "fingerprint": "",
        "val_tokens": None,
        "val_bytes": None,
        "validated": validation_text(Facts(), {}),
        "file": "",
        "offset": 0,
        "samples": 0,
        "report": False,
    }


def _content(path: Path) -> bytes | None:
    """Return the content of a file of a run, or None if the file is missing, unreadable or a link."""
    try:
        return read_bytes(path) if path.exists() else None
    except UserError:
        return None


T = TypeVar("T")


def _read(
    path: Path, reader: Callable[[Path], tuple[T, bool]], cache: FileCache[tuple[T, bool]], notes: list[str]
) -> T | None:
    """Return the content of a file, or None if it is missing or cannot be read. Problems are added to `notes`.

    `reader` returns the content and whether the file is undamaged; `cache` keeps its results.
    """
    try:
        if not path.exists() and not path.is_symlink():
            return None
        content, is_whole = cache.get((path,), lambda: reader(path))
    except (UserError, OSError) as error:
        notes.append(one_line(str(error), 300))
        return None
    if not is_whole:
        notes.append(damage(path))
    return content


def _status(folder: Path, facts: Facts, job: dict[str, Any], notes: list[str], is_damaged: bool) -> tuple[str, bool]:
    """Return the status of the run, and whether a process trains it; add the reason of a failure to `notes`.

    The status is "running" while a process trains the run. Afterwards, it is "failed" if job.json records a failure,
    "unknown" if run.json is damaged (`is_damaged`), "killed" if run.json still says "running" or is missing, and otherwise
    the status in run.json.
    """
    status = facts.status or "running"
    if status == "running" and is_live(folder):
        return status, True
    reason = job.get("failed") or facts.error
    if reason:
        notes.append(str(reason))
    if job.get("failed"):
        return "failed", False
    if status == "running":
        return ("unknown" if is_damaged else "killed"), False
    return status, False


def is_live(folder: Path) -> bool:
    """Tell whether a process trains this run, that is, whether a process holds the run's lock.

    If this cannot be found out, tell instead whether run.json or metrics.jsonl was written within the last 60 seconds
    (LIVE_SECONDS).
    """
    run = Run(folder)
    locked = is_locked(run.lock_path)
    if locked is not None:
        return locked
    written = [path.stat().st_mtime for path in (run.facts_path, run.metrics_path) if path.exists()]
    return time.time() - max(written, default=0.0) < LIVE_SECONDS


def _started(folder: Path) -> str | None:
    """Return the time at which a run started, such as "2025-01-31 09:30:00", or None if it is unknown.

    The time is read from the log, because copying a run may change the modification times of its files.
    """
    path = Run(folder).log_path
    if not path.exists():
        return None
    with open_inside(path, "rb") as file:
        stamp = file.read(19).decode("utf-8", errors="replace")
    return stamp if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stamp) else None


def _updated(folder: Path, facts: Facts, live: bool) -> str | None:
    """Return the local time of the last change of a run, as text, or None if it is unknown.

    `live`: whether a process trains the run. For such a run, and for a run that was killed (run.json still says that it is
    running), the result is the time at which metrics.jsonl was last written. For other runs, and if there is no metrics.jsonl,
    it is the time that run.json records.
    """
    path = Run(folder).metrics_path
    if (live or facts.status == "running") and path.exists():
        return time.strftime(_STAMP, time.localtime(path.stat().st_mtime))
    return facts.updated


def _size(path: Path) -> int:
    """Return the size of a file in bytes, or 0 if the file is missing or is a link."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else 0
