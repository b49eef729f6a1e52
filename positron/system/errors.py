"""The errors that a command prints as one line, without a traceback.

Standard library only.
"""

from __future__ import annotations

import signal


class UserError(Exception):
    """Something that the user can fix: commands print it as one line and exit with code 2."""


class Diverged(Exception):
    """The training failed by its own numbers: commands print it as one line and exit with code 1."""

    can_save = False  # whether the weights are still worth keeping


class Unreachable(Exception):
    """Something outside this machine failed, after patient attempts: commands print it as one line and exit with 1."""


class Interrupted(Exception):
    """A signal ended the run at a place where the last whole step can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class LeftAtOnce(BaseException):
    """A signal ended the run wherever it was, and nothing more is saved.

    No Exception, so that code which survives errors of a tracker or a sample does not survive this.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
