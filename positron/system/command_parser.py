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

# The names that llama.cpp, nanoGPT, transformers and other tools give to the options of Positron. --run is among them, because
# some commands take the run without an option.
_OTHER_NAMES = {
    "run": "--run --runs -m --model --model-path --model-name-or-path --model-dir --ckpt --checkpoint --out-dir",
    "max-tokens": "-n --n-predict --predict --max-new-tokens --max-length --num-tokens",
    "num-samples": "--n-samples --num-return-sequences",
    "file": "-f",
    "seed": "-s",
    "repetition-penalty": "--repeat-penalty",
    "last-n": "--repeat-last-n",
    "system": "-sys --system-prompt",
}
_NAME_OF = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
_OF_A_PROMPT = ("-p", "--prompt", "--start")
_OF_A_CHAT = ("-i", "--interactive", "--interactive-first", "-cnv", "--conversation")


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
        word = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        positional = {action.dest for action in self._get_positional_actions()}
        opposite = word[5:] if word.startswith("--no-") else f"no-{word[2:]}"
        if opposite in options:  # the user typed the --no- form of an option, or the other way round
            advice = f"leave {word} out, because it is the default"
        if (name := _NAME_OF.get(word)) in options:
            advice = f"did you mean --{name}?"
        elif name == "run" and positional & {"run", "runs"}:
            advice = f"name the run without {word}"
        elif word in _OF_A_PROMPT and positional & {"prompt", "question"}:
            advice = f"give the text without {word}, in quotes"
        elif word in _OF_A_CHAT and "prompt" in positional:
            advice = f"{command('chat')} is the command for a conversation"
        elif wrong is None and message.startswith("unrecognized") and not positional and "run" in options:
            advice = f"did you mean --run {word}?"
        if re.match(r"unrecognized arguments: [^-]", message) and positional & {"prompt", "question"}:
            advice = "put a text of several words in quotes"
            key, equal, text = message.removeprefix("unrecognized arguments: ").partition("=")
            if equal and (similar := difflib.get_close_matches(key.replace("_", "-"), options, 1, 0.6)):
                advice = f"did you mean --{similar[0]} {text}?"
            elif "--run" in self._option_string_actions:
                advice += ", and name the run with --run"
        raise UserError(f"{' '.join(message.split())}; {advice}")
