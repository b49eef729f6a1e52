"""Call a function with a time limit, without starting a thread or a process."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class TooSlow(BaseException):
    """Report that a call took longer than its limit.

    It is not an Exception, so that `except Exception` in the called function does not catch it.
    """


def call_within(seconds: float, function: Callable[[], T]) -> T:
    """Return `function()`. Raises TooSlow if the call takes longer than `seconds` of real time.

    In the main thread, a timer of the operating system (SIGALRM) interrupts Python code, the search of a regular
    expression, and waiting for a file or the network. The timer does not interrupt C code that handles no signals, such as a
    long NumPy operation: TooSlow is then raised after the operation. In other threads and on Windows, where Python cannot set
    such a timer, TooSlow is raised after the call. If the calling program uses the timer for itself, the program's timer and
    signal handler are restored afterwards.
    """
    start = time.monotonic()
    if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
        result = _interrupted_after(seconds, function)
    else:
        result = function()
    if time.monotonic() - start > seconds:
        raise TooSlow
    return result


if sys.platform != "win32":

    def _interrupted_after(seconds: float, function: Callable[[], T]) -> T:
        def interrupt(signum: int, frame: FrameType | None) -> None:
            raise TooSlow

        start = time.monotonic()
        handler = signal.signal(signal.SIGALRM, interrupt)
        left, interval = 0.0, 0.0
        try:  # restore the handler even if the alarm arrives after the call and before the timer is stopped
            try:
                left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
                return function()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.signal(signal.SIGALRM, handler)
            if left:
                passed = time.monotonic() - start
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, left - passed), interval)
