"""What `positron.generate` takes: options by mode, prompts as bytes, and what it prints on a terminal."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, tiny

from positron.cli.sampling_options import chosen_sampling, sampling_options
from positron.inference.arguments import standard_input_lines
from positron.inference.sampling import Sampling
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    train(tiny(made, train__max_steps=3), made / "outputs" / "r")
    return made


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Tom", "--compare", "--json"], "--compare does not use --json"),
        (["Tom", "--compare", "--stop", " ", "--num-samples", "3"], "--compare does not use --num-samples, --stop"),
        (["Tom", "--compare", "--temperature", "0"], "--compare does not use --temperature"),
        (["Tom", "--compare", "--preset", "creative"], "--compare does not use --preset"),
        (["Tom", "--compare", "--num-samples", "1"], "--compare does not use --num-samples"),
        (
            ["Tom", "--seed", "99999999999999999999999"],
            "seed must be between -9223372036854775808",
        ),
        (["Tom", "--seed", str(2**64 - 1), "--num-samples", "2"], "the 2 texts use the seeds"),
        (["\udcff bad"], "the prompt is not UTF-8: byte 0 is 0xff"),
        (["Tom \udce9t\udce9"], "the prompt is not UTF-8: byte 4 is 0xe9"),
        (["--file", "utf16.txt"], "is not UTF-8: byte 0 is 0xff; it looks like UTF-16"),
        (["--file", "empty.txt"], "--file empty.txt is empty: give a text there, or give the prompt as an argument"),
        (["-"], "standard input is empty: give a text there, or give the prompt as an argument"),
        (["--file", "latin.txt"], "is not UTF-8: byte 4 is 0xe9; give it as UTF-8"),
        (
            ["Once", "upon"],
            "unrecognized arguments: upon; put a text of several words in quotes, and name the run with --run",
        ),
        (["Once", "max_tokens=4"], "unrecognized arguments: max_tokens=4; did you mean --max-tokens 4?"),
        (["Tom", "--stop", ""], "an empty stop string"),
        (
            ["Tom", "--weights", "int3"],
            "--weights int3 is not a weight precision: choose from fp32, bf16, int8",
        ),
        (["Tom", "--preset", "creativ"], "there is no preset creativ: did you mean creative?"),
    ],
)
def test_what_generate_cannot_use_is_refused_in_one_line_before_the_run_is_loaded(
    folder: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from positron import generate

    (folder / "utf16.txt").write_bytes("Tom".encode("utf-16"))
    (folder / "empty.txt").write_bytes(b"\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    (folder / "latin.txt").write_bytes("Tom était".encode("latin-1"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["generate", *arguments, "--run", "no such run"])
    with pytest.raises(SystemExit) as ended:
        generate.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("generate", ["-p", "Tom"], "give the text without -p, in quotes"),
        ("generate", ["--start=Tom"], "give the text without --start, in quotes"),
        ("chat", ["--prompt", "Tom"], "give the text without --prompt, in quotes"),
        ("generate", ["-m", "r"], "did you mean --run?"),
        ("generate", ["Tom", "--n-predict", "9"], "did you mean --max-tokens?"),
        ("generate", ["--interactive"], "chat is the command for a conversation"),
        ("evaluate", ["r"], "did you mean --run r?"),
        ("bench", ["r"], "did you mean --run r?"),
        ("look", ["-m", "r"], "name the run without -m"),
        ("dashboard", ["--no-open"], "leave --no-open out, because it is the default"),
        ("serve", ["r", "--open"], "leave --open out, because it is the default"),
        ("look", ["--run", "r", "Tom"], "name the run without --run"),
        ("export", ["--run=r", "--to", "hf"], "name the run without --run"),
        ("compare", ["--runs", "r", "s"], "name the run without --runs"),
    ],
)
def test_options_of_other_tools_and_a_run_without_an_option_are_answered_with_the_way_to_give_them(
    name: str, arguments: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=f"; .*{re.escape(says)}$"):
        importlib.import_module(f"positron.{name}").arguments().parse_args(arguments)


def test_a_prompt_that_is_the_name_of_a_run_is_said_to_be_a_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from positron import generate

    monkeypatch.chdir(folder)
    for words in (["r"], ["outputs/r"], ["Tom"], ["r", "--run", "r"]):
        monkeypatch.setattr(sys, "argv", ["generate", *words, "--max-tokens", "1"])
        generate.main()
        is_said = f"{words[0]} is read as a text" in capsys.readouterr().err
        assert is_said == (words in (["r"], ["outputs/r"]))


def prompt_of(*arguments: str) -> str:
    from positron import generate

    return generate.read_prompt(generate.arguments().parse_args(list(arguments)))


def test_a_byte_order_mark_is_not_part_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\xef\xbb\xbfTom had\r\n"
    (tmp_path / "b.txt").write_bytes(content)
    assert prompt_of("--file", str(tmp_path / "b.txt")) == prompt_of("\ufeffTom had") == "Tom had"
    for arguments in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert prompt_of(*arguments) == "Tom had"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfeTom", "byte 0 is 0xff; it looks like UTF-16"),
        (b"caf\xe9", "byte 3 is 0xe9"),
        (b"a\xed\xa0\x80", "byte 1 is 0xed"),
    ],
)
def test_bytes_of_a_pipe_that_are_not_utf8_are_named(
    content: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError, match=f"the prompt is not UTF-8: {says}"):
        prompt_of()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\n" + content + b"\n")))
    with pytest.raises(UserError, match=f"line 2 of the questions is not UTF-8: {says.partition(';')[0]}"):
        list(standard_input_lines("the questions"))


@pytest.mark.parametrize("program", ["generate", pytest.param("chat", marks=pytest.mark.slow)])
def test_a_closed_stdin_is_an_empty_one(program: str, tmp_path: Path) -> None:
    """The prompt is read before the run is looked for, so that this needs no run."""
    closed = f'"{sys.executable}" -m positron.{program} --run nothing 0<&-'
    done = subprocess.run(
        ["bash", "-c", closed],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("positron: there is no run nothing")


def test_a_stop_text_counts_only_the_tokens_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from positron import generate

    monkeypatch.chdir(folder)

    def facts(*options: str) -> dict[str, Any]:
        arguments = ["generate", "Tom", "--run", "r", "--json", "--max-tokens", "40", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        generate.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    text = facts()["text"]
    stop = text[5]
    found = facts("--stop", stop)
    assert (found["text"], found["tokens"], found["ended"]) == (text[: text.index(stop)], text.index(stop), True)


@pytest.mark.parametrize("options", [[], ["--num-samples", "2"], ["--compare"], ["--json"]])
def test_generate_prints_no_terminal_commands(
    folder: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the prompt (a file of somebody) and those that the model writes, which come token by token."""
    from positron import generate

    monkeypatch.setattr(CharTokenizer, "bytes_of", lambda tokenizer, i: (b"\x1b", b"\x9b", b"]0;\xc2\x9b", b"a")[i % 4])
    monkeypatch.chdir(folder)
    arguments = ["Tom\x1b[31m", "--run", "r", "--max-tokens", "20", "--seed", "1", *options]
    monkeypatch.setattr(CharTokenizer, "encode", lambda tokenizer, text: [6] * len(text))
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    generate.main()
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\x07"} & set(shown)
    assert "Tom" in shown
    if options == ["--json"]:
        assert json.loads(shown)["prompt"] == "Tom\x1b[31m"


def test_last_n_reaches_the_sampling_and_needs_a_penalty() -> None:
    def chosen(*arguments: str) -> Sampling:
        parser = argparse.ArgumentParser()
        sampling_options(parser)
        return chosen_sampling(parser.parse_args(arguments))

    assert chosen("--repetition-penalty", "1.2", "--last-n", "7").last_n == 7
    assert chosen("--preset", "creative", "--last-n", "7").last_n == 7
    with pytest.raises(UserError, match="--last-n has no effect with a repetition penalty of 1"):
        chosen("--last-n", "7")
