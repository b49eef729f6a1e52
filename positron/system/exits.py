"""Turn an error of a command into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from positron.system.console import one_line, open_streams
from positron.system.disk import remedy_for
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, Unreachable, UserError

ECHO_S = 0.25  # a signal that is sent twice has arrived twice after this time
if sys.platform == "win32":
    _ENDING = (signal.SIGTERM,)
else:
    _ENDING = (signal.SIGTERM, signal.SIGHUP)
ABANDONED = "positron-abandoned"  # name of a thread for whose result nobody waits any more when the command ends


@contextmanager
def end_despite_threads() -> Iterator[None]:
    """End the process after the block at once, with the exit code of the block, if a thread of the name ABANDONED still runs.

    If Python ended in its usual way, PyTorch would abort the process when such a thread returns from a computation.
    """
    code: object = 0
    try:
        yield
    except SystemExit as error:
        code = error.code
        raise
    finally:
        if any(thread.name == ABANDONED for thread in threading.enumerate()):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Print an error of the block as one line on stderr and exit with a code.

    The exit code is 2 for a UserError and a missing package, 128 + the signal's number after a signal, 0 after a closed pipe,
    and 1 for other errors. With POSITRON_DEBUG=1 in the environment, the traceback is printed, too. A SystemExit is not
    changed: its code is kept, and neither a line nor a traceback is printed for it.

    The first SIGTERM or SIGHUP (the terminal was closed) raises LeftAtOnce, so that temporary files are deleted and child
    processes end. A second one ends the process at once (see also `absorb_echo`).
    """
    open_streams()
    try:
        try:
            with _ends_as_exceptions():
                yield
        finally:
            _flush_output()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if _is_debugging():
            traceback.print_exc()
        code, line = describe(error)
        if line:
            print(line, file=sys.stderr)
        raise SystemExit(code) from None


@contextmanager
def _ends_as_exceptions() -> Iterator[None]:
    """Raise LeftAtOnce at the first of these signals; one that is ignored or that another function handles is not changed."""
    is_main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers nowhere else
    handled = [signum for signum in _ENDING if is_main and signal.getsignal(signum) is signal.SIG_DFL]
    for signum in handled:
        signal.signal(signum, _leave)
    try:
        yield
    finally:
        for signum in handled:
            signal.signal(signum, signal.SIG_DFL)


def absorb_echo(signum: int) -> None:
    """Ignore the same signal for 0.25 seconds (ECHO_S); call this function in the handler of the signal.

    `timeout` sends its signal to the command and then to the process group of the command, and a shell whose terminal closes
    passes on the SIGHUP that the terminal has sent already. This is no second signal, which would end the process at once.
    """
    handler = signal.signal(
        signum, lambda *_: None
    )  # not SIG_IGN, because Python complains of one that has arrived already
    try:
        time.sleep(ECHO_S)
    finally:
        signal.signal(signum, handler)


def _leave(signum: int, _: FrameType | None) -> None:
    absorb_echo(signum)
    signal.signal(signum, signal.SIG_DFL)
    raise LeftAtOnce(signum)


def _is_debugging() -> bool:
    """Tell whether the user wants to see the traceback of every error."""
    return os.environ.get("POSITRON_DEBUG") == "1"


def _flush_output() -> None:
    """Flush stdout. Raises OSError if this fails, for example because the disk is full.

    If the reader of stdout has ended, as in `positron --help | head -3`, no error is raised. In both cases, the rest of the
    output is discarded, because Python would otherwise print an error of its own when it flushes stdout at exit.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            raise


@contextmanager
def despite_closed_output() -> Iterator[None]:
    """Go on after the block, which prints to stdout, even if nothing can be written there; discard the rest of the output.

    The reader of stdout has ended, its terminal was closed, or the disk of its file is full.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error and one line that describes it, in which line breaks are escaped.

    The line is empty if nothing needs to be printed, for example after a closed pipe.
    """
    code, line = _described(error)
    return code, one_line(line)


def _described(error: BaseException) -> tuple[int, str]:
    if isinstance(error, UserError):
        return 2, f"positron: {error}"
    if isinstance(error, (Unreachable, Diverged)):
        return 1, f"positron: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "positron: interrupted"
    if isinstance(error, BrokenPipeError):
        return 0, ""
    if isinstance(error, (Interrupted, LeftAtOnce)):  # a line about what was saved has already been printed
        return error.exit_code, ""
    if isinstance(error, ModuleNotFoundError):
        return 2, (
            f"positron: {sys.executable} has no module {error.name}: activate the environment in which Positron is installed "
            "(source .venv/bin/activate), or install it with make install"
        )
    if (
        isinstance(error, OSError) and (remedy := remedy_for(error, "")) and error.strerror
    ):  # of a library that writes files
        file = "" if error.filename is None else f" ({error.filename})"
        return 2, f"positron: {error.strerror}{file}: {remedy}"
    if isinstance(error, FileNotFoundError) and error.strerror and "usable temporary directory" in error.strerror:
        return (
            2,
            f"positron: {error.strerror}: free disk space, or set the variable TMPDIR to a folder that can be written",
        )
    kind = type(error).__name__
    text = " ".join(str(error).split())
    return 1, f"positron: {kind}: {text} (POSITRON_DEBUG=1 shows the traceback)"


def import_errors_in_one_line() -> None:
    """Make Ctrl-C and a missing package print one line instead of a traceback while the modules of a command are imported."""
    original = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("positron: interrupted", file=sys.stderr)
        elif issubclass(kind, ModuleNotFoundError) and not _is_debugging():
            code, line = describe(error)
            print(line, file=sys.stderr)
            raise SystemExit(code)
        else:
            original(kind, error, trace)

    sys.excepthook = hook
