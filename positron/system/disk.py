"""Write files and folders atomically: a temporary file, fsync, rename.

A file therefore never appears under its name before it is complete (invariant 7 of docs/ARCHITECTURE.md).

A run folder may come from a stranger, so its files are opened without following symbolic links, and only if they are regular
files (opening a FIFO would wait forever). This module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from positron.system.console import one_line
from positron.system.errors import UserError, where_not_json, why_unreadable
from positron.system.processes import is_alive

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_JSON_BYTES = 64_000_000  # far more than any JSON file of a run has
MAX_TEXT_BYTES = 2_000_000_000
MAX_POINTER_BYTES = 1024  # of a git-lfs pointer, by its specification
_POINTER_START = b"version https://git-lfs.github.com/spec/"
RENAME_S = 2.0
ABANDONED_S = 3600.0  # a folder of a dead process that did not change for this time is deleted
_MODES = {
    "rb": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "lock": os.O_RDWR | os.O_CREAT,
    "locked": os.O_RDWR,
}
if sys.platform == "win32":
    _FLAGS = os.O_BINARY | os.O_NOINHERIT
    _MODE_TO_SYNC = "r+b"  # Windows writes only files to disk that are open for writing
else:
    _FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    _MODE_TO_SYNC = "rb"
_ANOTHER_FOLDER = "give the path of a new folder"
# older versions wrote no random number
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(?:-(?P<random>[0-9a-f]{8}))?\.tmp")


def open_descriptor(path: Path, mode: str, root: Path | None = None) -> int:
    """Open a regular file without following a symbolic link in any component of `path` below the folder `root`.

    `root` (default: the folder of the file) may itself be a link, because the path of this folder comes from the user. `mode`
    is "rb", "wb", "xb" or "ab", as in `open`, or "lock" or "locked". The modes "lock" and "locked" open the file for reading
    and writing, and only "lock" creates a missing file. Returns a file descriptor. Raises OSError if the file cannot be opened,
    and UserError if a component is a link or the file is not a regular file.
    """
    root = path.parent if root is None else root
    parts = path.relative_to(root).parts
    refuse_links(path, root)
    flags = _MODES[mode] | _FLAGS
    if sys.platform == "win32":  # which cannot open a path relative to an open folder
        handle = os.open(path, flags, 0o666)
    else:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            handle = os.open(parts[-1], flags, 0o666, dir_fd=folder)
        finally:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(
            f"{path} is not a regular file, but a folder, a device or a pipe: give another path, or put a file in its place"
        )
    return handle


def open_inside(path: Path, mode: Literal["rb", "wb", "xb", "ab"], root: Path | None = None) -> IO[bytes]:
    """Open a regular file and return a file object; no component of `path` below the folder `root` may be a symbolic link.

    `root` is the folder of the file by default. Raises the errors of `open_descriptor`.
    """
    return os.fdopen(open_descriptor(path, mode, root), mode)


def refuse_links(path: Path, root: Path) -> None:
    """Raise UserError if a component of `path` below the folder `root` is neither a regular file nor a real folder.

    A symbolic link, a device and a pipe are refused. A component that does not exist is accepted.
    """
    component = root
    for part in path.relative_to(root).parts:
        component = component / part
        try:
            kind = os.lstat(component).st_mode
        except OSError:  # missing or unreadable, which opening the file reports
            return
        if stat.S_ISLNK(kind):
            raise UserError(
                f"{component} is a symbolic link, which Positron does not follow here: replace it by a copy of its target"
            )
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UserError(
                f"{component} is not a regular file, but a device or a pipe: give another path, or "
                "delete it if a run folder contains it"
            )


def refuse_links_in(folder: Path) -> None:
    """Raise UserError if anything in a run folder is a symbolic link, a device or a pipe.

    The content of a folder `wandb` is not checked, because wandb creates links there. This check runs before anything is
    loaded; `open_descriptor` checks each file again.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        refuse_links(folder / entry.name, folder)
        if entry.is_dir(follow_symlinks=False) and entry.name != "wandb":
            refuse_links_in(folder / entry.name)


