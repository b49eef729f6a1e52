"""Define the errors that a command prints as one line, without a traceback.

This module imports only the standard library.
"""

from __future__ import annotations

import errno
import json
import re
import signal
from typing import NoReturn, TypeGuard


class UserError(Exception):
    """Report something that the user can fix; commands print it as one line and exit with code 2."""


class Occupied(UserError):
    """Report that other programs use what a command needs, such as memory; the same command may succeed later."""


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
    """Report that a server failed or did not answer, after several attempts, or that another process of a run ended.

    Commands print one line and exit with code 1.
    """


class Interrupted(Exception):
    """Report that a signal ended the run between two optimizer steps, so that the last complete step can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
        self.is_ctrl_c = signum == signal.SIGINT

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        """Let pickle, with which several processes exchange errors, construct the error from the number of the signal."""
        return Interrupted, (self.exit_code - 128,)


def raise_together(error: Exception) -> NoReturn:
    """Raise an error that all processes of a training raise at the same place, so that they can still act together."""
    vars(error)["is_of_all_processes"] = True
    raise error


def is_raised_together(error: BaseException) -> bool:
    """Tell whether all processes of a training have raised this error by `raise_together`."""
    return "is_of_all_processes" in vars(error)


# a disk that is full, read-only or broken, paths that cannot be used, no memory, and too many open files
_FAULTS_OF_A_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
}


def is_of_this_machine(error: BaseException) -> TypeGuard[OSError]:
    """Tell whether an error is a fault of this machine, such as a full disk, and not of the network or of settings.

    Another attempt would fail, too.
    """
    return isinstance(error, OSError) and error.errno in _FAULTS_OF_A_MACHINE


def why_unreadable(error: OSError, remedy: str = "check the spelling of the path") -> str:
    """Return the reason why a file could not be read and, if the file is missing, what to do (`remedy`)."""
    reason = error.strerror or str(error)
    return f"{reason}; {remedy}" if isinstance(error, FileNotFoundError) else reason


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


def why_not_yaml(error: Exception) -> str:
    """Return what is wrong with a line of a YAML file, with advice; `error` is the error of PyYAML.

    The result follows the name of the file and the number of the line: `begins with a tab: ...`.
    """
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    if r"'\t'" in problem:
        return "begins with a tab: indent with blanks"
    if "mapping values are not allowed" in problem or "<block mapping start>" in problem:
        return (
            "is indented differently from the lines before it, or has a colon inside a value: correct the blanks at its "
            "beginning, or write the value in quotation marks"
        )
    return f"is not valid YAML: {problem}; correct the file"


class LeftAtOnce(BaseException):
    """Report that a signal ended the run immediately, and that nothing more is saved.

    It is a BaseException, because the training catches every Exception of a tracker, such as wandb, and continues.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
