"""Download files of the Hugging Face hub; when the network fails, try again for some minutes."""

from __future__ import annotations

import contextvars
import hashlib
import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from positron.system.console import one_line
from positron.system.disk import make_folder, remedy_for
from positron.system.errors import Unreachable, UserError, is_of_this_machine
from positron.system.locks import lock

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

logger = logging.getLogger(__name__)

SPARE_BYTES = 1_000_000_000  # disk space that must stay free after a download
PATIENCE_S = 300.0  # seconds without data for which a request is repeated before the hub counts as unreachable
ANSWER_S = 10.0  # seconds that even the last attempt waits for data
Answer = TypeVar("Answer")
Info = TypeVar("Info", "DatasetInfo", "ModelInfo")


def download(repo: str, kind: Literal["dataset", "model"], commit: str, file: dict[str, Any], folder: Path) -> Path:
    """Download a file of a repository into a folder, verify the file's checksum and return the file's path.

    `file` has the keys `name`, `size` (in bytes) and `sha256`; a size or a checksum that the repository does not state is None.
    If the same file is already being downloaded, the call waits for the end of that download, because the hub's client would
    delete the unfinished file when it begins another download. Raises UserError if less than 1 GB (SPARE_BYTES) would
    stay free on the disk, if the file cannot be written, or if the hub refuses the request. Raises Unreachable if the network
    fails, or if the checksum stays wrong in repeated downloads.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, tqdm

    remedy = "set data.dir=" if kind == "dataset" else "set the environment variable POSITRON_CACHE"
    otherwise = f"{remedy} to a folder that can be written"
    free = shutil.disk_usage(make_folder(folder, instead=otherwise)).free
    size = file["size"] or 0
    if free < size + SPARE_BYTES:
        raise UserError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free, but {file['name']} needs {size / 1e9:.1f} GB "
            f"and {SPARE_BYTES / 1e9:.0f} GB must stay free: delete files, or {remedy} to a folder on another disk"
        )
    disable_progress_bars()

    in_progress = make_folder(folder / ".cache", instead=otherwise) / f"{file['name'].replace('/', '--')}.lock"
    patience = Patience()

    class Arrivals(tqdm):
        """Tell `patience` when data arrives; nothing is printed, because progress bars are disabled."""

        def update(self, n: float = 1) -> None:
            patience.receive(n)

    def get() -> Path:
        with lock(in_progress, lambda: None, instead=otherwise):
            patience.begin_attempt()
            call = BackgroundCall(
                lambda: hf_hub_download(
                    repo,
                    file["name"],
                    repo_type=kind,
                    revision=commit,
                    local_dir=folder,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                    tqdm_class=Arrivals,
                )
            )
            path = Path(call.result(patience))
            if file["sha256"] is not None and _sha256(path) != file["sha256"]:
                path.unlink()
                raise ConnectionError("the downloaded file does not have the checksum that the repository states")
            return path

    try:
        return retry_network(get, f"{file['name']} of {repo}", patience=patience)
    except OSError as error:  # of this machine: another program may have filled the disk meanwhile
        raise UserError(
            f"cannot write {file['name']} to {folder}: {error.strerror or error}; {remedy_for(error, otherwise)}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def patience_s() -> float:
    """Return the number of seconds for which a failed request is repeated.

    It is the value of the environment variable POSITRON_PATIENCE_S, or 300 if the variable is not set or empty. Raises
    UserError if the value is not a number of seconds.
    """
    text = os.environ.get("POSITRON_PATIENCE_S") or str(PATIENCE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UserError(
            f"the environment variable POSITRON_PATIENCE_S={text} is not a number of seconds: correct or unset it"
        )
    return seconds


class Patience:
    """Measure how long a server has sent nothing, and for how long a download has not come further.

    Both times begin when the object is created. An attempt that only repeats what an earlier attempt received is no progress:
    a file with a wrong checksum is not downloaded for ever.
    """

    def __init__(self) -> None:
        self.limit_s = patience_s()
        self._received = self._most_received = 0.0
        self._arrived_at = self._progressed_at = time.monotonic()

    def begin_attempt(self) -> None:
        """Record that the download begins again."""
        self._received = 0.0

    def receive(self, n_bytes: float) -> None:
        """Record that data has arrived."""
        self._received += n_bytes
        self._arrived_at = time.monotonic()
        if self._received > self._most_received:
            self._most_received, self._progressed_at = self._received, self._arrived_at

    @property
    def left_s(self) -> float:
        """Return for how many seconds a failed attempt is repeated from now on; negative after the limit."""
        return self._progressed_at + self.limit_s - time.monotonic()

    @property
    def silence_left_s(self) -> float:
        """Return for how many seconds the server may send nothing from now on; negative after the limit."""
        return self._arrived_at + self.limit_s - time.monotonic()


class BackgroundCall(threading.Thread, Generic[Answer]):
    """Call a function in a background thread. The program can end before the call returns."""

    def __init__(self, function: Callable[[], Answer]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._answers: list[Answer] = []
        self._error: BaseException | None = None
        self._context = contextvars.copy_context()  # so that messages from the thread reach the run's log
        self.start()

    def run(self) -> None:
        """Call the function; this method runs in the background thread."""
        try:
            self._answers.append(self._context.run(self._function))
        except BaseException as error:  # `result` raises it
            self._error = error

    def result(self, patience: Patience | None = None) -> Answer:
        """Wait for the end of the call, and return what the function returned, or raise its error.

        If `patience` is given, raises ConnectionError if no data has arrived for `patience_s()` seconds, but not in the first
        ten seconds (ANSWER_S). The hub's client has no such limit: it repeats a request by itself for minutes, without a
        message. Its thread is left alone then, because nothing can stop it.
        """
        if patience is None:
            self.join()
        else:
            self.join(max(ANSWER_S, patience.silence_left_s))
            while self.is_alive() and patience.silence_left_s > 0:
                self.join(patience.silence_left_s)
            if self.is_alive():
                raise ConnectionError(f"no answer within {max(ANSWER_S, patience.limit_s):.0f} s")
        if self._error is not None:
            raise self._error
        return self._answers[0]


_CONTINUES = (
    "Finished work is kept: run the same command again when the network is back, or train on data=stories or files on this "
    "machine, which need no network"
)


def retry_network(
    action: Callable[[], Answer],
    label: str,
    *,
    remedy: str = _CONTINUES,
    waits_for_name: bool = True,
    patience: Patience | None = None,
) -> Answer:
    """Call `action` and return its result; if the network fails, call `action` again after a pause of 1 to 60 seconds.

    `label` is the name of the downloaded object in messages. Raises Unreachable if `action` still fails after `patience_s()`
    seconds; the message ends with the advice `remedy`. If `action` may take long, it must tell `patience` when data arrives, so
    that a failure near the end of a long download does not raise Unreachable at once.

    If a host name cannot be resolved, this machine probably has no network. If `waits_for_name` is false, such a failure raises
    Unreachable at once.

    Two errors are always raised at once: UserError if the hub refuses the request, or if the environment variable
    HF_HUB_OFFLINE forbids requests, and OSError for a fault of this machine, such as a full disk.
    """
    from huggingface_hub import constants

    # HTTPError is the class of the HTTP library that huggingface_hub uses
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patience = patience or Patience()
    pause = 1.0
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    while True:
        try:
            return action()
        except (RepositoryNotFoundError, GatedRepoError) as error:
            if isinstance(error, GatedRepoError):
                raise UserError(
                    f"{label} needs access rights: request access on its page on {host}, then run hf auth login"
                ) from error
            raise UserError(
                f"{label} does not exist on {host}, or is private: check the name, or run hf auth login for a private one"
            ) from error
        except (HTTPError, LocalEntryNotFoundError, OSError) as error:
            if is_of_this_machine(error):
                raise
            if constants.HF_HUB_OFFLINE:
                variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
                raise UserError(
                    f"{label} cannot be downloaded, because the environment variable {variable} forbids requests to the hub: "
                    "unset it"
                ) from error
            status = getattr(getattr(error, "response", None), "status_code", None)
            # without the address of the request, if the server gave a reason
            reason = one_line(" ".join((getattr(error, "server_message", None) or str(error)).split()), 160)
            if status is not None and 400 <= status < 500 and status not in (408, 429):
                raise UserError(
                    f"{label} cannot be downloaded: the hub answers with status {status} ({reason}); check the name, the "
                    "revision and your access rights"
                ) from error
            if unresolved := _is_unresolved(error):
                reason = f"cannot reach {host.partition('://')[2] or host} ({reason})"
            ends_now = not waits_for_name and unresolved
            if ends_now or pause > patience.left_s:
                raise Unreachable(f"{label} cannot be downloaded: {reason}. {remedy}") from error
            logger.info(f"{label}: {reason}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(60.0, 2 * pause)


def ask_hub(ask: Callable[[], Info], label: str, *, remedy: str = _CONTINUES, waits_for_name: bool = True) -> Info:
    """Call `ask`, which asks the hub for the commit and the files of a repository, and return the answer.

    Repeats a failed request, and has the parameters and errors of `retry_network`. Raises UserError if a repository cannot have
    the name, and Unreachable at once if the answer is not that of a hub, for example the login page of a network.
    """
    from huggingface_hub.errors import HFValidationError

    def answer() -> Info:
        try:
            info = ask()
            if not isinstance(info.sha, str):
                raise ValueError("the answer states no commit")
        except HFValidationError as error:  # a ValueError, raised before anything is sent
            raise UserError(
                f"{label} cannot exist: {one_line(str(error).rstrip('.'), 200)}: correct the name"
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            raise Unreachable(
                f"{label} cannot be downloaded: {host} does not answer as the Hugging Face hub: log in to the network, or "
                "check HF_ENDPOINT"
            ) from error
        return info

    return retry_network(answer, label, remedy=remedy, waits_for_name=waits_for_name)


def _is_unresolved(error: BaseException) -> bool:
    """Tell whether an error was caused by a host name that could not be resolved to an address."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
