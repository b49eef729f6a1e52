"""The errors that a command prints as one line, without a traceback.

Standard library only.
"""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can fix: commands print it as one line and exit with code 2."""


class Diverged(Exception):
    """The training failed by its own numbers: commands print it as one line and exit with code 1."""

    can_save = False  # whether the weights are still worth keeping


class Unreachable(Exception):
    """Something outside this machine failed, after patient attempts: commands print it as one line and exit with 1."""
