"""Show log lines on the screen, and append them, with the time, to the log file of a run.

Every module logs to `logging.getLogger(__name__)`. A context variable holds the handlers, because one process may train
several runs at once in threads, and a line of one run must not reach the log of another. `run_log` and `screen_log` set the
handlers for their block; outside of such a block only warnings and errors are shown. A new thread does not see these handlers.
Therefore a thread that works for a run must be started in a copy (`contextvars.copy_context`) of the context of that run.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from positron.system.console import despite_closed_stderr, one_line, say, shows_bars
from positron.system.disk import append_text
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, UserError
from positron.system.exits import describe
from positron.system.paths import without_home


def show(line: str) -> None:
    """Write a line to stderr, above the progress bar if there is one."""
    if shows_bars():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        say(line)


class _OneLine(logging.Formatter):
    """Format a record as one line, in which line breaks are escaped. A warning or error begins with its level."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return one_line(level + record.getMessage())


class _Handler(logging.Handler):
    """Handle records without a lock, because a signal handler may log while another line is being written."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.setFormatter(_OneLine())

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True


class ScreenHandler(_Handler):
    """Show log messages on the screen. Each message begins with the text `prefix`.

    Once the terminal or the pipe is closed, nothing more is shown, and no error is raised.
    """

    def __init__(self, write: Callable[[str], None] = show, *, prefix: str = "", level: int = logging.INFO) -> None:
        super().__init__(level)
        self.write, self.prefix = write, prefix

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        with despite_closed_stderr():
            self.write(self.prefix + self.format(record))


class RunFileHandler(_Handler):
    """Append lines, each with its time, to the log file of a run.

    If writing fails, for example because the disk is full, a warning is shown. Further failures in a row show no warning.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self._is_unwritable = path, False
        self._place = path.absolute()  # a callback may change the current folder

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record."""
        self._append(record, self.format(record))

    def note_end(self, error: BaseException) -> None:
        """Append the error that ended the run, with its traceback if it is an unexpected error."""
        text = describe(error)[1] or one_line(str(error))
        if not isinstance(error, (UserError, Diverged, Interrupted, LeftAtOnce)):
            lines = "".join(traceback.format_exception(error)).splitlines()
            text = "\n    ".join([text, *map(one_line, lines)])
        self._append(logging.makeLogRecord({}), text)

    def _append(self, record: logging.LogRecord, text: str) -> None:
        time = logging.Formatter().formatTime(record, "%Y-%m-%d %H:%M:%S")
        try:
            append_text(self._place, f"{time} {without_home(text)}\n")
            self._is_unwritable = False
        except (OSError, UserError) as error:
            if not self._is_unwritable:
                reason = error.strerror if isinstance(error, OSError) else error
                say(one_line(f"WARNING: cannot write {self.path}: {reason}"))
            self._is_unwritable = True


_handlers: ContextVar[tuple[logging.Handler, ...]] = ContextVar(
    "positron_log_handlers", default=(ScreenHandler(level=logging.WARNING),)
)


class _ContextHandler(_Handler):
    """Pass each record to the handlers that are set, by `run_log` for example, in the thread or task that logs it.

    The handlers are in a context variable, so that several runs in one process have separate logs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        for handler in _handlers.get():
            if record.levelno >= handler.level:
                handler.handle(record)


def take_over() -> None:
    """Send each log record of the package to the handlers of the thread or task that logs it.

    `screen_log` and `run_log` set these handlers. A thread or task for which none are set shows warnings and errors on the
    screen.
    """
    package = logging.getLogger("positron")
    package.addHandler(_ContextHandler(logging.NOTSET))
    package.setLevel(logging.DEBUG)  # each handler has a level of its own
    # Otherwise a program that configures the root logger would show each line twice. A program that wants the lines adds
    # a handler to the logger `positron`.
    package.propagate = False


@contextmanager
def _to(*handlers: logging.Handler) -> Iterator[None]:
    before = _handlers.set(handlers)
    try:
        yield
    finally:
        _handlers.reset(before)


@contextmanager
def screen_log(write: Callable[[str], None] = show, *, level: int = logging.INFO) -> Iterator[None]:
    """Show what the block logs at `level` or above; `write` receives each line."""
    with _to(ScreenHandler(write, level=level)):
        yield


@contextmanager
def run_log(path: Path, *, prefix: str = "", is_first_rank: bool = True) -> Iterator[None]:
    """Show the lines that the block logs, and append them to `path`, the log file of a run.

    If an error ends the block, the error is appended, too.

    `prefix` begins each line on the screen, so that jobs that run at the same time can be distinguished. If several
    processes train the run, only the first (`is_first_rank`) shows and writes lines.
    """
    if not is_first_rank:
        with _to():
            yield
        return
    file = RunFileHandler(path)
    with _to(ScreenHandler(prefix=prefix), file):
        try:
            yield
        except BaseException as error:
            file.note_end(error)
            raise


def log_to_queue(queue: Any) -> None:
    """Send every record that this process logs from now on to `queue`.

    The parent process reads the records from the queue and calls `log_received` with each of them.
    """
    _handlers.set((logging.handlers.QueueHandler(queue),))


def log_received(record: logging.LogRecord) -> None:
    """Log a record that another process sent, as if this process had logged it.

    `record` comes from the queue of `log_to_queue`.
    """
    logging.getLogger(record.name).handle(record)
