"""Read the rows of hub datasets that have no Parquet files, with `datasets.load_dataset(..., streaming=True)`.

The library `datasets` runs in a separate process, with its caches below `data.dir` instead of in the user's home. The process
reports a failure of the network instead of retrying silently. It is killed if it sends nothing for 300 seconds, or for the
number of seconds in the environment variable POSITRON_PATIENCE_S, but for at least 20 seconds. The rows are grouped into
chunks. A chunk ends as soon as it has about a million characters. Nothing else decides where it ends, so chunk i is the same in
every call.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from positron.config import DataConfig
from positron.data.decoding import Reading
from positron.data.hub import HubSource, Repository
from positron.data.hub_download import patience_s, retry_network
from positron.data.records import parquet_rows
from positron.data.sources import ROWS_FILE, WAIT, Document, is_validation
from positron.system.children import CHILDREN, PipeEnd, end_with_parent, leave_interrupts_to_parent
from positron.system.console import one_line
from positron.system.disk import make_folder, sweep_drafts_of, whole_file
from positron.system.errors import UserError, is_of_this_machine
from positron.system.locks import lock

logger = logging.getLogger(__name__)

CHUNK_CHARS = 1 << 20
# seconds without data after which a message says that Positron is waiting; more than the child's imports take
SILENCE_S = 20.0
TRAIN = "train"


class HubRowsSource:
    """Read the documents of a hub dataset without Parquet files; a document is the text in one field of a row.

    The hash of a document decides whether it is used for training or for validation.
    """

    total_bytes = None

    def __init__(self, repository: Repository, config: DataConfig) -> None:
        self.repository, self.field = repository, config.field
        self.reading = Reading(config.field, config.on_invalid)
        self.seed, self.val_fraction = config.seed, config.val_fraction
        self.name, self.limit_bytes = repository.name, repository.limit_bytes
        self.fingerprint = self.earlier_fingerprint = repository.fingerprint

    def tasks(self, skip: int = 0) -> Iterator[list[Document]]:
        """Yield the tasks after the first `skip`, each a list of documents with about a million characters in total.

        The skipped tasks are downloaded, too. Raises Unreachable if the network fails. The text of a document is in the field
        of a row that the setting data.field names. Raises UserError if a row lacks this field, or if its value is neither text
        nor null.
        """
        for first, chunk in row_chunks(self.repository, self.field, skip):
            task = []
            for number, text in enumerate(chunk, first):
                text = self.reading.replace_surrogates(text, f"{self.repository.repo}, text {number:,}")
                task.append(Document(text, is_validation(text, self.seed, self.val_fraction)))
            yield task

    def read(self, task: list[Document]) -> list[Document]:
        """Return the task unchanged, because it is a list of documents."""
        return task

    def summary(self) -> str:
        """Return a line that names the dataset and says that no checksums were verified."""
        return f"read the rows of {self.repository.repo}; no checksums were verified, because the dataset has no Parquet files"

    def release(self, tasks_done: int | None) -> None:
        """Delete the caches of the library `datasets` if all tasks were read (`tasks_done` is None); otherwise do nothing."""
        if tasks_done is None:
            shutil.rmtree(self.repository.raw, ignore_errors=True)


def fetch_rows(config: DataConfig) -> Path:
    """Write all rows of a hub dataset to a file of JSON lines below `data.dir`, unless the file exists; return its path.

    Raises UserError if the dataset does not exist or cannot be read, Unreachable if the network fails.
    """
    repository = Repository(config)
    path = repository.folder / ROWS_FILE
    if path.exists():  # perhaps on a disk that cannot be written
        return path

    def wait() -> None:
        logger.info(f"waiting for another process that downloads {config.repo}")

    with lock(repository.folder / "lock", wait, instead="give another data.dir="):
        if not path.exists():
            sweep_drafts_of(path)
            logger.info(f"downloading the rows of {config.repo}")
            with whole_file(path) as file:
                for row in _all_rows(repository, config):
                    file.write(json.dumps(row, default=str).encode("ascii") + b"\n")
            shutil.rmtree(repository.raw, ignore_errors=True)
    return path


def _all_rows(repository: Repository, config: DataConfig) -> Iterator[Any]:
    if not repository.files:
        for _, chunk in row_chunks(repository, None, 0):
            yield from chunk
        return
    source = HubSource(config)
    n_done = 0
    for task in source.tasks():
        if task != WAIT:
            assert not isinstance(task, str)
            path, group = task
            yield from parquet_rows(Path(path), group)
            n_done += 1
        source.release(n_done)


def row_chunks(repository: Repository, field: str | None, skip: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows of a dataset in chunks of about a million characters, except the first `skip` chunks.

    Each chunk is a pair: the number of its first row, counted from 1 in the dataset, and the list of its rows. If `field` is
    not None, the chunks contain the texts of this field instead of the rows; empty texts are left out and not counted.

    After a failure of the network, the dataset is read again from its beginning, and the chunks that were yielded already are
    skipped. Raises Unreachable if the network fails for `patience_s()` seconds, UserError if the rows cannot be read, and
    OSError for a fault of this machine, such as a full disk.
    """
    process = _Process(repository, field, skip)
    try:
        while (chunk := retry_network(process.next, f"the rows of {repository.repo}")) is not None:
            yield chunk
    finally:
        process.stop()


