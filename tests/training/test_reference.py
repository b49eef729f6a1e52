"""The reference of preference tuning: what a run needs of it is computed once, and what was computed survives every end."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, CommandProcess
from test_preference import GPT_CONFIG, PAIRS, base, objective, pair, preferred
from traces import same
from two_processes import TWO, as_torchrun

import positron.training.reference
from positron.data.preferences import Pair
from positron.model.gpt import GPT
from positron.prefer import prefer
from positron.run.folder import Run
from positron.run.paths import RunPaths
from positron.system.errors import UserError
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import Reference, read_reference, write_reference
from positron.training.reference import _identities

__all__ = ["base"]  # a fixture

MANY = [*PAIRS, *(pair("d" * (n % 7) + "?", "e" * (n % 11 + 1), "f" * (n % 4 + 1)) for n in range(200))]


class Killed(BaseException):
    """The end of a process; nothing catches it."""


def killed_after(calls: int, keep: Callable[[Reference], None]) -> Callable[[Reference], None]:
    """Return a function that calls `keep` the given number of times, and raises Killed at the last one."""
    rest = iter(range(calls - 1, -1, -1))

    def call(reference: Reference) -> None:
        keep(reference)
        if next(rest) == 0:
            raise Killed

    return call


def assert_same(a: Reference, b: Reference) -> None:
    for name in ("train", "val", "states", "head"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name


def test_a_computation_continues_after_any_micro_batch(tmp_path: Path) -> None:
    model, task, path = GPT(GPT_CONFIG).eval(), objective(), tmp_path / "reference.npz"
    whole = task.describe(model, torch.no_grad, 100)
    micro_batches: list[int] = []
    task.describe(model, torch.no_grad, 100, keep=lambda reference: micro_batches.append(reference.n_pairs))
    assert len(micro_batches) >= 4
    assert micro_batches[-1] == len(task.train) + len(task.val)
    for calls in range(1, len(micro_batches) + 1):
        keep = killed_after(calls, lambda reference: write_reference(path, reference, "a"))
        with pytest.raises(Killed):
            task.describe(model, torch.no_grad, 100, keep=keep)
        stored = read_reference(path, "a")
        assert stored is not None
        assert stored.n_pairs == micro_batches[calls - 1]
        assert_same(task.describe(model, torch.no_grad, 100, stored), whole)


def test_steps_read_only_pairs_that_were_computed_and_more_steps_add_the_rest() -> None:
    model, task = GPT(GPT_CONFIG).eval(), objective(MANY)
    whole = task.describe(model, torch.no_grad, 1000)
    assert not np.isnan(whole.train).any()
    reference: Reference | None = None
    counts = []
    for n_steps in (1, 7, 20, 1000):
        reference = task.describe(model, torch.no_grad, n_steps, reference)
        assert_same(task.describe(model, torch.no_grad, n_steps), reference)
        task.reference = reference
        for step in range(1, n_steps + 1):
            assert all(not log_probs.isnan().any() for _, _, log_probs in task.batch(step, 0, 1)), step
        assert not np.isnan(reference.val).any()
        assert not np.isnan(reference.states).any()
        counts.append(reference.n_pairs)
    assert counts[0] < counts[1] < counts[2] < counts[3]
    assert counts[0] < 60
    assert_same(reference, whole)


def test_a_reference_that_is_foreign_or_damaged_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    assert read_reference(path, "a") is None
    write_reference(path, Reference.empty(3, 2, 1, torch.ones(4, 2)), "a")
    assert read_reference(path, "b", "c") is None
    assert read_reference(path, "b", "a") is not None
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[:-40], content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert read_reference(path, "a") is None


@pytest.mark.parametrize("change", ["weights", "pairs", "tokenizer", "precision"])
def test_all_that_a_reference_depends_on_identifies_it(change: str) -> None:
    def identity(weights: str, pairs: list[Pair], tokenizer: str, precision: str) -> str:
        task: Any = objective(pairs)
        task.tokenizer = SimpleNamespace(hash=tokenizer)
        plan: Any = SimpleNamespace(machine=SimpleNamespace(precision=precision))
        return _identities(weights, task, plan)[0]

    usual: dict[str, Any] = {"weights": "w", "pairs": PAIRS, "tokenizer": "t", "precision": "fp32"}
    other = {"weights": "x", "pairs": [*PAIRS[:-1], pair("g?", "b", "c")], "tokenizer": "u", "precision": "bf16"}
    assert identity(**usual) == identity(**usual)
    assert identity(**usual) != identity(**{**usual, change: other[change]})


def interrupted(folder: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """Start a run that is killed after two micro-batches of its reference."""
    describe = PreferenceObjective.describe

    def describe_and_die(self: Any, model: Any, precision: Any, n_steps: Any, known: Any, keep: Any) -> Reference:
        return describe(self, model, precision, n_steps, known, killed_after(2, keep))

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceObjective, "describe", describe_and_die)
        patch.setattr(positron.training.reference, "WRITE_SECONDS", 0.0)
        patch.setattr(positron.training.reference, "WRITE_SHARE", 1e9)
        with pytest.raises(Killed):
            prefer(config, folder)
    return RunPaths(folder)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "truncated", "foreign"])
def test_a_run_killed_while_its_reference_is_computed_continues(
    damage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preferred(base, max_steps=4)
    run = interrupted(tmp_path / "killed", config, monkeypatch)
    if damage == "truncated":
        run.reference_path.write_bytes(run.reference_path.read_bytes()[:-40])
    elif damage == "foreign":
        write_reference(run.reference_path, Reference.empty(3, 2, 1, torch.ones(4, 2)), "other weights")
    prefer(config, tmp_path / "killed")
    prefer(config, tmp_path / "whole")
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert run.reference_path.read_bytes() == (tmp_path / "whole" / "reference.npz").read_bytes()
    log = run.log_path.read_text()
    assert ("an earlier start computed 4 pairs" in log) == (not damage)
    assert log.count("is damaged or belongs to other weights, pairs or settings") == bool(damage)


@pytest.mark.slow
def test_a_longer_run_computes_only_what_its_reference_lacks(base: Path, tmp_path: Path) -> None:
    short, long = (preferred(base, max_steps=steps, micro_batch_size=2) for steps in (1, 12))
    longer = dataclasses.replace(long, train=dataclasses.replace(long.train, extend=True))
    prefer(short, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    prefer(longer, tmp_path / "run")
    prefer(long, tmp_path / "whole")
    before, after, whole = (np.load(tmp_path / name / "reference.npz") for name in ("other", "run", "whole"))
    assert np.isnan(before["train"]).any()
    for name in after.files:
        assert np.array_equal(after[name], whole[name]), name
    assert "an earlier start computed" in (tmp_path / "run" / "train.log").read_text()
    Run(tmp_path / "other").update(validated_on="answers")  # otherwise the missing text of the base run is the error
    shutil.move(base / "base", base / "away")
    try:
        with pytest.raises(UserError, match=r"lacks pairs that the added steps read, .* was not found"):
            prefer(longer, tmp_path / "other")
    finally:
        shutil.move(base / "away", base / "base")


SLOWLY = """
import signal, time
import positron.training.reference as reference

