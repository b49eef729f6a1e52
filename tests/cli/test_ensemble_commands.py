"""Several runs as one model: `--run a,b` of evaluate, generate and chat, and a list of runs in Python."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, tiny
from interop.saved_runs import gpt_config, random_model, save_run, word

import positron
from positron.evaluate import arguments, as_text, figures
from positron.run.ensemble import find_runs
from positron.run.folder import Run
from positron.stories import documents
from positron.system.errors import UserError
from positron.train import train

SHORT = ("--limit", "2000")
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kept_run: Run, chat_run: Run) -> Path:
    """Runs of one text and tokenizer: a, its copies, and b of another seed; two that chat; others that do not fit them."""
    folder = tmp_path_factory.mktemp("ensembles")
    outputs = folder / "outputs"
    for name, run in {"a": kept_run, "copy": kept_run, "x,y": kept_run, "talk": chat_run, "talk2": chat_run}.items():
        shutil.copytree(run.folder, outputs / name)
    data, settings = kept_run.folder.parents[1], {"train__max_steps": 10, "train__val_every": 10, "seed": 2}
    train(tiny(data, name="b", model__context_length=64, **settings), outputs / "b")
    train(tiny(data, name="short", **settings), outputs / "short")
    train(tiny(folder, name="other", data__seed=7, **settings), outputs / "other")
    save_run(outputs / "words", random_model(gpt_config(word().vocab_size)), word())
    (folder / "my.txt").write_text("Tom had a kite. " * 60)
    (folder / "story.txt").write_text(next(iter(documents(seed=3, start=0, stop=1))).text)
    return folder


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call the `main` of a command in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def call(name: str, *words: str) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *words])
        code = 0
        try:
            importlib.import_module(f"positron.{name}").main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Result(code, *capsys.readouterr())

    return call


def measured(*words: str) -> dict:
    return figures(arguments().parse_args(list(words)))


def test_evaluate_measures_an_ensemble_its_runs_and_the_gain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    facts, alone = positron.evaluate(["a", "b"], limit=2000), [positron.evaluate(name, limit=2000) for name in "ab"]
    assert [member["bpb"] for member in facts["members"]] == [each["bpb"] for each in alone]
    assert facts["bpb"] < sum(each["bpb"] for each in alone) / 2
    assert facts["parameters"] == sum(each["parameters"] for each in alone)
    for key in ("documents", "bytes", "tokens", "floor_bpb", "interval_over"):
        assert facts[key] == alone[0][key] == alone[1][key]
    assert not {"members", "gain_over_mean"} & alone[0].keys()
    shown = as_text(facts)
    for what in (
        "bits per byte: outputs/a\n",
        "bits per byte: outputs/b\n",
        "over the mean of the runs",
        "over the best run",
    ):
        assert what in shown


def test_evaluate_prints_the_figures_of_an_ensemble_as_json(call: Callable[..., Result]) -> None:
    result = call("evaluate", "--run", "a,b", "--text", "my.txt", "--json")
    assert len(json.loads(result.out)["members"]) == 2, result.err


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_copy_changes_no_score(weights: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    one, two = (measured("--run", name, "--text", "my.txt", "--weights", weights) for name in ("a", "a,copy"))
    assert two["bpb"] == pytest.approx(one["bpb"], rel=1e-9)
    assert two["bpb_interval"] == pytest.approx(one["bpb_interval"], rel=1e-6)


@pytest.mark.slow
def test_the_stories_and_answers_of_an_ensemble_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    asked = ("--stories", "--instruct", "--count", "1", *SHORT)
    one, two = (measured("--run", name, *asked) for name in ("talk", "talk,talk2"))
    assert (one["stories"], one["instruct"]) == (two["stories"], two["instruct"])


@pytest.mark.parametrize("name", ["a,copy", "copy, a", "outputs/a,copy", "x,y", "a,x,y", "x,y,a"])
def test_copies_of_a_run_write_what_the_run_writes(call: Callable[..., Result], name: str) -> None:
    """Also a run whose own name has a comma."""
    wanted, found = (call("generate", "Tom had", "--run", one, *GREEDY) for one in ("a", name))
    assert (found.code, found.out) == (0, wanted.out), found.err
    assert found.err.count("best.ckpt") == len(find_runs(name)) == (1 if name == "x,y" else 2)


def test_two_copies_of_a_model_are_named(call: Callable[..., Result]) -> None:
    said = "outputs/a and outputs/copy have the same weights, which therefore count twice: name only one of the two"
    assert said in call("generate", "Tom", "--run", "a,copy", "--max-tokens", "1").err
    assert said not in call("generate", "Tom", "--run", "a,b", "--max-tokens", "1").err


@pytest.mark.slow
def test_an_ensemble_writes_several_texts_with_a_draft_or_in_columns(call: Callable[..., Result]) -> None:
    ensemble = ("--run", "a,b", "--max-tokens", "12")
    several = call("generate", "Tom", *ensemble, "--num-samples", "2", "--json")
    texts = [json.loads(line)["text"] for line in several.out.splitlines()]
    assert len(set(texts)) == 2, several.err
    assert call("generate", "Tom", *ensemble).out == f"Tom{texts[0]}\n"
    greedy = (*ensemble, "--temperature", "0")
    assert call("generate", "Tom", *greedy).out == call("generate", "Tom", *greedy, "--draft", "b").out
    assert call("generate", "Tom", *ensemble, "--compare").out.startswith("precise")


def test_an_ensemble_chats_as_one_model(call: Callable[..., Result]) -> None:
    wanted, found = (call("chat", "Hello", "--run", name, *GREEDY) for name in ("talk", "talk,talk2"))
    assert (found.code, found.out) == (0, wanted.out), found.err
    begun = call("chat", "Once", "--run", "a,b", *GREEDY)
    assert begun.out.startswith("Once"), begun.err  # runs that do not chat continue a text, as one of them does


def test_the_shortest_context_counts_and_is_named(call: Callable[..., Result]) -> None:
    result = call("evaluate", "--run", "a,short", "--text", "my.txt")
    assert result.code == 0, result.err
    assert "the context is 32 tokens, because outputs/short reads no more; another run reads 64" in result.err
    assert "window          32 tokens" in result.out


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("generate", ("--run", "a,outputs/a"), "outputs/a is named twice"),
        ("generate", ("--run", "a,"), "the list of runs 'a,' has an empty name before or after a comma"),
        ("generate", ("--run", "a,,b"), "has an empty name before or after a comma"),
        ("generate", ("--run", "a,nobody"), "there is no run nobody"),
        ("generate", ("--run", "a,b,words"), "outputs/a and outputs/words have different tokenizers"),
        (
            "chat",
            ("Hello", "--run", "talk,a,b"),
            "cannot answer together with the others: leave outputs/a,outputs/b out",
        ),
        ("evaluate", ("--run", "talk,a", "--instruct", *SHORT), "outputs/a was not fine-tuned"),
        ("evaluate", ("--run", "a,other", *SHORT), "outputs/a and outputs/other have different validation texts"),
        ("evaluate", ("--run", "a,other", "--text", "story.txt", "--stories"), "were trained on different texts"),
        ("evaluate", ("--run", "a,short", "--stride", "40", *SHORT), "between 1 and the context length 32"),
        ("look", ("a,nobody",), "there is no run a,nobody"),
        ("look", ("a,b",), "a,b names 2 runs, but only one run can be named here"),
        ("export", ("a,x,y", "--to", "hf"), "a,x,y names 2 runs"),
        ("bench", ("--run", "a,b"), "a,b names 2 runs"),
        ("reproduce", ("a,b",), "a,b names 2 runs"),
        ("generate", ("Tom", "--run", "a", "--draft", "a,b"), "a,b names 2 runs"),
        ("compare", ("a,b", "a"), "separated by spaces"),
        ("serve", ("a,b",), "separated by spaces"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused_in_one_line(
    call: Callable[..., Result], command: str, words: tuple[str, ...], says: str
) -> None:
    result = call(command, *words)
    assert result.code == 2, result.err
    assert says in result.err.splitlines()[-1]


def test_several_runs_are_loaded_as_one_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    several = positron.load([folder / "outputs" / "a", "copy", Run(folder / "outputs" / "x,y")])
    texts = [
        model.generate("Tom", max_tokens=12, seed=1) for model in (several, positron.load(["a"]), positron.load("a"))
    ]
    assert len(set(texts)) == 1
    for wrong, says in (
        ([], "the list of runs is empty"),
        ([3], "3 is of type int, not a run"),
        (3, "of type int, not a run"),
    ):
        with pytest.raises(UserError, match=says):
            positron.load(wrong)
