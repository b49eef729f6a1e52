"""Write files whole or not at all: beside their place, fsync, rename; lock what two processes may touch.

Invariant 7 of docs/ARCHITECTURE.md.

A run folder may come from a stranger: files in it are opened without following symbolic links, and only if they are
regular files (a FIFO would wait for ever). Standard library only.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from positron.system.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

JSON_BYTES = 64_000_000  # no JSON file of a run comes near it
TEXT_BYTES = 2_000_000_000
_MODES = {
    "rb": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "lock": os.O_RDWR | os.O_CREAT,
    "locked": os.O_RDWR,
}
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_EXTRA = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


def open_descriptor(path: Path, mode: str, below: Path | None = None) -> int:
    """Open a regular file without following a symbolic link in any component below the folder `below`.

    `below` is the folder of the file unless it is given; it may itself be a link, since the user named it. Returns a
    file descriptor. Raises OSError, and UserError if there is a link or something else than a regular file.
    """
    below = path.parent if below is None else below
    parts = path.relative_to(below).parts
    refuse_links(path, below)
    flags = _MODES[mode] | _NO_FOLLOW | _EXTRA
    if os.open not in os.supports_dir_fd or not _NO_FOLLOW:  # Windows: the check above must do
        handle = os.open(path, flags, 0o644)
    else:
        folder = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            handle = os.open(parts[-1], flags, 0o644, dir_fd=folder)
        finally:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a regular file: remove it")
    return handle


def open_inside(path: Path, mode: Literal["rb", "wb", "xb", "ab"], below: Path | None = None) -> IO[bytes]:
    """Open a file object by `open_descriptor`, with the same errors."""
    return os.fdopen(open_descriptor(path, mode, below), mode)


def refuse_links(path: Path, below: Path) -> None:
    """Raise UserError if `path`, or a folder between it and `below`, is a symbolic link or neither file nor folder."""
    place = below
    for part in path.relative_to(below).parts:
        place = place / part
        try:
            kind = os.lstat(place).st_mode
        except OSError:  # absent, or unreadable: opening it says so
            return
        if stat.S_ISLNK(kind):
            raise UserError(
                f"{place} is a symbolic link, and links inside a run folder are not followed: remove it, "
                "or put the file itself there"
            )
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UserError(f"{place} is not a regular file: remove it")


def refuse_links_in(folder: Path) -> None:
    """Raise UserError if anything in a run folder is a symbolic link or a device.

    The insides of wandb/ are left out: wandb makes links there itself. This is the early check, before anything is
    loaded; `open_descriptor` checks again.
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
    """A file that remembers the first exception raised while it was written.

    Libraries hide it: `torch.save` finishes its archive although a write has failed, and raises a RuntimeError about
    positions in place of "No space left on device" or of an interruption. There is no file descriptor, so NumPy and
    Pillow write through `write`, too, instead of with calls of their own that do not tell the reason.
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


@contextlib.contextmanager
def whole_file(path: Path, below: Path | None = None) -> Iterator[IO[bytes]]:
    """Give a binary file that appears at `path` when the block ends, complete or not at all.

    The temporary file lies in the same folder, since a rename is atomic within one file system only. Raises UserError
    where the disk is full or not writable; the file that was there before is untouched. `below`: see `open_descriptor`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    below = path.parent if below is None else below
    refuse_links(path, below)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # of a dead process that had this number, or planted
        with open_inside(temporary, "xb", below) as file:
            recorder = _Recorder(file)
            try:
                yield cast("IO[bytes]", recorder)
            except Exception as error:
                if recorder.fault is not None and recorder.fault is not error:
                    raise recorder.fault from error
                raise
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or on a disk that refuses everything
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that appears at `path` when the block ends, complete or not at all.

    Raises UserError where something is at `path` already, and where the disk is full or not writable.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: delete it, or give another folder")
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a dead process that had this number
        draft.mkdir()
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        draft.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sweep_temporary_files(folder: Path) -> None:
    """Remove what `whole_file` left in `folder` and the folders in it when its process was killed."""
    for place in (folder, *(entry for entry in _entries(folder) if entry.is_dir() and not entry.is_symlink())):
        for path in _entries(place):
            match = _TEMPORARY.fullmatch(path.name)
            if match and not _is_alive(int(match[1])):
                with contextlib.suppress(OSError):  # removed meanwhile, or on a read-only disk
                    path.unlink()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process is not writing while it sweeps
    if os.name != "posix" or pid > 2**31 - 1:
        return pid <= 2**31 - 1  # Windows: os.kill would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_text(path: Path, text: str) -> None:
    """Add `text` to a file of a run folder. Raises OSError, and UserError for a link."""
    with open_inside(path, "ab") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def expanded(path: str | Path) -> Path:
    """Replace `~` by the home folder. UserError where none is known, as for users of containers without a name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"no home folder is known for {path}: set HOME, or give the whole path") from error


def write_text(path: Path, text: str, below: Path | None = None) -> None:
    with whole_file(path, below) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, below: Path | None = None) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", below)


def read_bytes(path: Path, below: Path | None = None, limit: int = TEXT_BYTES) -> bytes:
    """Read a whole file. Raises UserError where it is missing, unreadable, a link, or larger than `limit` bytes."""
    try:
        with open_inside(path, "rb", below) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(f"cannot read {path}: it has {size:,} bytes, more than the {limit:,} that are possible")
            return file.read(limit)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path, below: Path | None = None, limit: int = TEXT_BYTES) -> str:
    """Read UTF-8; a byte that is none becomes U+FFFD. Raises UserError like `read_bytes`."""
    return read_bytes(path, below, limit).decode("utf-8", errors="replace")


def json_ready(value: Any) -> Any:
    """Put null in the places of NaN and infinity, which JSON does not have: a perplexity that overflows, for instance."""
    if isinstance(value, dict):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, below: Path | None = None, limit: int = JSON_BYTES) -> Any:
    """Raise UserError where the file is missing, a link, too large, not JSON, or nested deeper than Python can read."""
    content = read_bytes(path, below, limit)
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise UserError(f"cannot read {path}: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def is_number(value: Any) -> bool:
    """Tell whether a value from a JSON file is a finite number that a float can hold, and no flag."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def make_folder(path: Path, below: Path | None = None) -> Path:
    """Make a folder and those above it. With `below`, UserError where one of those inside it is a symbolic link."""
    if below is not None:
        refuse_links(path, below)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror or error}") from error
    return path


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """True while this process holds the lock on an existing file; False where another one does, or none can be had."""
    try:
        import fcntl

        handle = open_descriptor(path, "locked")
    except (ImportError, OSError, UserError):
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool | None:
    """Tell whether a living process holds the lock on `path`; None where the system has no locks, or hides this one."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = open_descriptor(path, "rb")
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask are not in each other's way
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def lock(path: Path, on_busy: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system frees it when the process dies, however it dies.

    Where another process holds it, `on_busy` is called first (raise there to give up), then this waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks; two writers of one run stay the user's care
        yield
        return
    try:
        handle = open_descriptor(path, "lock")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        for patience in (0.05, 0.0):  # somebody who only asks whether it is locked is in the way for microseconds
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(patience)
        else:
            on_busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
