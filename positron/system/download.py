"""Download a file, check its checksum, and keep the file, so that it is not downloaded again.

The wait for the server is limited. A file that is not complete is not kept. This module imports only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from positron.system.console import one_line
from positron.system.disk import make_folder, whole_file
from positron.system.errors import UserError, why_unreadable

PATIENCE_S = 4.0  # longest wait for a connection and for each piece of data, so that an error appears within 5 seconds
ANOTHER_CACHE = "set the environment variable POSITRON_CACHE to a folder that can be written"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


CacheKind = Literal["models", "numba", "text", "tiktoken"]


def cache_folder(kind: CacheKind) -> Path:
    """Return the folder for files of one kind that all runs share, such as downloaded texts.

    It lies in the folder that the environment variable POSITRON_CACHE names. If the variable is not set, it lies in
    ~/.cache/positron. Raises UserError if the path begins with `~` and the home folder is unknown.
    """
    try:
        return Path(os.environ.get("POSITRON_CACHE") or "~/.cache/positron").expanduser() / kind
    except RuntimeError as error:
        raise UserError(
            "the home folder, where downloads are kept, is not known: set the variable POSITRON_CACHE or HOME"
        ) from error


def fetch(url: str, path: Path, sha256: str | None, *, instead: str, sha256_key: str | None = None) -> bytes:
    """Return the content of the file `path`. If the file does not exist, download it from `url` first.

    `sha256` is the expected checksum; None: no check. `sha256_key`: the name of the setting from which `sha256` was read, or
    None if it does not come from a setting. If a download has a wrong checksum, the error names this setting. Raises UserError
    if the address is not allowed (see `check_address`), if the download fails or receives nothing for 4 seconds (PATIENCE_S),
    or if the checksum is wrong. The message of a failed download names the file, its folder and the URL, and ends with
    `instead`, which says what the user can do instead.
    """
    check_address(url)
    if path.exists():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {why_unreadable(error)}; {instead}") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} is damaged or not the file from {url} (its sha256 differs): delete it, and give the same command "
                "again to download it"
            )
        return content
    content = _download(url, path, instead)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        correct = f"correct {sha256_key}=, " if sha256_key else ""
        raise UserError(
            f"{url} returned another file than expected (its sha256 is not {sha256[:12]}...): {correct}try again later, or "
            f"{instead}"
        )
    make_folder(path.parent, instead=ANOTHER_CACHE)
    with whole_file(path, instead=ANOTHER_CACHE) as file:
        file.write(content)
    return content


def check_address(url: str) -> None:
    """Raise UserError unless the address is https, or http to localhost.

    Another scheme, such as file:, is refused because a shared configuration could read local files with it. Plain http to other
    hosts is refused because a third party could change the data on the way.
    """
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        scheme, host = "", None
    if not host or (scheme != "https" and not (scheme == "http" and host in _LOOPBACK)):
        raise UserError(
            f"{one_line(url, 200)} cannot be fetched: give an https:// address, or data.path= for a file on this machine"
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only if `check_address` accepts the new address, and never from another machine to localhost."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            check_address(newurl)
        except UserError as error:
            raise UserError(
                f"the server redirects to {one_line(newurl, 200)}, which is not a valid https:// address"
            ) from error
        if urlsplit(newurl).hostname in _LOOPBACK and req.host.rsplit(":", 1)[0].strip("[]") not in _LOOPBACK:
            raise UserError(
                f"the server redirects to an address of your own machine, {one_line(newurl, 200)}, which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path, instead: str) -> bytes:
    """Return the content of `url`. Raises UserError if the download fails.

    The download also fails if no data arrives for 4 seconds (PATIENCE_S). The content is read in a separate thread, because the
    look-up of a host name has no timeout of its own. `path` and `instead` are used only in the message of the error, which
    advises the user to save the file as `path`, or to do what `instead` says.
    """
    pieces: list[bytes] = []
    failure: list[Exception] = []
    received, finished = threading.Event(), threading.Event()

    def work() -> None:
        try:
            opener = urllib.request.build_opener(_SafeRedirects)
            with opener.open(url, timeout=PATIENCE_S) as answer:
                while piece := answer.read(1 << 16):
                    pieces.append(piece)
                    received.set()
                expected_size = answer.headers.get("Content-Length")
                if expected_size is not None and sum(map(len, pieces)) != int(expected_size):
                    raise OSError("the connection broke off")
        except Exception as error:  # handed to the thread that waits
            failure.append(error)
        finished.set()
        received.set()

    threading.Thread(target=work, daemon=True).start()
    while not finished.is_set():
        if not received.wait(PATIENCE_S):
            failure.append(TimeoutError(f"no answer within {PATIENCE_S:.0f} s"))
            break
        received.clear()
    if failure:
        error = failure[0]
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server answered {error.code} {reason}"
        raise UserError(
            f"cannot download {one_line(url, 200)} ({reason}): save the file as {path} yourself, or {instead}"
        )
    return b"".join(pieces)