class _Recorder(io.BufferedIOBase):
    """Write to a file and record the first exception that a write raises, because libraries hide this exception.

    If a write fails, `torch.save` still tries to finish its archive, and then raises a RuntimeError about wrong positions. The
    original exception, such as "No space left on device" or KeyboardInterrupt, would be lost. The class has no `fileno`, so
    that NumPy and Pillow call `write`. With a `fileno`, they would write to the file descriptor themselves, and an exception
    would not be recorded.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.fault: BaseException | None = None

    def write(self, data: Buffer) -> int:
        try:
            return self.file.write(data)
        except BaseException as fault:
            self.fault = self.fault or fault
            raise

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        if not self.file.closed:
            self.file.flush()


def refuse_no_place(path: Path) -> None:
    """Raise UserError if no file can be written at `path`, because its folder is missing, or because it is itself a folder.

    Call this function before a long computation whose result is written to a file that the user named.
    """
    if not path.parent.exists():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}: create it, or give another path")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")


@contextlib.contextmanager
def whole_file(path: Path, root: Path | None = None, *, instead: str = "give another path") -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` when the block ends without an error, and not at all otherwise.

    The block writes to a temporary file, which is then renamed to `path`. The temporary file is in the same folder, because a
    rename is atomic only within a file system. After an error, a file that existed at `path` is unchanged.

    Raises UserError if the disk is full or not writable, or if a component of `path` below the folder `root` (default: the
    folder of the file) is a symbolic link. `instead` is the advice if a new file cannot be written there.
    """
    temporary = _temporary_path(path)
    root = path.parent if root is None else root
    refuse_links(path, root)
    try:
        with open_inside(temporary, "xb", root) as file:
            recorder = _Recorder(file)
            try:
                yield cast("IO[bytes]", recorder)
            except Exception as error:
                if recorder.fault is not None and recorder.fault is not error:
                    raise recorder.fault from error
                raise
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or path.is_dir():
            refuse_no_place(path)
        remedy = remedy_for(error, "the existing file is unchanged" if path.exists() else instead)
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or on a disk that refuses everything
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: Path, *, instead: str | None = None) -> Iterator[Path]:
    """Create an empty folder that appears at `path` when the block ends without an error, and not at all otherwise.

    An empty folder at `path` is replaced. Raises UserError if `path` is a file, a link or a folder that is not empty, or if the
    disk is full or not writable. `instead` is the advice if the folder cannot be written there.
    """
    if path.is_dir() and not path.is_symlink() and path.name:  # the current folder, ".", has no name
        if any(path.iterdir()):
            raise UserError(
                f"cannot write to {path}, because this folder exists already and is not empty: give the path of a new folder, "
                "or delete this one"
            )
    elif path.exists() or path.is_symlink():
        raise UserError(f"cannot write to {path}, because it exists already: {_ANOTHER_FOLDER}")
    make_folder(path.parent, instead=instead)
    _sweep_drafts(path.parent)
    draft = _temporary_path(path)
    try:
        draft.mkdir()
        yield draft
        for file in (path for path in draft.rglob("*") if path.is_file()):
            with file.open(_MODE_TO_SYNC) as content:
                os.fsync(content.fileno())
        if path.is_dir():
            path.rmdir()  # Windows does not rename onto an empty folder
        rename(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another command has written it meanwhile
            raise UserError(f"cannot write to {path}, because it exists already: {_ANOTHER_FOLDER}") from error
        remedy = remedy_for(error, instead or "give another path")
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remedy_for(error: OSError, otherwise: str) -> str:
    """Return what to do after a failed write: `otherwise`, unless the disk is full or may be full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free disk space, and give the same command again"
    if error.errno == errno.EFBIG:
        return "raise the limit for the size of a file (ulimit -f), or use a disk that can hold larger files"
    if error.errno is None:  # NumPy's `tofile` says only how much of an array was written
        return "the disk may be full: free disk space, and give the same command again"
    return otherwise


def _temporary_path(path: Path) -> Path:
    """Return a path beside `path` that no other process or thread uses.

    The number of the process, by which `sweep_temporary_files` finds what dead processes left, is not enough, because two
    containers that share a folder may have the same one.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; a file at `target` is replaced. Raises OSError on failure.

    On Windows, renaming fails while another process, such as the dashboard or a virus scanner, has the file open. Such
    processes usually close it within milliseconds, so renaming is tried again for up to 2 seconds (RENAME_S).
    """
    if sys.platform == "win32":
        end = time.monotonic() + RENAME_S
        while time.monotonic() < end:
            try:
                source.replace(target)
            except PermissionError:
                time.sleep(0.01)
            else:
                return
    source.replace(target)


def replace_by_link(source: Path, target: Path) -> None:
    """Make `target` a hard link to the file `source`, or a copy of it if the disk does not support links.

    A file at `target` is replaced. Raises UserError if the disk is full or not writable.
    """
    link = _temporary_path(target)
    try:
        os.link(source, link)
        rename(link, target)
        _sync_folder(target.parent)
    except OSError:
        with whole_file(target) as file, open_inside(source, "rb") as content:
            shutil.copyfileobj(content, file)
    finally:
        with contextlib.suppress(OSError):  # already renamed
            link.unlink()


def replace_folder(source: Path, target: Path) -> None:
    """Rename the folder `source` to `target`; a folder that exists at `target` is deleted first. Raises UserError on failure.

    On Windows this fails while another process uses a file of `target`, for example a token file of a running training.
    """
    try:
        if target.exists():
            shutil.rmtree(target)
        rename(source, target)
    except OSError as error:
        raise UserError(
            f"cannot replace the folder {target}: {error.strerror or error}; end the programs that use the folder, or delete "
            "it, and give the same command again"
        ) from error


def is_temporary(path: Path) -> bool:
    """Tell whether `path` is, or is in, a file or folder that `whole_file` or `whole_folder` has not completed."""
    return any(_TEMPORARY.fullmatch(part) for part in path.parts)


def sweep_temporary_files(folder: Path) -> None:
    """Remove what killed processes left of files and folders in `folder` and the folders directly in it.

    The temporary files of this process are removed, too. Call this function only while this process is not writing a file.
    """
    _sweep_drafts(folder)
    for directory in (folder, *(entry for entry in _entries(folder) if entry.is_dir() and not entry.is_symlink())):
        for path in _entries(directory):
            match = _TEMPORARY.fullmatch(path.name)
            if match and (int(match["process"]) == os.getpid() or not is_alive(int(match["process"]))):
                with contextlib.suppress(OSError):  # another process removed it, or the disk is read-only
                    path.unlink()


def sweep_drafts_of(path: Path) -> None:
    """Remove what killed processes left of a file. Call this function only if no one else can be writing the file `path`."""
    for entry in _entries(path.parent):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and match["name"] == path.name:
            with contextlib.suppress(OSError):
                entry.unlink()


def _sweep_drafts(folder: Path) -> None:
    """Remove the folders that killed calls of `whole_folder` left in `folder`.

    No lock protects these folders: another thread may be writing one, or a process of another machine that shares `folder`,
    whose number means nothing here. Therefore only what another process began and did not change for an hour is removed.
    """
    for path in _entries(folder):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["random"] and not is_alive(int(match["process"])):
            with contextlib.suppress(OSError):
                newest = max(os.lstat(inner).st_mtime for inner in (path, *path.rglob("*")))
                if path.is_dir() and time.time() - newest > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _sync_folder(folder: Path) -> None:
    """Write the folder to disk, so that a rename in it survives a power cut.

    On Windows and on file systems that cannot do this, such as some network drives, do nothing.
    """
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


def append_text(path: Path, text: str) -> None:
    """Append text to a file of a run folder, and create the file if it does not exist.

    Raises OSError on failure, and UserError if the file is a symbolic link or not a regular file.
    """
    with open_inside(path, "ab") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def expanded(path: str | Path) -> Path:
    """Replace a leading `~` by the home folder.

    Raises UserError if the home folder is unknown, for example in a container whose user has no name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0][1:]
        remedy = "set the variable HOME" if not user else f"correct the name of the user, {one_line(user, 60)}"
        raise UserError(f"the home folder in {path} is not known: {remedy}, or give the full path") from error


