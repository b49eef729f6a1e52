"""The page for Windows has each make target, with commands that do what make does, in every shell."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import PROJECT

from positron.cli.request import compose
from positron.settings import NOT_READ_BY

PAGE = (PROJECT / "docs" / "guides" / "windows.md").read_text(encoding="utf-8")
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TABLE = {
    target: re.findall(r"`([^`]+)`", cell) for target, cell in re.findall(r"^\| `([\w-]+)` \| (`.*`) \|$", PAGE, re.M)
}
INSTALL = ["uv sync"]  # make installs with pip what constraints.txt pins, and uv what uv.lock locks: the same versions
COMMANDS = [command for commands in TABLE.values() for command in commands]
# What PowerShell or cmd.exe gives a meaning outside of quotes; a variable before the command is not known there either.
SPECIAL = set(",;(){}[]@$&|<>#%^`'*?")


def recipe(target: str) -> list[str]:
    """Return the commands of a target, with uv in the place of the environment, and the defaults of make's variables."""
    body = re.search(rf"^{target}:.*\n((?:\t.*\n?)*)", MAKEFILE, re.M)
    assert body is not None
    lines = [line.strip().removeprefix("@") for line in body[1].splitlines()]
    lines = [re.sub(r"^([A-Z_0-9]+=\S+ )+", "", line) for line in lines]
    lines = [line.replace("$(or $(PYTHON),python3)", "uv run --no-project python") for line in lines]
    lines = [line.replace("$(BIN)/", "uv run ") for line in lines]
    defaults = dict(re.findall(r"^([A-Z]+) \?= (\S+)$", MAKEFILE, re.M))
    return [re.sub(r"\$\(([A-Z]+)\)", lambda variable: defaults[variable[1]], line) for line in lines]


def test_every_make_target_is_in_the_table_with_what_make_runs() -> None:
    targets = MAKEFILE.split(".PHONY:")[1].splitlines()[0].split()
    assert list(TABLE) == targets
    for target in targets:
        assert TABLE[target] == (INSTALL if target == "install" else recipe(target)), target


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_means_the_same_in_every_shell(command: str) -> None:
    assert shlex.split(command)[:1] == ["uv"]
    assert not SPECIAL & set(re.sub(r'"[^"$`%]+"', "", command)), command
    assert '""' not in command, "Windows PowerShell drops an empty argument"


def test_a_command_that_only_some_shells_know_is_found() -> None:
    for command in ("uv run x 'a'", "uv run x a,b", "uv run x $HOME"):
        with pytest.raises(AssertionError):
            test_a_command_means_the_same_in_every_shell(command)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("uv run positron ")])
def test_a_command_of_positron_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)[3:]
    if name in NOT_READ_BY:
        compose(name, ["name=named", *words])
    else:
        importlib.import_module(f"positron.{name}").arguments().parse_args(words)


@pytest.mark.parametrize(
    "path", [r"C:\x\y", r"C:\Users\Ann Lee\my text.txt", r"D:\new\t(1).txt", r"\\server\a,b.txt", "C:\\x\\"]
)
def test_a_path_of_windows_is_a_setting_as_it_is(path: str) -> None:
    assert compose("train", ["name=a", "data=text", f"data.path={path}"])["data"]["path"] == path
