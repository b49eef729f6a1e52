"""Run the branches for Windows of a module on another system."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from types import ModuleType
from unittest import mock


def fake_msvcrt() -> ModuleType:
    """Return a module with the part of `msvcrt` that locks files, as its documentation describes it, on top of `flock`.

    As on Windows, a lock belongs to an open file, and a locked byte cannot be locked again, not even by the same process.
    Unlike on Windows, all positions far behind the end count as one.
    """
    if sys.platform == "win32":
        raise NotImplementedError("Windows has the module itself")
    import fcntl

    held: set[int] = set()
    no_block, unlock = 2, 0

    def locking(fd: int, mode: int, nbytes: int) -> None:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        assert nbytes == 1
        assert 2**20 < position < 2**31, "a byte that others read, or one behind what the C library can address"
        if mode == unlock:
            if fd not in held:
                raise PermissionError(errno.EACCES, "Permission denied")
            held.remove(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            assert mode == no_block
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PermissionError(errno.EACCES, "Permission denied") from None
            held.add(fd)

    module = ModuleType("msvcrt")
    vars(module).update(LK_NBLCK=no_block, LK_UNLCK=unlock, locking=locking)
    return module


def as_on_windows(name: str) -> ModuleType:
    """Return a second copy of a module, executed as if this were Windows. The modules that it imports are not copied.

    On Windows it is the module itself.
    """
    itself = importlib.import_module(name)
    if sys.platform == "win32":
        return itself
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module, msvcrt = importlib.util.module_from_spec(spec), fake_msvcrt()
    with mock.patch.object(sys, "platform", "win32"), mock.patch.dict(sys.modules, {"msvcrt": msvcrt}):
        spec.loader.exec_module(module)
    return module
