"""Make child processes of a command ignore Ctrl-C, and make them end when their parent ends.

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

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as PipeEnd
else:
    from multiprocessing.connection import Connection as PipeEnd

__all__ = ["PipeEnd", "end_with_parent", "leave_interrupts_to_parent"]


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
