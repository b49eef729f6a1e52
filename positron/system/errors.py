"""Define the errors that a command prints as one line, without a traceback.

This module imports only the standard library.
"""

from __future__ import annotations

import json
import re
import signal


class UserError(Exception):
    """Report something that the user can fix; commands print it as one line and exit with code 2."""


def without_advice(error: UserError) -> str:
    """Return the message of an error about a wrong setting, without the advice at its end, such as ": give a number".

    The advice is meant for a user who has typed the setting. It does not help if the setting was read from a run folder.
    """
    advice = r": (?:(?:give|try|choose|add|leave|did you mean) .*|.* lists all keys)"
    return re.split(advice, str(error), maxsplit=1)[0]


class Diverged(Exception):
    """Report that the loss of a training diverged; commands print it as one line and exit with code 1."""

    can_save = False  # whether the weights are finite and worth saving


class Unreachable(Exception):
    """Report that a server failed or did not answer, after several attempts; commands print one line and exit with code 1."""


class Interrupted(Exception):
    """Report that a signal ended the run between two optimizer steps, so that the last complete step can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def why_unreadable(error: OSError) -> str:
    """Return the reason why a file could not be read and, if the file is missing, what to do."""
    reason = error.strerror or str(error)
    is_missing = isinstance(error, FileNotFoundError)
    return f"{reason}; correct the path, or restore the file from a copy" if is_missing else reason


def why_not_json(error: ValueError) -> str:
    """Return what the error of a JSON parser says, without the position at which the text is wrong."""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else " ".join(str(error).split())
    return reason.removesuffix(" at").removesuffix(" starting")  # as in "Unterminated string starting at"


def where_not_json(error: ValueError) -> str:
    """Return the reason, as `why_not_json` does, and the position of the error: `..., column 3` or `..., line 2, column 3`."""
    if not isinstance(error, json.JSONDecodeError):
        return why_not_json(error)
    line = f", line {error.lineno}" if error.lineno > 1 else ""
    return f"{why_not_json(error)}{line}, column {error.colno}"


class LeftAtOnce(BaseException):
    """Report that a signal ended the run immediately, and that nothing more is saved.

    It is a BaseException, because the training catches every Exception of a tracker, such as wandb, and continues.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
