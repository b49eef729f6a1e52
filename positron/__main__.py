"""List the commands: `python -m positron`."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from pathlib import Path

from positron import __version__
from positron.system.console import one_line, open_streams

COMMANDS = (
    "train",
    "sft",
    "generate",
    "chat",
    "evaluate",
    "compare",
    "scaling",
    "reproduce",
    "dashboard",
    "prepare",
    "doctor",
)


def summary(command: str) -> str:
    """The first sentence of the command's own docstring, up to its example."""
    source = (Path(__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    first = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    return re.split(r":? `python|: python|\. |\.$", first)[0]


def main() -> None:
    open_streams()
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"Positron {__version__}")
        return
    if words and words not in (["--help"], ["-h"]):
        near = difflib.get_close_matches(words[0], COMMANDS, 1, 0.6)
        rest = (
            " ".join([f"python -m positron.{near[0]}", *words[1:]]) if near else "python -m positron lists the commands"
        )
        print(f"positron: {one_line(words[0])} is no command here: {one_line(rest)}", file=sys.stderr)
        raise SystemExit(2)
    print(f"Positron {__version__}: train, understand, fine-tune and talk to a small GPT\n")
    print("usage: python -m positron.COMMAND ...    (--help shows what each takes)\n")
    for command in COMMANDS:
        print(f"  {command:<10} {summary(command)}")
    print("\nA first run: python -m positron.train experiment=quickstart")


if __name__ == "__main__":
    main()
