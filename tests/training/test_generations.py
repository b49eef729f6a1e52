"""The rest of a budget on a small text: a second run, and a student of both, that the same command continues."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CommandProcess, tiny
from hypothesis import given
from hypothesis import strategies as st

from positron.config import Asked, PrecisionConfig, RunConfig
from positron.run.checkpoint import checkpoints
from positron.run.facts import Facts, write_record
from positron.run.folder import DISTILL, Run
from positron.train import train
from positron.training.budget import generations
from positron.training.budget.course import MEASURING_SHARE, RESERVED_SHARE, Course
from positron.training.budget.generations import train_generations
from positron.training.budget.rest import MAX_TEACHERS, advice_for_small_text, generations_time, teachers_within
from positron.training.budget.speed import Speed

SINGLE = Asked(auto_size=True, trains_generations=True)  # one command with model=auto


def advice(seconds_left: float, asked: Asked = SINGLE, **settings: Any) -> str:
    """Return the advice for a text of 100,000 tokens; a run that reads it 12 times takes 138 seconds.

    The budget is `seconds_left` and 30 seconds for measurements and imports.
    """
    config = tiny(Path(), budget=seconds_left + 30, **settings)
    return advice_for_small_text(
        config, asked, Course(1024, 1.2e6, 0.1, reads_all=True), Speed(1e-4, 0.0), seconds_left, 1e5
    )


def test_the_advice_says_what_the_rest_of_the_budget_trains() -> None:
    assert "then trains a second run with another seed, and a student that learns from both" in advice(4 * 138.0)
    assert "then trains a student that learns from it" in advice(3 * 138.0)
    assert "another run with another seed= and name= does" in advice(10 * 138.0, Asked(auto_size=True))  # in a sweep
    assert "another run with another seed= and name= does" in advice(
        10 * 138.0, dataclasses.replace(SINGLE, auto_size=False)
    )
    assert "another run with another seed= and name= does" in advice(10 * 138.0, train__extend=True)


def test_the_advised_budget_is_enough_for_a_student() -> None:
    for seconds_left in (150.0, 330.0, 337.0):  # a run and a student take 338.1 seconds
        (minutes,) = re.findall(r"^budget=(\d+)min also trains a student", advice(seconds_left))
        assert int(minutes) * 60 > seconds_left + 30, "a longer budget than the one that is not enough"
        left = int(minutes) * 60 * (1 - RESERVED_SHARE - MEASURING_SHARE)
        assert "then trains a student" in advice(left)
        assert "also trains a student" in advice(left - 61)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Run]:
    """A finished run with a budget, and the configuration of its command."""
    folder = tmp_path_factory.mktemp("generations")
    config = tiny(folder, name="mine", train__max_steps=4)
    train(config, folder / "mine")
    train_settings = dataclasses.replace(config.train, max_steps="auto")
    return dataclasses.replace(config, budget="1h", train=train_settings, seed=7), Run(folder / "mine")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Path, list[str]]]:
    """The runs that are trained, instead of being trained."""
    runs: list[tuple[RunConfig, Path, list[str]]] = []

    def note(config: RunConfig, folder: Path, callbacks: list[str], *_: object) -> Facts:
        runs.append((config, folder, callbacks))
        return Facts(status="finished")

    monkeypatch.setattr(generations, "train_on_text", note)
    return runs


def test_the_second_run_and_the_student_have_the_settings_of_the_first_run_and_other_seeds(
    first: tuple[RunConfig, Run], trained: list[tuple[RunConfig, Path, list[str]]]
) -> None:
    config, run = first
    yielded = [each.folder.name for each in train_generations(config, run, lambda: ["new"], SINGLE)]
    assert yielded == ["mine-2", "mine-student"] == [folder.name for _, folder, _ in trained]
    assert [each.seed for each, _, _ in trained] == [8, 9]
    assert trained[0][2] is not trained[1][2]  # each run has its own callbacks
    for each, folder, _ in trained:
        assert (each.name, each.budget, each.train.max_steps) == (folder.name, None, 4)
        assert folder.parent == run.folder.parent
    (second, _, _), (student, _, _) = trained
    assert second.distill is None
    assert student.distill is not None
    assert [Path(name).name for name in student.distill.teachers] == ["mine", "mine-2"]


def test_all_generations_compute_in_the_precision_of_the_first_run(
    first: tuple[RunConfig, Run], trained: list[tuple[RunConfig, Path, list[str]]]
) -> None:
    config, run = first
    config = dataclasses.replace(config, precision=PrecisionConfig("auto"))
    assert len(list(train_generations(config, run, list, SINGLE))) == 2
    assert [each.precision.dtype for each, _, _ in trained] == [run.resolved().precision] * 2 == ["fp32"] * 2


def test_the_student_learns_from_one_run_if_the_time_is_not_enough_for_two(
    first: tuple[RunConfig, Run], trained: list[tuple[RunConfig, Path, list[str]]]
) -> None:
    config, run = first
    time_s = run.facts().time_s
    assert time_s is not None
    config = dataclasses.replace(config, budget=f"{3.5 * time_s}s")  # 85 % of it are for training
    assert [each.folder.name for each in train_generations(config, run, list, SINGLE)] == ["mine-student"]
    ((student, _, _),) = trained
    assert student.distill is not None
    assert [Path(name).name for name in student.distill.teachers] == ["mine"]


@given(left=st.floats(1e-3, 1e6), run_s=st.floats(1e-3, 1e5))
def test_all_runs_fit_in_the_time_and_with_one_more_teacher_they_would_not(left: float, run_s: float) -> None:
    teachers = teachers_within(left, run_s)
    assert 0 <= teachers <= MAX_TEACHERS
    assert not teachers or generations_time(run_s, teachers) <= left
    assert teachers == MAX_TEACHERS or generations_time(run_s, teachers + 1) > left


@pytest.mark.parametrize(
    ("asked", "budget", "changes"),
    [
        (Asked(auto_size=True), "1h", {}),  # a job of a sweep
        (Asked(trains_generations=True), "1h", {}),  # a model of a given size
        (SINGLE, "1h", {"init_from": "base"}),
        (SINGLE, "1h", {"ckpt_path": "latest"}),
        (SINGLE, None, {}),
        (SINGLE, "1ms", {}),  # too short for two runs
    ],
)
def test_other_commands_train_one_run(
    first: tuple[RunConfig, Run],
    trained: list[tuple[RunConfig, Path, list[str]]],
    asked: Asked,
    budget: str | None,
    changes: dict[str, Any],
) -> None:
    config, run = first
    budget = "0.001s" if budget == "1ms" else budget
    assert not list(train_generations(dataclasses.replace(config, budget=budget, **changes), run, list, asked))
    assert not trained


def test_a_run_that_is_not_finished_is_not_followed(
    first: tuple[RunConfig, Run], trained: list[tuple[RunConfig, Path, list[str]]], tmp_path: Path
) -> None:
    config, run = first
    shutil.copytree(run.folder, tmp_path / "mine")
    Run(tmp_path / "mine").update(status="stopped")
    assert not list(train_generations(config, Run(tmp_path / "mine"), list, SINGLE))
    assert not trained


def test_a_second_run_that_is_stopped_is_no_teacher(
    first: tuple[RunConfig, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = first
    monkeypatch.setattr(generations, "train_on_text", lambda *_: Facts(status="stopped"))
    assert [each.folder.name for each in train_generations(config, run, list, SINGLE)] == ["mine-2"]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("mine-student is not trained yet: give the same command again")


@pytest.mark.parametrize("name", ["mine-2", "mine-student"])
def test_a_run_of_another_command_is_not_continued_and_not_an_error_after_the_first_run(
    first: tuple[RunConfig, Run],
    trained: list[tuple[RunConfig, Path, list[str]]],
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as the second run of an earlier command with a shorter budget."""
    config, run = first
    for copy in ("mine", name):
        shutil.copytree(run.folder, tmp_path / copy)
    own, other = Run(tmp_path / "mine"), Run(tmp_path / name)
    assert not list(train_generations(config, own, list, SINGLE))
    assert not trained
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{other.folder} contains a run that another command trained" in said
    shutil.rmtree(other.folder)
    assert len(list(train_generations(config, own, list, SINGLE))) == 2
    for settings, folder, _ in list(trained):  # its own runs are continued
        shutil.copytree(run.folder, folder)
        write_record(Run(folder).config_path, dataclasses.asdict(settings))
    assert len(list(train_generations(config, own, list, SINGLE))) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to other processes")
