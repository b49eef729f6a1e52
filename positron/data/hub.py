"""Read datasets of the Hugging Face hub from Parquet files, with only a few files on the disk at a time.

Each file is downloaded, tokenized and deleted; the next file is downloaded in the meantime. When a dataset is used for the
first time, the commit of its repository, the file names and their checksums are saved in `source.json`. So a prepared corpus
needs no network, and it stays the same when the repository changes.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from positron.config import DataConfig
from positron.data.decoding import Reading
from positron.data.hub_download import BackgroundCall, ask_hub, download
from positron.data.rows import parquet_texts
from positron.data.sources import WAIT, Document, is_validation
from positron.system.commands import quoted
from positron.system.console import one_line
from positron.system.disk import expanded, make_folder, read_json, write_json
from positron.system.errors import UserError

logger = logging.getLogger(__name__)

BUFFER_FILES, BUFFER_BYTES = 5, 2_500_000_000  # limits for the files on the disk at a time; a single file may be larger
Task = tuple[str, int]  # a file, and one of its row groups


class Repository:
    """Hold the commit and the list of files of a dataset's repository, as they were at the first use of the dataset.

    Both are saved at the first use, once for each combination of settings.

    The attribute `files` lists the Parquet files that match `data.files`. Each of them is a dict with the keys `name`, `size`
    (in bytes), `sha256` and `row_groups`, the number of row groups (None until the file is opened).

    If no Parquet file matches, `files` is empty, and the rows are read by `datasets.load_dataset`. In this case, the attribute
    `others` lists the names of the files to read; None means the files that the repository itself declares.

    Raises UserError if the repository or the files do not exist, or if `data.config_name` is given for Parquet files. Raises
    Unreachable if the dataset is used for the first time and the hub cannot be reached.
    """

    def __init__(self, config: DataConfig) -> None:
        assert config.repo is not None
        self.repo = config.repo
        self.limit_bytes = None if config.max_mb is None else round(config.max_mb * 1e6)
        choice = [config.repo, config.files, config.revision, config.field, config.seed, config.val_fraction]
        choice.append(self.limit_bytes)
        if config.config_name is not None:  # appended only if given, so that older names and fingerprints stay valid
            choice.append(config.config_name)
        self.config_name = config.config_name
        self.name = f"{config.repo.replace('/', '--')}-{hashlib.sha256(repr(choice).encode()).hexdigest()[:8]}"
        self.folder = expanded(config.dir) / self.name
        self.raw = self.folder / "raw"  # downloaded files, until they are read
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
        """Write the commit and the list of files to source.json again.

        Call this method after the number of row groups of a Parquet file (the key `row_groups` of one of the `files`) was set.
        """
        write_json(self._note, self._facts)

    def _look(self, config: DataConfig) -> None:
        """Ask the hub for the commit and the list of files of the repository, and save both in source.json.

        Raises UserError if the repository has no data, or no files that match `data.files`. Also raises UserError if
        `data.config_name` is given and Parquet files match, because these are chosen by `data.files` alone. Raises Unreachable
        if the hub cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = ask_hub(
            lambda: api.dataset_info(self.repo, revision=config.revision, files_metadata=True, timeout=10),
            f"the dataset {self.repo}",
        )
        siblings = sorted(info.siblings or [], key=lambda s: s.rfilename)
        names = [s.rfilename for s in siblings if not _is_description(s.rfilename)]
        parquet = [s for s in siblings if s.rfilename.endswith(".parquet")]
        # fnmatch would ignore the case of letters on Windows
        chosen = [s for s in parquet if fnmatch.fnmatchcase(s.rfilename, config.files)]
        others = [name for name in names if fnmatch.fnmatchcase(name, config.files)]
        if not names:
            raise UserError(f"data.repo={self.repo} contains no data: give another dataset")
        if not chosen and not others:
            kind = "Parquet files" if parquet else "files"
            listed = ", ".join([s.rfilename for s in parquet[:6]] or names[:6])
            raise UserError(
                f"data.repo={self.repo} has no {kind} that match data.files={config.files}: give another pattern; "
                f"the dataset has: {listed}"
            )
        if chosen and config.config_name is not None:
            is_in_names = any(config.config_name in s.rfilename for s in chosen)
            pattern = f"*{config.config_name}*" if is_in_names else chosen[0].rfilename
            raise UserError(
                f"data.config_name= is for datasets without Parquet files, but data.repo={self.repo} has Parquet files: "
                f"replace data.config_name={config.config_name} by a choice of files, such as {quoted(f'data.files={pattern}')}"
            )
        files = [
            {"name": s.rfilename, "size": s.size, "sha256": s.lfs.sha256 if s.lfs else None, "row_groups": None}
            for s in chosen
        ]
        note: dict[str, Any] = {"repo": self.repo, "commit": info.sha, "files": files}
        if not chosen:
            note["others"] = None if config.files == "*" else others
        make_folder(self.folder, instead="give another data.dir=")
        write_json(self._note, note)


def _is_description(name: str) -> bool:
    """Tell whether the name of a file in a repository, such as `README.md`, shows that the file contains no data."""
    return Path(name).name.lower().startswith((".", "readme", "license"))


