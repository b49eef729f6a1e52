"""The names of commands in messages: as the user started the process."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from positron.system import commands
from positron.system.command_parser import CommandParser
from positron.system.commands import command, in_user_form, next_command, words_of


def test_a_shown_command_names_the_interpreter_in_use_where_the_shell_finds_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no environment is active
    shown = command("generate", "Once upon a time", "--run", "outputs/it's mine")
    words = shlex.split(shown)
    assert words[1:] == ["-m", "positron.generate", "Once upon a time", "--run", "outputs/it's mine"]
    assert os.path.samefile(words[0], sys.executable)
    assert subprocess.run([words[0], "-c", "import numpy"], check=False).returncode == 0
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert command("chat").split()[0] in ("python", words[0])


@pytest.mark.parametrize(
    ("name", "level", "shown"), [("chat", "1", "make chat"), ("generate", "1", "make generate"), ("sft", "1", None)]
)
def test_who_started_by_make_is_shown_its_targets(
    name: str, level: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKELEVEL", level)
    assert next_command(name) == (shown or command(name))


@pytest.mark.parametrize(
    ("started", "path", "shown"),
    [
        (["python", "BIN/positron", "train"], "BIN", "positron sft init_from=x"),
        (["python", "BIN/positron", "train"], "", "BIN/positron sft init_from=x"),
        (["python", "-m", "positron.train"], "PYTHON", "python -m positron.sft init_from=x"),
        (["python", "-m", "positron", "train"], "PYTHON", "python -m positron.sft init_from=x"),
    ],
)
def test_a_message_names_a_command_in_the_form_in_which_the_user_started_the_process(
    started: list[str], path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "positron"
    script.touch(mode=0o755)
    names = {"BIN": str(tmp_path), "PYTHON": str(Path(sys.executable).parent), "": ""}
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setenv("PATH", names[path])
    monkeypatch.setattr(sys, "orig_argv", [word.replace("BIN", str(tmp_path)) for word in started])
    assert command("sft", "init_from=x").split()[1:] == shown.replace("BIN", str(tmp_path)).split()[1:]
    assert Path(command("sft").split()[0]).name == Path(shown.split()[0]).name
    assert (os.sep in command("sft").split()[0]) == (os.sep in shown.split()[0])


def test_uv_and_the_keyword_import_are_part_of_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "positron.train"])
    assert command("import", "gpt2") == "uv run python -m positron.import_ gpt2"
    monkeypatch.setattr(sys, "orig_argv", ["python", "/somewhere/positron", "train"])
    assert command("import", "gpt2") == "uv run positron import gpt2"


def test_a_help_text_has_the_form_at_the_beginning_of_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Talk to a run.\n\n    positron chat --run x\n\nSee `positron sft`."
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "positron.chat"])
    assert in_user_form(text) == text.replace("    positron chat", f"    {command('chat')}")
    parser = CommandParser("chat", text)
    assert parser.prog == command("chat")
    assert f"\n    {command('chat')} --run x\n" in parser.format_help()


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        (r"data.path=C:\x\y", r"data.path=C:\x\y"),
        (r"data.path=C:\my texts", r'"data.path=C:\my texts"'),
        ("optimizer.betas=[0.9,0.95]", '"optimizer.betas=[0.9,0.95]"'),
        ("name=a$b", "'name=a$b'"),
    ],
)
def test_on_windows_a_command_is_quoted_for_its_shells(word, quoted, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert command("train", word).endswith(f" {quoted}")


def test_on_windows_a_backslash_in_a_command_is_part_of_a_path(monkeypatch):
    line = r"""python C:\evals\my.py "C:\my texts\{text}" --sep '\' #1"""
    monkeypatch.setattr(sys, "platform", "win32")
    assert words_of(line) == ["python", r"C:\evals\my.py", r"C:\my texts\{text}", "--sep", "\\", "#1"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert words_of(r"a\ b 'c d'") == ["a b", "c d"]


def test_a_program_on_another_drive_is_named_by_its_whole_path(monkeypatch):
    def refuse(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", refuse)
    assert commands._typed(Path("/elsewhere/positron"), "no-such-program") == "/elsewhere/positron"
