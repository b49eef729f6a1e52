"""Parse the options of a command; report an unknown option in one line that suggests a similar option.

This module imports only the standard library.
"""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from positron.system.commands import command, in_user_form
from positron.system.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Parse options as argparse does, but raise UserError instead of printing the usage and exiting."""

    def __init__(self, name: str, description: str | None) -> None:
        """Create the parser of the command `name`. Its help shows `description` with its own line ends, not filled again."""
        super().__init__(
            prog=command(name),
            description=in_user_form(description or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message and a piece of advice, such as a similar option.

        If no other advice fits, the advice is the command that lists all options. If the value of an option is wrong, the
        message only says which values are possible.
        """
        value = re.match(
            r"argument (\S+): invalid (int|float|choice)(?: value)?: ('.*?')(?: \((choose .*)\))?$", message
        )
        if value:
            kind = {"int": "give a whole number", "float": "give a number"}.get(value[2], value[4])
            raise UserError(f"{value[1]} {value[3]} is not a possible value: {kind}")
        wrong = re.match(r"unrecognized arguments: -+([^\s=]*)", message)
        # without the hyphens, which would make all short options similar
        options = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        similar = difflib.get_close_matches(wrong[1], options, 1, 0.6) if wrong else []
        advice = f"did you mean --{similar[0]}?" if similar else f"{self.prog} --help lists all options"
        if re.match(r"unrecognized arguments: [^-]", message) and any(
            a.dest == "prompt" for a in self._get_positional_actions()
        ):
            advice = "put a prompt of several words in quotes"
            key, equal, text = message.removeprefix("unrecognized arguments: ").partition("=")
            if equal and (similar := difflib.get_close_matches(key.replace("_", "-"), options, 1, 0.6)):
                advice = f"did you mean --{similar[0]} {text}?"
            elif "--run" in self._option_string_actions:
                advice += ", and name the run with --run"
        raise UserError(f"{' '.join(message.split())}; {advice}")