def test_an_interrupted_budget_is_continued_where_it_was_and_ends_with_a_student(
    tmp_path: Path, start: Callable[..., CommandProcess]
) -> None:
    (tmp_path / "mine.txt").write_text("The cat sat on the mat, and the dog ate the log.\n" * 100)
    words = ("model=auto", "model.n_layer=1", "model.d_model=64", "budget=10min", "data=text", "data.path=mine.txt")
    words = (*words, "name=mine", "tokenizer=char", "device=cpu", "train.sample_tokens=2")
    training = start("train", *words)
    second = tmp_path / "outputs" / "mine-2"
    while not checkpoints(second / "checkpoints"):
        assert training.process.is_alive(), "it ended before it was interrupted"
        time.sleep(0.01)
    os.kill(training.process.pid, signal.SIGINT)
    assert training.wait().code == 130
    before = (tmp_path / "outputs" / "mine" / "metrics.jsonl").read_bytes()
    result = start("train", *words).wait()
    assert result.code == 0, result.err
    assert (tmp_path / "outputs" / "mine" / "metrics.jsonl").read_bytes() == before
    names = ["mine", "mine-2", "mine-student"]
    runs = [Run(tmp_path / "outputs" / name) for name in names]
    assert [run.facts().status for run in runs] == ["finished"] * len(names)
    assert runs[-1].kind == DISTILL
    assert [Path(name).name for name in json.loads(runs[-1].config_path.read_text())["distill"]["teachers"]] == names[
        :-1
    ]
    again = start("train", *words).wait()
    assert again.code == 0
    assert again.err.count("nothing to do") == len(names)
    assert "the rest of budget=10min trains outputs/mine-2" in result.err
