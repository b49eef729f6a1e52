"""Name the commands of Positron as the user can type them.

Every message and help text takes the name of a command from here. The name has the form in which the user started this process:
`positron sft` for the installed command, otherwise `python -m positron.sft`. If `uv run` started the process, the name begins
with `uv run`. This module imports only the standard library and `paths.py`, which does the same.
"""

from __future__ import annotations

import keyword
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from positron.system.paths import relative_to_here

SCRIPT = "positron"  # the name of the installed command


def module_of(name: str) -> str:
    """Return the name of the module of the command `name`: the same name, or `import_` for `import`, a Python keyword."""
    return f"{name}_" if keyword.iskeyword(name) else name


def command(name: str, *arguments: str) -> str:
    """Return a command line that starts the command `name` in the user's shell."""
    return " ".join([*_start(name), *map(quoted, arguments)])


def next_command(name: str, *arguments: str) -> str:
    """Return the command line that a message shows to suggest `name` as the next command.

    If make started this process, `make chat` is returned for chat and `make generate` for generate, without arguments. In all
    other cases, the result of `command` is returned.
    """
    return f"make {name}" if os.environ.get("MAKELEVEL") and name in ("chat", "generate") else command(name, *arguments)


def in_user_form(text: str) -> str:
    """Replace `positron COMMAND` at the beginning of each line by the command line that starts COMMAND in the user's shell.

    For example, if the user has started this process with `python -m`, `positron sft` becomes `python -m positron.sft`.
    """
    return re.sub(r"(?m)^( *)positron ([a-z]+)", lambda match: match[1] + command(match[2]), text)


def _start(name: str) -> list[str]:
    """Return the words with which the user runs the command `name`, without arguments: ["positron", "train"], for example."""
    script = Path(sys.orig_argv[1]) if len(sys.orig_argv) > 1 else Path()
    if script.stem == SCRIPT:
        return ["uv", "run", SCRIPT, name] if _uses_uv() else [_typed(script, SCRIPT), name]
    python = ["uv", "run", "python"] if _uses_uv() else [_typed(Path(sys.executable), "python")]
    return [*python, "-m", f"positron.{module_of(name)}"]


def _uses_uv() -> bool:
    return bool(os.environ.get("UV_RUN_RECURSION_DEPTH"))


def _typed(program: Path, name: str) -> str:
    """Return `name` if the shell finds the program under this name, else the path of the program.

    The path is relative if the program is below the current folder, and is quoted if necessary.
    """
    on_path = shutil.which(name)
    if on_path is not None and Path(on_path).parent.resolve() == program.parent.resolve():
        return name
    relative = relative_to_here(program)
    return quoted(str(program) if relative.startswith("..") else relative)


def words_of(line: str) -> list[str]:
    """Divide a command line into words. On Windows a backslash belongs to a path; elsewhere it quotes the next character."""
    if sys.platform != "win32":
        return shlex.split(line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    return list(lexer)


def quoted(word: str) -> str:
    """Quote a word, if necessary, for the user's shell; on Windows for PowerShell and, if possible, also for cmd.exe."""
    if sys.platform != "win32":
        return shlex.quote(word)
    if re.fullmatch(r"[\w.=:/\\~+-]+", word):
        return word
    return f"'{word}'" if '"' in word or "$" in word else f'"{word}"'  # cmd.exe does not know single quotes
