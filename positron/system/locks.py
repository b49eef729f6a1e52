"""Lock files that two processes may change, and tell whether a living process holds a lock.

A lock belongs to an open file. The system frees it when the process ends, even if the process is killed. POSIX systems lock
the file as a whole (`flock`), and other processes can still read it. Windows locks ranges of bytes, and no other process can
read a locked byte. Therefore on Windows only one byte far behind the end of the file is locked, and the content stays readable.

This module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from positron.system.disk import open_descriptor
from positron.system.errors import UserError

if sys.platform == "win32":
    import msvcrt

    _POSITION = 2**30  # of the locked byte; a position in Windows' C library is a signed number of 32 bits
    _POLL_S = 0.05

    def _acquire(handle: int) -> bool:
        os.lseek(handle, _POSITION, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _wait_and_acquire(handle: int) -> None:
        while not _acquire(handle):  # LK_LOCK waits too, but gives up after ten seconds
            time.sleep(_POLL_S)

    def _is_free(handle: int) -> bool:
        if not _acquire(handle):
            time.sleep(_POLL_S)  # msvcrt has no shared locks, so another process that asks holds it for microseconds
            return _acquire(handle)
        return True

    def _close(handle: int) -> None:
        os.lseek(handle, _POSITION, os.SEEK_SET)
        with contextlib.suppress(OSError):  # this process does not hold the lock, or the file system has no locks
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)  # closing would free it too, but possibly later
        os.close(handle)

else:
    import fcntl

    def _acquire(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_and_acquire(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX)

    def _is_free(handle: int) -> bool:
        try:  # a shared lock, so that two processes that ask do not block each other
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close(handle: int) -> None:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path, on_busy: Callable[[], None], *, instead: str = "give another folder") -> Iterator[None]:
    """Hold an exclusive lock on `path` during the block; create the file if it does not exist.

    If another process holds the lock, `on_busy` is called. It may raise an error to give up; if it returns, the function waits
    for the lock. Raises UserError if the file cannot be opened, and `instead` is the advice for this case; also raises
    UserError if the file system has no locks, as on some network drives.
    """
    try:
        handle = open_descriptor(path, "lock")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}): {instead}") from error
    try:
        try:
            if not _acquire(handle):
                time.sleep(0.05)  # `is_locked` in another process holds a lock for microseconds
                if not _acquire(handle):
                    on_busy()
                    _wait_and_acquire(handle)
        except OSError as error:
            raise UserError(
                f"cannot lock {path} ({error.strerror or error}): use a folder on a local disk, because some network drives "
                "have no locks"
            ) from error
        yield
    finally:
        _close(handle)


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Try to lock an existing file while a `with` block runs; yield whether this succeeded.

    Yields False if another process holds the lock, or if the file cannot be opened or locked.
    """
    try:
        handle = open_descriptor(path, "locked")
    except (OSError, UserError):
        yield False
        return
    try:
        try:
            is_acquired = _acquire(handle)
        except OSError:  # the file system has no locks
            is_acquired = False
        yield is_acquired
    finally:
        _close(handle)


def is_locked(path: Path) -> bool | None:
    """Tell whether a living process holds the lock on `path`; return None if this cannot be found out."""
    try:
        handle = open_descriptor(path, "rb")
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return None
    try:
        return not _is_free(handle)
    except OSError:  # the file system has no locks
        return None
    finally:
        _close(handle)


def remove_unless_locked(path: Path) -> bool:
    """Delete a lock file unless a process holds the lock. Return whether the file is gone. Raises OSError on failure."""
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)
        except PermissionError:  # Windows deletes no file that a process has open
            return False
        return True
    with try_lock(path) as is_free:
        if is_free:
            path.unlink(missing_ok=True)
        return is_free or not path.exists()
