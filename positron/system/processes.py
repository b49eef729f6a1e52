"""Tell whether another process is alive. This module imports only the standard library."""

from __future__ import annotations

import os
import sys

_MAX_PID = 2**31 - 1

if sys.platform == "win32":
    import ctypes

    _SYNCHRONIZE = 0x00100000  # winnt.h
    _ACCESS_DENIED = 5  # ERROR_ACCESS_DENIED of winerror.h
    _STILL_RUNNING = 0x102  # WAIT_TIMEOUT of winbase.h

    def _exists(pid: int) -> bool:
        """Tell whether a process is running, by opening a handle of the process.

        `os.kill` with signal 0 cannot be used as on other systems, because on Windows the number 0 means Ctrl-C.
        """
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p  # a handle has 64 bits, and an int of C 32
        handle = ctypes.c_void_p(kernel.OpenProcess(_SYNCHRONIZE, False, pid))
        if not handle:
            return ctypes.get_last_error() == _ACCESS_DENIED  # a process of another user
        try:
            return int(kernel.WaitForSingleObject(handle, 0)) == _STILL_RUNNING
        finally:
            kernel.CloseHandle(handle)

else:

    def _exists(pid: int) -> bool:
        try:
            os.kill(pid, 0)  # signal 0 is not sent
        except ProcessLookupError:
            return False
        except OSError:  # a process of another user
            return True
        return True


def is_alive(pid: int) -> bool:
    """Tell whether the process with this id is running; return False if `pid` is not a valid process id."""
    return 0 < pid <= _MAX_PID and _exists(pid)