class _Process:
    """Run the library `datasets` in a separate process. After a failure of the network, `next` starts a new process."""

    def __init__(self, repository: Repository, field: str | None, skip: int) -> None:
        self._repository, self._field, self._done = repository, field, skip
        self._process: Any = None
        self._connection: PipeEnd | None = None
        self._has_logged = False
        self._silent_s = 0.0

    def next(self) -> tuple[int, list[Any]] | None:
        """Return the next chunk as (number of the first row, rows), or None after the last chunk.

        Raises ConnectionError if the network fails, UserError if the rows cannot be read, and OSError for a fault of this
        machine, such as a full disk.
        """
        while True:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            try:
                if not self._connection.poll(SILENCE_S):
                    self._silent_s += SILENCE_S
                    if self._silent_s >= patience_s():
                        raise ConnectionError(f"no answer within {self._silent_s:.0f} s")
                    logger.info(
                        f"waiting for the rows of {self._repository.repo}: no data for {self._silent_s:.0f} s so far"
                    )
                    continue
                kind, content = self._connection.recv()
                self._silent_s = 0.0
            except (EOFError, ConnectionError) as error:
                self.stop()
                raise ConnectionError(str(error) or "the process that reads the rows ended") from error
            match kind:
                case "chunk":
                    self._done += 1
                    first, rows = content
                    return first, rows
                case "skipped":  # shows that the rows arrive
                    pass
                case "log":
                    if not self._has_logged:
                        self._has_logged = True
                        logger.info(content)
                case "end":
                    return None
                case "network":
                    self.stop()
                    raise ConnectionError(content)
                case "machine":
                    raise OSError(*content)
                case _:
                    raise UserError(content)

    def _start(self) -> None:
        self._connection, child_end = CHILDREN.Pipe(duplex=False)
        facts = self._repository
        arguments = (
            child_end,
            facts.repo,
            facts.commit,
            facts.others,
            facts.config_name,
            self._field,
            str(make_folder(facts.raw)),
            self._done,
        )
        self._process = CHILDREN.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child_end.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self._silent_s = 0.0


