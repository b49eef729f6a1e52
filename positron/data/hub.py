"""Datasets of the Hugging Face hub, as parquet files that pass through a small room on the disk.

A file is fetched, its rows become tokens, and it is deleted; the next one is on its way meanwhile. What a repository
holds (its commit, its files and their checksums) is noted at the first call, so a corpus that was prepared once needs
the network no more, and does not change when the repository does.
"""

from __future__ import annotations

import contextvars
import copy
import fnmatch
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from positron.config import DataConfig
from positron.data.decoding import Reading
from positron.data.rows import parquet_texts
from positron.data.sources import WAIT, Document, is_validation
from positron.system.disk import expanded, make_folder, read_json, write_json
from positron.system.errors import Unreachable, UserError

logger = logging.getLogger(__name__)

RING_FILES, RING_BYTES = 5, 2_500_000_000  # the most that lies in the room at a time; a single larger file may
SPARE_BYTES = 1_000_000_000  # of the disk that is left free
PATIENCE_S = 300.0  # how long one thing is tried again before the hub counts as out of reach
Answer = TypeVar("Answer")
Task = tuple[str, int]  # a file, and one of its row groups


class Repository:
    """What a data set's repository held at the first call: its commit, and its files with their checksums.

    `files` are the parquet files that `data.files` names, with their checksums. If there are none, `load_dataset` reads
    `others`, or what the repository itself says, if `others` is None.
    """

    def __init__(self, config: DataConfig) -> None:
        assert config.repo is not None
        self.repo = config.repo
        self.limit_bytes = None if config.max_mb is None else round(config.max_mb * 1e6)
        choice = [config.repo, config.files, config.revision, config.field, config.seed, config.val_fraction]
        choice.append(self.limit_bytes)
        self.name = f"{config.repo.replace('/', '--')}-{hashlib.sha256(repr(choice).encode()).hexdigest()[:8]}"
        self.folder = expanded(config.dir) / self.name
        self.raw = self.folder / "raw"  # what is fetched, until it is read
        self._note = self.folder / "source.json"
        if not self._note.exists():
            self._look(config)
        self._facts: dict[str, Any] = read_json(self._note)
        self.commit: str = self._facts["commit"]
        self.files: list[dict[str, Any]] = self._facts["files"]
        self.others: list[str] | None = self._facts.get("others")
        facts = [choice, self.commit, [(f["name"], f["sha256"]) for f in self.files]]
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    def write_note(self) -> None:
        """Keep what was learned about `files`."""
        write_json(self._note, self._facts)

    def _look(self, config: DataConfig) -> None:
        """Note the commit and the files. UserError for a repository or files that do not exist."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = patiently(
            lambda: api.dataset_info(self.repo, revision=config.revision, files_metadata=True, timeout=10),
            f"the dataset {self.repo}",
        )
        siblings = sorted(info.siblings or [], key=lambda s: s.rfilename)
        names = [s.rfilename for s in siblings if not _is_description(s.rfilename)]
        parquet = [s for s in siblings if s.rfilename.endswith(".parquet")]
        chosen = [s for s in parquet if fnmatch.fnmatch(s.rfilename, config.files)]
        others = [name for name in names if fnmatch.fnmatch(name, config.files)]
        if not chosen and not others:
            kind = "parquet files" if parquet else "files"
            listed = ", ".join([s.rfilename for s in parquet[:6]] or names[:6]) or "none"
            raise UserError(
                f"data.repo={self.repo} has no {kind} that match data.files={config.files}; it has: {listed}"
            )
        files = [
            {"name": s.rfilename, "size": s.size, "sha256": s.lfs.sha256 if s.lfs else None, "row_groups": None}
            for s in chosen
        ]
        note: dict[str, Any] = {"repo": self.repo, "commit": info.sha, "files": files}
        if not chosen:
            note["others"] = None if config.files == "*" else others
        make_folder(self.folder)
        write_json(self._note, note)


def _is_description(name: str) -> bool:
    """Tell whether a file of a repository describes the data: `README.md`, `.gitattributes`."""
    return Path(name).name.lower().startswith((".", "readme", "license"))


class HubSource:
    """One column of a dataset's parquet files. Which documents are for validation is drawn by their text."""

    total_bytes = None

    def __init__(self, config: DataConfig) -> None:
        self.repository = Repository(config)
        self.repo, self.field = self.repository.repo, config.field
        self.reading = Reading(config.field, config.on_invalid)
        self.seed, self.val_fraction = config.seed, config.val_fraction
        self.limit_bytes = self.repository.limit_bytes
        self.name, self.folder, self._raw = self.repository.name, self.repository.folder, self.repository.raw
        self.fingerprint = self.earlier_fingerprint = self.repository.fingerprint
        self.files = self.repository.files
        if not self.files:
            raise UserError(
                f"data.repo={self.repo} has no parquet files, which data.tokens_per_epoch needs: "
                "leave it out, or try data.revision=refs/convert/parquet"
            )
        self.held_out: frozenset[bytes] = frozenset()
        self._open: list[tuple[str, int]] = []  # files whose rows are being tokenized, and the task count at their end

    def part(self, files: slice, held_out: frozenset[bytes] = frozenset()) -> HubSource:
        """All documents of some of the files, but for those with a digest in `held_out`, all of them for training."""
        part = copy.copy(self)
        part.files, part.held_out, part.val_fraction = self.files[files], held_out, 0.0
        return part

    def tasks(self, skip: int = 0) -> Iterator[Task | str]:
        """(file, row group) in order, without the first `skip`; WAIT while the room is full of files in work.

        `release` tells what is done. The file after the one that is handed out is fetched in the background.
        """
        self._open = []
        ahead: _Fetch | None = None
        count = 0
        for number, file in enumerate(self.files):
            known = file["row_groups"]
            if known is not None and count + known <= skip:
                count += known  # all of it was tokenized by an earlier call
                (self._raw / file["name"]).unlink(missing_ok=True)
                continue
            if not self._open:
                self._clear_room(self.files[number : number + RING_FILES])
            while self._is_full(file):
                yield WAIT
            path = ahead.result() if ahead is not None else self._fetch(file)
            groups = self._row_groups(file, path)
            self._open.append((file["name"], count + groups))
            following = self.files[number + 1 : number + 2]
            ahead = _Fetch(self._fetch, following[0]) if following and not self._is_full(following[0]) else None
            for group in range(groups):
                count += 1
                if count > skip:
                    yield str(path), group

    def read(self, task: Task | str) -> list[Document]:
        assert not isinstance(task, str)  # WAIT is no text
        path, group = task
        return [
            Document(text, is_validation(text, self.seed, self.val_fraction))
            for text in parquet_texts(Path(path), self.reading, group)
            if not self.held_out or digest(text) not in self.held_out
        ]

    def summary(self) -> str:
        return f"read {len(self.files):,} files of {self.repo}"

    def release(self, tasks_done: int | None) -> None:
        """Delete the files all of whose rows were read. One whose tokens are lost to a crash is fetched again."""
        if tasks_done is None:
            shutil.rmtree(self._raw, ignore_errors=True)
            return
        while self._open and self._open[0][1] <= tasks_done:
            name, _ = self._open.pop(0)
            (self._raw / name).unlink(missing_ok=True)

    def _is_full(self, next_file: dict[str, Any]) -> bool:
        if not self._open:
            return False
        sizes = [path.stat().st_size for path in self._raw.rglob("*.parquet")]
        return len(sizes) >= RING_FILES or sum(sizes) + (next_file["size"] or 0) > RING_BYTES

    def _clear_room(self, needed: list[dict[str, Any]]) -> None:
        """What an earlier reading of other places left behind goes."""
        wanted = {self._raw / file["name"] for file in needed}
        for path in self._raw.rglob("*.parquet"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _fetch(self, file: dict[str, Any]) -> Path:
        """The file on the disk, its checksum verified. UserError for a full disk, Unreachable for a lost network."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        raw = make_folder(self._raw)
        free = shutil.disk_usage(raw).free
        if free < (file["size"] or 0) + SPARE_BYTES:
            raise UserError(
                f"the disk of {raw} has {free / 1e9:.1f} GB free; {file['name']} needs {(file['size'] or 0) / 1e9:.1f} GB "
                f"and {SPARE_BYTES / 1e9:.0f} GB to spare: free some, or set data.dir= to another disk"
            )
        disable_progress_bars()

        def get() -> Path:
            path = Path(
                hf_hub_download(
                    self.repo,
                    file["name"],
                    repo_type="dataset",
                    revision=self.repository.commit,
                    local_dir=raw,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                )
            )
            if file["sha256"] is not None and _sha256(path) != file["sha256"]:
                path.unlink()
                raise ConnectionError("what arrived does not have the checksum that the repository names")
            return path

        return patiently(get, f"{file['name']} of {self.repo}")

    def _row_groups(self, file: dict[str, Any], path: Path) -> int:
        if file["row_groups"] is None:
            import pyarrow
            import pyarrow.parquet

            try:
                with pyarrow.parquet.ParquetFile(path) as opened:
                    file["row_groups"] = opened.num_row_groups
            except pyarrow.ArrowException as error:
                raise UserError(f"{path} is no parquet file: {' '.join(str(error).split())[:200]}") from error
            self.repository.write_note()
        groups: int = file["row_groups"]
        return groups


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


class _Fetch(threading.Thread):
    """A file that is fetched in the background, by a thread that does not keep a program from ending."""

    def __init__(self, fetch: Callable[[dict[str, Any]], Path], file: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._fetch, self._file = fetch, file
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._context = contextvars.copy_context()  # so that its lines reach the run's log
        self.start()

    def run(self) -> None:
        try:
            self._path = self._context.run(self._fetch, self._file)
        except BaseException as error:  # raised where the file is asked for
            self._error = error

    def result(self) -> Path:
        self.join()
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def patience_s() -> float:
    """Return for how many seconds one thing is tried again."""
    return float(os.environ.get("POSITRON_PATIENCE_S", PATIENCE_S))


def patiently(action: Callable[[], Answer], what: str) -> Answer:
    """The answer of `action`, tried again with growing pauses while the network fails.

    Unreachable after PATIENCE_S seconds (or POSITRON_PATIENCE_S, from the environment); UserError at once for what
    trying again does not mend.
    """
    # HTTPError: of whichever HTTP library the client uses
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patience = patience_s()
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except (RepositoryNotFoundError, GatedRepoError) as error:
            reason = "needs access rights: hf auth login" if isinstance(error, GatedRepoError) else "is not there"
            raise UserError(
                f"{what} {reason} (asked {os.environ.get('HF_ENDPOINT', 'https://huggingface.co')})"
            ) from error
        except (HTTPError, LocalEntryNotFoundError, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = " ".join(str(error).split())[:160]
            if status is not None and 400 <= status < 500 and status not in (408, 429):
                raise UserError(f"{what}: the hub answers {status}: {reason}") from error
            if time.monotonic() - began + pause > patience:
                raise Unreachable(
                    f"{what} cannot be fetched: {reason}. What was done is kept: the same command goes on when the "
                    "network is back; data=stories and data=text need none"
                ) from error
            logger.info(f"{what}: {reason}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(60.0, 2 * pause)
