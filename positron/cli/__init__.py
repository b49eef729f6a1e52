"""Run the command line: list the commands, read settings, and check them before anything is loaded."""

from __future__ import annotations

import ast
import difflib
import re
import runpy
import sys
from pathlib import Path

from positron.system.commands import command, module_of
from positron.system.console import one_line
from positron.system.exits import errors_as_one_line, import_errors_in_one_line
from positron.version import __version__

COMMANDS = (
    "train",
    "distill",
    "sft",
    "prefer",
    "reinforce",
    "generate",
    "chat",
    "serve",
    "look",
    "evaluate",
    "compare",
    "floor",
    "research",
    "scaling",
    "reproduce",
    "export",
    "import",
    "dashboard",
    "prepare",
    "preview",
    "cache",
    "bench",
    "doctor",
)


# The names of commands in other tools, such as nanoGPT's sample.py.
_OTHER_NAMES = {
    "sample": "generate",
    "inference": "generate",
    "finetune": "sft",
    "fine-tune": "sft",
    "dpo": "prefer",
    "grpo": "reinforce",
    "resume": "train",
    "continue": "train",
}

MODULES = tuple(map(module_of, COMMANDS))


def summary(name: str) -> str:
    """Return the first sentence of the module docstring of the command `name`.

    An example at the end of the sentence, such as `positron prefer init_from=outputs/sft`, is left out.
    """
    package = Path(__file__).parents[1]
    path = package / f"{module_of(name)}.py"
    source = (path if path.exists() else package / name / "__init__.py").read_text(encoding="utf-8")
    first = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    return re.split(r":? `positron|: positron|\. |\.$", first)[0]


def main() -> None:
    """Run the command in `sys.argv`, as `python -m positron.COMMAND ...` does; without a command, list the commands."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        sys.argv = sys.argv[1:]
        import_errors_in_one_line()
        # as the main module of the process, so that Lightning starts further processes with the same command
        runpy.run_module(f"positron.{module_of(words[0])}", run_name="__main__", alter_sys=True)
        return
    with errors_as_one_line():
        _answer(words)


def _answer(words: list[str]) -> None:
    """Print the version (--version), the list of commands (no words, or --help), or an error for an unknown command."""
    if words == ["--version"]:
        print(f"Positron {__version__}")
        return
    if words and words not in (["--help"], ["-h"]):
        same = _OTHER_NAMES.get(words[0]) or next(iter(difflib.get_close_matches(words[0], COMMANDS, 1, 0.6)), None)
        hint = f"did you mean {command(same, *words[1:])}?" if same else "positron --help lists the commands"
        print(f"positron: there is no command {one_line(words[0])}: {one_line(hint)}", file=sys.stderr)
        raise SystemExit(2)
    print(f"Positron {__version__}: train, understand, fine-tune and talk to a small GPT\n")
    print("usage: positron COMMAND [options], or python -m positron.COMMAND [options]")
    print("positron COMMAND --help describes a command.\n")
    print("A run is a folder in outputs/ with a trained model, its settings and results.\n")
    for name in COMMANDS:
        print(f"  {name:<10} {summary(name)}")
    print(f"\nA first run: {command('train', 'experiment=quickstart')}")