def _serve(
    connection: PipeEnd,
    repo: str,
    commit: str,
    files: list[str] | None,
    config_name: str | None,
    field: str | None,
    cache: str,
    skip: int,
) -> None:
    """Read the rows of a dataset and send them to the parent process; this is the main function of the child process.

    It sends the pair ("log", line), then the pair ("skipped", None) for each of the first `skip` chunks and the pair ("chunk",
    (number of the first row, rows)) for each chunk after them, and then ("end", None). After a failure, the last pair is the
    one that `_reason` returns. `files`: the files to read (None: those that the repository declares). `field`: the field whose
    non-empty texts are sent instead of the rows (None: the whole rows). `cache`: the folder for the caches of `datasets`.
    """
    leave_interrupts_to_parent()
    end_with_parent()
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        os.environ[name] = cache
    try:
        import datasets
        import huggingface_hub
        import tqdm

        tqdm.tqdm.set_lock(threading.RLock())  # its default is a semaphore, which a killed process leaves behind
        datasets.utils.logging.set_verbosity(datasets.utils.logging.ERROR)
        huggingface_hub.utils.logging.set_verbosity(huggingface_hub.utils.logging.ERROR)
        datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
        datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
        try:
            splits = datasets.load_dataset(
                repo, config_name, revision=commit, data_files=files, streaming=True, cache_dir=cache
            )
        except ValueError as error:  # raised also if the configuration is missing or unknown
            if files is None:
                _check_config_name(repo, config_name, datasets.get_dataset_config_names(repo, revision=commit), error)
            raise
        connection.send(("log", _describe_split(repo, config_name, list(splits))))
        rows = splits[TRAIN if TRAIN in splits else next(iter(splits))]
        first = 1
        for number, chunk in enumerate(_chunks(_texts(rows, repo, field) if field is not None else rows)):
            connection.send(("chunk", (first, chunk)) if number >= skip else ("skipped", None))
            first += len(chunk)
        connection.send(("end", None))
    except BaseException as error:  # sent to the parent process, which raises it
        connection.send(_reason(error, repo))


def _check_config_name(repo: str, config_name: str | None, names: list[str], error: ValueError) -> None:
    """Raise UserError if the configuration `config_name` does not exist, or if none is chosen but the dataset has several.

    The message lists the configurations `names` of the dataset. `error`: the error of `load_dataset`, which becomes the cause
    of the UserError.
    """
    listed = ", ".join(names)
    if config_name is not None and config_name not in names:
        similar = difflib.get_close_matches(config_name, names, 1)
        hint = f"did you mean {similar[0]}? Choose one of" if similar else "choose one of"
        raise UserError(f"data.config_name={config_name} is not a configuration of {repo}: {hint} {listed}") from error
    if config_name is None and len(names) > 1:
        raise UserError(f"{repo} has several configurations: give data.config_name= with one of {listed}") from error


def _describe_split(repo: str, config_name: str | None, splits: list[str]) -> str:
    """Return a log line that says how the rows are read and which splits are not read.

    `splits`: the names of the dataset's splits. Raises UserError if there are several splits, but none is named `train`.
    """
    if len(splits) > 1 and TRAIN not in splits:
        instead = "" if config_name is None else "leave out data.config_name=, and "
        raise UserError(
            f"{repo} has the splits {', '.join(splits)}, and none is named train: {instead}give a data.files=PATTERN that "
            "matches the files of one split"
        )
    others = [split for split in splits if split != TRAIN] if len(splits) > 1 else []
    return f"{repo} has no Parquet files: its rows are read by load_dataset" + (
        f", from the split {TRAIN} (splits not read: {', '.join(others)})" if others else ""
    )


def _texts(rows: Any, repo: str, field: str) -> Iterator[str]:
    for row in rows:
        text = row.get(field)
        if not isinstance(text, str) and (text is not None or field not in row):
            fields = [name for name, cell in row.items() if isinstance(cell, str)]
            reading = Reading(field)
            advice = (
                reading.choice_of(fields) if fields else "none of its fields contains text; give another data.repo="
            )
            raise UserError(f"{repo} has no text in the field {reading.field_name}: {advice}")
        if text:
            yield text


def _chunks(rows: Any) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row) if isinstance(row, str) else len(str(row))
        if size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _reason(error: BaseException, repo: str) -> tuple[str, Any]:
    """Return the pair (kind of error, content) that tells the parent process about `error`.

    The pair is ("machine", arguments of OSError) for a fault of this machine, such as a full disk, ("network", message) for a
    failure of the network, and ("user", message) for any other error.
    """
    from huggingface_hub.errors import HTTPError

    text = one_line(" ".join(str(error).split()), 300)
    if isinstance(error, UserError):
        return "user", text
    if is_of_this_machine(error):
        return "machine", (error.errno, error.strerror, error.filename)
    is_network = isinstance(error, (HTTPError, OSError)) and not isinstance(error, FileNotFoundError)
    if is_network:
        return "network", text or type(error).__name__
    return (
        "user",
        f"{repo} cannot be read by load_dataset: {text}; try data.revision=refs/convert/parquet, or read only some of the "
        "files with data.files=PATTERN",
    )
