"""Read the lines that a user types in the chat: commands, and messages to the model.

A line that begins with / is a command. Without the slash, only these forms are commands: a command alone on its line,
`settings NAME VALUE`, and `save FILE` or `load FILE` if FILE has a suffix or a folder. Other lines are messages.
"""

from __future__ import annotations

import difflib
import json
import re
import stat
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from positron.system.console import Screen
from positron.system.errors import UserError
from positron.system.formatting import counted

if TYPE_CHECKING:
    from positron.inference.dialogue import Dialogue

COMMANDS = {
    "settings": "show the sampling settings",
    "settings NAME VALUE": "change a setting: preset, temperature, top_p, top_k, min_p, repetition_penalty, last_n, "
    "max_tokens, seed",
    "reset": "delete the conversation and begin a new one",
    "/system TEXT": "set the system prompt (without TEXT: remove the system prompt)",
    "save FILE, load FILE": "save the conversation to FILE, or load it from FILE; /save! FILE replaces an existing file",
    "quit": "end the chat, as Ctrl-D and Ctrl-C do at an empty prompt; during an answer, Ctrl-C stops the answer",
}
RULE = (
    "A line that begins with / is a command. Without the slash, only these lines are commands: help, settings, reset or quit "
    "alone on a line, settings NAME VALUE, and save or load with a file name that has a suffix or a folder, such as save "
    "talk.json. All other lines go to the model."
)
NAMES = ("help", "settings", "reset", "system", "save", "save!", "load", "quit")
ALIASES = {"exit": "quit"}
TAKES_TEXT = ("settings", "system", "save", "save!", "load")
_FILE = re.compile(r"\S*[/\\]\S*|\S*\.\w+|~\S*")


class NearCommand(UserError):
    """Report that a line may be a misspelt command, such as `setings`.

    If the user enters the same line again, it is sent to the model.
    """


class Command(NamedTuple):
    """Hold a typed command: its `name` without the slash, and the `text` that follows on the line."""

    name: str  # one of NAMES
    text: str  # what follows on the line, without surrounding blanks


def parse(line: str) -> Command | None:
    """Return the command on a line, or None for a message to the model.

    Raises UserError if a line begins with / but is not a valid command, and NearCommand for a misspelt command without a slash.
    """
    word, _, text = line.strip().partition(" ")
    slashed, text = word.startswith("/"), text.strip()
    name = word.removeprefix("/").lower()
    name = ALIASES.get(name, name)
    if slashed:
        if name not in NAMES:
            similar = _nearest(name)
            hint = f"did you mean /{similar}?" if similar else "/help lists the commands"
            raise UserError(f"there is no command {word}: {hint}")
        if text and name not in TAKES_TEXT:
            raise UserError(
                f"/{name} must stand alone on the line: remove the text after /{name}, or remove the slash to send the line "
                "to the model"
            )
        return Command(name, text)
    if name in NAMES:
        return Command(name, text) if _is_exact(name, text) else None
    similar = _nearest(name)
    if similar is not None and _is_exact(similar, text):
        raise NearCommand(
            f"there is no command {word}: did you mean {similar}? Enter the line again to send it to the model"
        )
    return None


def remark(line: str, reads_system: bool = True) -> str | None:
    """Return a remark if a line goes to the model although it begins with the name of a command, else None.

    The remark names the command to type instead. If `reads_system` is false (the model was not fine-tuned on conversations),
    the remark about a line that begins with `system` says that this model has no system prompt.
    """
    word = line.strip().partition(" ")[0]
    if word not in TAKES_TEXT:
        return None
    if word == "system" and not reads_system:
        return "this line goes to the model; there is no system prompt, because the model was not fine-tuned on conversations"
    return f"this line goes to the model; the command is /{word} ..."


def _is_exact(name: str, text: str) -> bool:
    """Tell whether a line without a slash is a command, and not a message to the model.

    `name`: the first word of the line, the name of a command. `text`: the rest of the line. The line is a command if `text` is
    empty, or if it has the form that this command expects: a sampling setting for `settings`, a file for `save` and `load`.
    """
    if not text:
        return True
    if name == "settings":
        return _names_setting(text)
    return name in ("save", "save!", "load") and _FILE.fullmatch(text) is not None