def write_slowly(*arguments, write=reference.write_reference):
    write(*arguments)
    time.sleep(0.5)

reference.WRITE_SECONDS, reference.WRITE_SHARE, reference.write_reference = 0.0, 1e9, write_slowly
from positron.prefer import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background processes ignore Ctrl-C
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to other processes")
@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT"])
def test_a_command_that_was_ended_continues_with_one_process_or_two(
    end: str, base: Path, start: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    (tmp_path / "outputs").mkdir()
    shutil.copytree(base / "base", tmp_path / "outputs" / "b")
    shutil.copy(base / "pairs.jsonl", tmp_path)
    sizes = ("train.max_steps=2", "train.batch_tokens=512", "train.micro_batch_size=2", "train.sample_tokens=4")
    data = ("data=preferences", "data.path=pairs.jsonl", "data.val_fraction=0.2")
    arguments = ("init_from=b", *sizes, *data, "device=cpu", "precision=fp32")
    run = RunPaths(tmp_path / "outputs" / "p")
    command = [sys.executable, "-c", SLOWLY, *arguments, "name=p"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not run.reference_path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(getattr(signal, end))
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == (-9 if end == "SIGKILL" else 130), said
    assert "Traceback" not in said
    whole = start("prefer", *arguments, "name=whole").wait()
    assert whole.code == 0, whole.err
    assert "continuing at" not in whole.err
    if end == "SIGKILL":
        as_torchrun(start, "prefer", *arguments, *TWO, "name=p")
    else:
        result = start("prefer", *arguments, "name=p").wait()
        assert result.code == 0, result.err
    assert "continuing at" in run.log_path.read_text()
    assert run.reference_path.read_bytes() == (tmp_path / "outputs" / "whole" / "reference.npz").read_bytes()
    assert not list(run.folder.glob(".reference*"))


def test_a_full_disk_is_named_in_one_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write .*reference\.npz: No space left on device.*") as error:
        prefer(preferred(base, max_steps=1), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("*reference*"))
