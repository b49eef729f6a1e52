"""Start child processes, say how many, make them ignore Ctrl-C, and make them end when their parent ends.

The module also defines `PipeEnd`, the type of the two objects that `multiprocessing.Pipe` returns.

This module imports only the standard library.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import types
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

from positron.system.processes import is_alive
from positron.system.threads import usable_cores

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as PipeEnd
else:
    from multiprocessing.connection import Connection as PipeEnd

__all__ = ["CHILDREN", "PipeEnd", "end_with", "end_with_parent", "leave_interrupts_to_parent", "worker_processes"]

_MAX_ON_WINDOWS = 61  # ProcessPoolExecutor refuses more, because Windows waits for at most 63 objects at a time
_LOOK_EVERY_S = 0.5


class _ProcessWithoutMain(SpawnProcess):
    """Run a function in a new process that does not import the main module of this process."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _ContextWithoutMain(SpawnContext):
    """Start processes as the start method "spawn" does, but without importing the main module of this process.

    With "spawn", a new process first imports the main module. If this is a user's script that calls `positron.train` without
    the line `if __name__ == "__main__":`, the new process would start a second training.
    """

    Process = _ProcessWithoutMain


CHILDREN = _ContextWithoutMain()


def worker_processes() -> int:
    """Return how many processes can compute at the same time: the number of usable cores, and on Windows at most 61."""
    cores = usable_cores()
    return min(cores, _MAX_ON_WINDOWS) if sys.platform == "win32" else cores


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C and Ctrl-Break in this process: they reach all processes of a terminal, but only the parent reacts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.SIG_IGN)


def end_with_parent() -> None:
    """Make this process exit when its parent ends, even if the parent is killed and cannot stop it.

    Call this in a child process that `multiprocessing` has started.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def end_with(pid: int) -> None:
    """Make this process exit within a second after the process `pid`, its parent, has ended, even if the parent was killed.

    Call this in a child process that `subprocess` has started. In one that `multiprocessing` has started, call
    `end_with_parent`.
    """
    threading.Thread(target=_watch, args=[pid, os.getppid()], daemon=True).start()


def _watch(pid: int, parent: int) -> None:
    # a killed process is alive until its own parent has noticed its end; on Windows, the id of the parent never changes
    while is_alive(pid) and os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
