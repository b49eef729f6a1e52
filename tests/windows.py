"""Run the branches for Windows on another system: those of a module, or those of all commands in a process."""

from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any
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


class Kernel:
    """The functions of kernel32 that ask for memory and processes, and fail: everything is unknown and nobody alive."""

    def GlobalMemoryStatusEx(self, pointer: Any) -> bool:
        return False

    def K32GetProcessMemoryInfo(self, process: Any, pointer: Any, size: int) -> bool:
        return False

    def OpenProcess(self, access: int, inherit: bool, pid: int) -> None:
        return None


def become_windows(libraries: Iterable[str]) -> None:
    """Let this process run what it imports from now on as if it were on Windows, except `libraries`.

    The system calls are imitated as far as positron uses them. Files can still be deleted while they are open.
    """
    if sys.platform == "win32":
        return
    from multiprocessing import connection, popen_spawn_posix, resource_sharer, synchronize  # noqa: F401

    for library in libraries:
        importlib.import_module(library)
    sys.modules["msvcrt"] = fake_msvcrt()
    new: list[tuple[object, str, object]] = [
        (os, "O_BINARY", 0),
        (os, "O_NOINHERIT", os.O_CLOEXEC),
        (signal, "SIGBREAK", signal.SIGUSR1),
        (connection, "PipeConnection", connection.Connection),
        (ctypes, "WinDLL", lambda name, **_: Kernel()),
        (ctypes, "get_last_error", lambda: 0),
        (ctypes, "windll", SimpleNamespace(kernel32=SimpleNamespace(SwitchToThread=ctypes.CDLL(None).sched_yield))),
    ]
    for module, name, value in new:
        setattr(module, name, value)
    sys.platform = "win32"
    assert not [name for name in sys.modules if name.split(".")[0] == "positron"], "positron was imported before"
