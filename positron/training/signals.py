"""Handle signals such as Ctrl-C: the first one saves the last complete step and ends the training; a second ends it at once."""

from __future__ import annotations

import _thread
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from positron.system.errors import Interrupted, LeftAtOnce
from positron.system.exits import ECHO_S, absorb_echo

logger = logging.getLogger(__name__)

AGAIN_S = 0.01  # after this time the finalizer in which a signal arrived has ended
PATIENCE_S = 1.5  # after this time Python has called the handler, unless the main thread waits for another process


if sys.platform == "win32":
    _HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
else:
    # clusters can send SIGUSR1 some time before the time limit of a job
    _HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Handle SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 and SIGBREAK (Ctrl-Break) in a `with` block.

    If `can_save` is True, the first signal only sets `received` (but see `ending_wait`), and a second one raises LeftAtOnce. If
    `can_save` is False, the first signal raises LeftAtOnce.

    Python calls a handler only in the main thread, and not while this thread waits for another process of the training. If
    `has_others` is True, the training has other processes: a second thread then receives the signals, too. If the main thread
    does not handle the second signal, because another process does not answer, this thread ends the process.

    Windows has SIGBREAK, but neither SIGHUP nor SIGUSR1. If the window of a process is closed on Windows, the process ends
    before Python can handle a signal.
    """

    def __init__(self, has_others: bool = False) -> None:
        self.has_others = has_others
        self.received = 0  # the number of the first signal, or 0; the training checks it at places where it can end
        self.can_save = False  # true while a training runs that checks `received`
        self._ends_wait = False  # true inside an `ending_wait` block
        self._is_held = False
        self._waiting = 0  # the number of a signal that arrived inside a `held` block
        self._handlers: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._handled, self._handled_at = 0, 0.0  # how many signals the main thread has handled, and when the last one
        self._numbers: socket.socket | None = None  # Python writes the number of each signal to it
        self._previous_fd = -1

    def __enter__(self) -> Signals:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._send_again
        self.install()
        if self.has_others and self._handlers:
            arriving, self._numbers = socket.socketpair()
            self._numbers.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._numbers.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._end_without_answer, args=[arriving], daemon=True).start()
        return self

    def install(self) -> None:
        """Install the signal handlers; outside of the main thread, where Python allows no handlers, do nothing.

        Entering the `with` block calls this method. The training calls it again when it starts, because Lightning has
        replaced the handler of SIGTERM by then.
        """
        for signum in _HANDLED:
            if signum.name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # nohup makes the process ignore SIGHUP
            try:
                previous = signal.signal(signum, self._note)
            except ValueError:  # outside of the main thread, the calling program handles signals
                return
            self._handlers.setdefault(signum, previous)

    def release(self) -> None:
        """Let signals end the process at once until `install` is called.

        This is necessary while torch waits for other processes: it then runs no Python code, so no Python handler could react.
        """
        for signum in self._handlers:
            signal.signal(signum, signal.SIG_DFL)

    def __exit__(self, *_: Any) -> None:
        if self._numbers is not None:
            signal.set_wakeup_fd(self._previous_fd)
            self._numbers.close()  # ends the thread
            self._numbers = None
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
        sys.unraisablehook = self._hook

    def _send_again(self, ignored: Any) -> None:
        """Send a signal again if its handler raised LeftAtOnce or Interrupted inside a finalizer (`__del__`).

        They are raised to end the run. But Python ignores an exception that is raised inside a finalizer, and only passes it to
        `sys.unraisablehook`. This method is installed as this hook, and `ignored` is the argument of the hook. Any other
        exception is passed to the previous hook.
        """
        if isinstance(ignored.exc_value, (LeftAtOnce, Interrupted)):
            if isinstance(ignored.exc_value, Interrupted):
                self.received = 0  # the signal that is sent again is the first one
            threading.Timer(AGAIN_S, _thread.interrupt_main, [ignored.exc_value.exit_code - 128]).start()
        else:
            self._hook(ignored)

    def _end_without_answer(self, arriving: socket.socket) -> None:
        """End the process after the second signal that `arriving` receives, if the main thread does not handle it."""
        count, previous, arrived_at = 0, b"", -math.inf
        with arriving:
            while number := arriving.recv(1):
                is_echo = number == previous and time.monotonic() - arrived_at < ECHO_S
                if is_echo:
                    continue
                count += number[0] in _HANDLED
                previous, arrived_at = number, time.monotonic()
                if count > 1 and number[0] in _HANDLED:
                    time.sleep(PATIENCE_S)
                    # two signals that arrive at the same time may be handled as one
                    is_unhandled = self._handled < count and self._handled_at < arrived_at
                    if self._numbers is not None and is_unhandled:
                        os._exit(128 + number[0])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._handled, self._handled_at = self._handled + 1, time.monotonic()
        absorb_echo(signum)
        if self._is_held:
            self._waiting = signum
        elif self.received or not self.can_save:
            raise LeftAtOnce(signum)
        else:
            self.received = signum
            # the RuntimeError of a signal that interrupts the writing of another line to the same stream
            with contextlib.suppress(RuntimeError):
                logger.info(
                    f"{signal.Signals(signum).name}: saving the last complete step "
                    "(a second signal ends the training without saving)"
                )
            if self._ends_wait:
                self.leave()

    def interruption(self) -> Interrupted | None:
        """Return the error that ends the run if a signal was received, otherwise None."""
        return Interrupted(self.received) if self.received else None

    def leave(self) -> None:
        """Raise Interrupted if a signal was received."""
        if error := self.interruption():
            raise error

    @contextlib.contextmanager
    def ending_wait(self) -> Iterator[None]:
        """Raise Interrupted at the first signal, which may arrive while the `with` block waits, such as for the network.

        A signal that arrived before the block raises it, too.
        """
        self._ends_wait = True
        try:
            self.leave()
            yield
        finally:
            self._ends_wait = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay signals until the end of the `with` block, which must be short.

        If a signal was delayed, the end of the block raises LeftAtOnce, the exception that ends the run immediately.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            if self._waiting:
                raise LeftAtOnce(self._waiting)