def _names_setting(text: str) -> bool:
    """Tell whether the text after the word `settings` names a sampling setting: NAME, NAME VALUE or NAME=VALUE.

    The result is true in two cases. NAME is similar to the name of a setting, and at most one word follows it. Or NAME is any
    word and VALUE is a number, "none", "off" or the name of a preset.
    """
    from positron.inference.dialogue import SETTINGS
    from positron.inference.sampling import PRESETS

    words = text.replace("=", " ", 1).split()
    if not words:
        return False
    if difflib.get_close_matches(_setting_name(words[0]), SETTINGS, 1, 0.8):
        return len(words) <= 2
    return len(words) == 2 and (words[1].lower() in ("none", "off", *PRESETS) or _is_number(words[1]))


def _setting_name(word: str) -> str:
    return word.lower().replace("-", "_")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nearest(word: str) -> str | None:
    """Return the command that a word may misspell, or None."""
    for name in NAMES:
        if sorted(word) == sorted(name):
            return name
    return next(iter(difflib.get_close_matches(word, NAMES, 1, 0.8)), None)


def execute(dialogue: Dialogue, command: Command) -> None:
    """Execute a command. If this is not possible, raises UserError and leaves the dialogue unchanged."""
    name, text = command
    match name:
        case "help":
            show_help()
        case "settings":
            _settings(dialogue, text)
        case "reset":
            dialogue.reset()
            Screen().line("(a new conversation begins)")
        case "system":
            dialogue.system = text or None
            Screen().line(f"(system: {text or 'none'})")
        case "save" | "save!":
            _save(dialogue, text, replace=name == "save!")
        case "load":
            _load(dialogue, text)
        case "quit":
            return
        case _:
            raise AssertionError(f"{name} is not a command")


def show_help() -> None:
    """Print the commands and the rule by which a line is recognised as a command, wrapped to the width of the terminal."""
    import shutil

    width = max(40, shutil.get_terminal_size().columns)
    for usage, description in COMMANDS.items():
        print(textwrap.fill(f"{usage:<21} {description}", width, subsequent_indent=" " * 22, break_long_words=False))
    print("\n" + textwrap.fill(RULE, width))


def _settings(dialogue: Dialogue, text: str) -> None:
    name, _, value = text.replace("=", " ", 1).partition(" ")
    name, value = _setting_name(name), value.strip()
    if value or (name and name not in dialogue.settings()):
        dialogue.change(name, value)
    shown = dialogue.settings()
    if name and not value:
        shown = {name: shown[name]}
    Screen().line("\n".join(f"  {name:<18} {value}" for name, value in shown.items()))


def _save(dialogue: Dialogue, name: str, replace: bool) -> None:
    from positron.system.disk import write_json

    if not name:
        raise UserError("/save needs a file name: /save FILE")
    path = _path(name)
    kind = _kind(path)
    if kind not in (None, "a file"):
        raise UserError(f"cannot save to {name}: it is {kind}; give the name of a file")
    if kind == "a file" and not replace:
        raise UserError(f"{name} exists: /save! {name} replaces it")
    write_json(path, dialogue.state())
    dialogue.saved = list(dialogue.messages)
    Screen().line(f"(saved {counted(len(dialogue.messages), 'message')} to {name})")


def _load(dialogue: Dialogue, name: str) -> None:
    from positron.inference.arguments import decoded

    if not name:
        raise UserError("/load needs a file name: /load FILE")
    path = _path(name)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot load {name}: it is {_kind(path.resolve())}; give the name of a file")
        state = json.loads(decoded(path.read_bytes(), name))
    except FileNotFoundError as error:
        files = [file.name for file in path.parent.glob("*") if file.is_file()]
        similar = difflib.get_close_matches(path.name, files, 1)
        hint = f"did you mean {path.with_name(similar[0])}?" if similar else "correct the name or the path"
        raise UserError(f"there is no file {name}: {hint}") from error
    except OSError as error:
        raise UserError(f"cannot load {name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot load {name}: it is not JSON; give a file that /save wrote") from error
    dialogue.restore(state, name)
    Screen().line(f"(loaded {counted(len(dialogue.messages), 'message')} from {name})")


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"the home folder in {name} is not known: give the full path") from error


def _kind(path: Path) -> str | None:
    """Return in words what is at `path`, such as "a folder", or None if there is nothing.

    A symbolic link is not followed. Raises UserError if the path cannot be read.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISREG(mode):
        return "a file"
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {path.readlink()}"
    return "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