class HubSource:
    """Read the documents of a dataset from one column of its Parquet files; each non-empty cell is a document.

    The hash of a document decides whether it is used for training or for validation. Raises UserError if the dataset has no
    Parquet files, and the errors of `Repository`.
    """

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
        self.reading.is_one_of_several = len(self.files) > 1
        if not self.files:
            chosen, other = (
                ("", "") if config.files == "*" else (f" that match data.files={config.files}", " and other files")
            )
            raise UserError(
                f"data.tokens_per_epoch needs Parquet files, but data.repo={self.repo} has none{chosen}: "
                f"give data.tokens_per_epoch=null, or try data.revision=refs/convert/parquet{other}"
            )
        self.held_out: frozenset[bytes] = frozenset()
        self._open: list[tuple[str, int]] = []  # files being tokenized, each with the number of tasks up to its end

    def part(self, files: slice, held_out: frozenset[bytes] = frozenset()) -> HubSource:
        """Return a source that reads only the files `self.files[files]`, and has no validation documents.

        All documents are for training, except those whose hash (`text_digest`) is in `held_out`, which are left out.
        """
        part = copy.copy(self)
        part.files, part.held_out, part.val_fraction = self.files[files], held_out, 0.0
        return part

    def tasks(self, skip: int = 0) -> Iterator[Task | str]:
        """Yield the tasks (path of a file, number of a row group) in order, except the first `skip` tasks.

        Yields WAIT if no further file can be downloaded, because the limit for files on the disk is reached; the caller must
        then call `release` for the tasks that were read. While a file is read, the next one is downloaded in the background.
        Raises UserError if the disk is full or a file is damaged, and Unreachable if the network fails.
        """
        self._open = []
        prefetch: BackgroundCall[Path] | None = None
        count = 0
        for number, file in enumerate(self.files):
            known = file["row_groups"]
            if known is not None and count + known <= skip:
                count += known  # an earlier call tokenized the whole file
                (self._raw / file["name"]).unlink(missing_ok=True)
                continue
            if not self._open:
                self._clear_buffer(self.files[number : number + BUFFER_FILES])
            while self._is_full(file):
                yield WAIT
            path = prefetch.result() if prefetch is not None else self._fetch(file)
            groups = self._row_groups(file, path)
            self._open.append((file["name"], count + groups))
            following = self.files[number + 1 : number + 2]
            prefetch = None
            if following and not self._is_full(following[0]):
                prefetch = BackgroundCall(functools.partial(self._fetch, following[0]))
            for group in range(groups):
                count += 1
                if count > skip:
                    yield str(path), group

    def read(self, task: Task | str) -> list[Document]:
        """Return the documents of a row group, a part of a Parquet file.

        `task` is an item that `tasks` has yielded, but not the constant WAIT, which is not a task. Raises UserError if the
        column is missing or is not text, or if the file is damaged.
        """
        assert not isinstance(task, str)  # WAIT has no documents
        path, group = task
        return [
            Document(text, is_validation(text, self.seed, self.val_fraction))
            for text in parquet_texts(Path(path), self.reading, group)
            if not self.held_out or text_digest(text) not in self.held_out
        ]

    def summary(self) -> str:
        """Return a line with the number of files and the name of the dataset."""
        return f"read {len(self.files):,} files of {self.repo}"

    def release(self, tasks_done: int | None) -> None:
        """Delete the downloaded files whose row groups are all among the first `tasks_done`; None deletes all downloaded files.

        A task is one row group of a file. The row groups of all files are counted in order, so `tasks_done` is the number of
        row groups that were tokenized. If a crash loses the tokens of a deleted file, the file is downloaded again.
        """
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
        return len(sizes) >= BUFFER_FILES or sum(sizes) + (next_file["size"] or 0) > BUFFER_BYTES

    def _clear_buffer(self, needed: list[dict[str, Any]]) -> None:
        """Delete the downloaded files that an interrupted call left on the disk, except those that are `needed` next.

        `needed` is a part of `self.files`, whose items describe the files of the dataset.
        """
        needed_paths = {self._raw / file["name"] for file in needed}
        for path in self._raw.rglob("*.parquet"):
            if path not in needed_paths:
                path.unlink(missing_ok=True)

    def _fetch(self, file: dict[str, Any]) -> Path:
        """Download a file of the dataset and return its path; see `download` for the keys of `file` and the errors."""
        return download(self.repo, "dataset", self.repository.commit, file, self._raw)

    def _row_groups(self, file: dict[str, Any], path: Path) -> int:
        if file["row_groups"] is None:
            import pyarrow
            import pyarrow.parquet

            try:
                with pyarrow.parquet.ParquetFile(path) as opened:
                    file["row_groups"] = opened.num_row_groups
            except pyarrow.ArrowException as error:
                other = "choose other files with data.files=PATTERN"
                raise UserError(
                    f"{path} cannot be read as a Parquet file ({one_line(' '.join(str(error).split()), 200)}): "
                    + (
                        f"the hub has the same file, so {other}"
                        if file["sha256"] is not None
                        else f"delete it and repeat the command, which downloads it again, or {other}"
                    )
                ) from error
            self.repository.write_note()
        groups: int = file["row_groups"]
        return groups


def text_digest(text: str) -> bytes:
    """Return the BLAKE2b hash of a text, 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