def readable_name(name: str) -> str:
    """Return the name of a file or folder with U+FFFD for each byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def write_text(path: Path, text: str, root: Path | None = None) -> None:
    r"""Write a UTF-8 file atomically. See `whole_file` for `root` and the errors.

    A lone surrogate, with which Python represents a byte of a file's name that is not UTF-8, is written as its JSON escape,
    such as \udce9. So `read_json` returns the same name.
    """
    with whole_file(path, root) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, root: Path | None = None) -> None:
    """Write a value as JSON atomically. See `whole_file` for `root` and the errors."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", root)


def read_bytes(path: Path, root: Path | None = None, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a file without following a symbolic link in any component of `path` below the folder `root`.

    `root` is by default the folder of the file. Raises UserError if there is such a link, or if the file is missing,
    unreadable, or larger than `limit` bytes.
    """
    try:
        with open_inside(path, "rb", root) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(
                    f"cannot read {path}, which has {size:,} bytes: a file of this kind has at most {limit:,}; give a smaller "
                    "file, or restore it from a copy if it belongs to a run"
                )
            return file.read(limit)
    except OSError as error:
        remedy = "correct the path, or restore the file from a copy"  # it usually belongs to a run
        raise UserError(f"cannot read {path}: {why_unreadable(error, remedy)}") from error


def refuse_lfs_pointer(path: Path) -> None:
    """Raise UserError if a file is a Git LFS pointer, which git writes in place of a large file if git-lfs is not installed.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md. Raises OSError if the file cannot be read.
    """
    if path.is_file() and path.stat().st_size < MAX_POINTER_BYTES and path.read_bytes().startswith(_POINTER_START):
        raise UserError(
            f"{one_line(str(path))} is a git-lfs pointer instead of the file itself: install git-lfs, then run git lfs pull "
            "in its folder"
        )


def read_text(path: Path, root: Path | None = None, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a UTF-8 file; an invalid byte becomes U+FFFD. See `read_bytes` for `root`, `limit` and the errors."""
    return read_bytes(path, root, limit).decode("utf-8", errors="replace")


def json_ready(value: Any) -> Any:
    """Replace NaN and infinity in a nested value by None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, root: Path | None = None, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes, and return its content.

    No component of `path` below the folder `root` (default: the folder of the file) may be a symbolic link. Raises UserError if
    there is such a link, if the file is missing, unreadable or too large, or if its content is not JSON or nested too deeply.
    """
    content = read_bytes(path, root, limit)
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise UserError(f"cannot read {path}: its JSON is nested too deeply; restore the file from a copy") from None
    except ValueError as error:
        raise UserError(
            f"cannot read {path}: it is not valid JSON ({where_not_json(error)}); correct it, or restore it from a copy"
        ) from error


def is_number(value: Any) -> bool:
    """Tell whether a value from a JSON file is a finite number that a float can hold, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def make_folder(path: Path, root: Path | None = None, *, instead: str | None = None) -> Path:
    """Create a folder and its missing parents; return its path.

    Raises UserError on failure, or if `root` is given and a component of `path` below this folder is a symbolic link. `instead`
    is the advice for a path that is not possible, such as "give another data.dir=".
    """
    if root is not None:
        refuse_links(path, root)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        files = (place for place in (path, *path.parents) if os.path.lexists(place) and not os.path.isdir(place))
        in_the_way = next(files, None)
        remedy = (
            f"rename the file {in_the_way}"
            if in_the_way
            else instead or "give another path, or start the command in another folder"
        )
        raise UserError(f"cannot create the folder {path} ({error.strerror or error}): {remedy}") from error
    return path
