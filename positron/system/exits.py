"""How a command ends: its exit code, and an error as one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from positron.system.console import one_line, open_streams
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, Unreachable, UserError


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Exit 2 for what the user can fix, 128 + signal after an interruption, 1 for the rest; 0 for a closed pipe.

    With POSITRON_DEBUG=1 every error shows its traceback.
    """
    open_streams()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if os.environ.get("POSITRON_DEBUG") == "1":
            traceback.print_exc()
        code, line = describe(error)
        if line:
            print(line, file=sys.stderr)
        raise SystemExit(code) from None


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error and one line, in which text from files cannot forge a second one."""
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
    if isinstance(error, (Interrupted, LeftAtOnce)):  # has already said what was saved
        return error.exit_code, ""
    kind = type(error).__name__
    text = " ".join(str(error).split())
    return 1, f"positron: {kind}: {text} (POSITRON_DEBUG=1 shows where)"


def interrupt_in_one_line() -> None:
    """Let Ctrl-C end a command in one line while its modules are still being imported."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("positron: interrupted", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
