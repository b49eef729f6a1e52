"""The reference of preference tuning: a computation that was interrupted continues, and the result is the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_preference import GPT_CONFIG, base, objective, preferred
from traces import same

import positron.training.reference
from positron.model.gpt import GPT
from positron.prefer import prefer
from positron.run.paths import RunPaths
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import (
    Reference,
    ReferencePart,
    read_reference_part,
    write_reference_part,
)

__all__ = ["base"]  # a fixture


class Killed(BaseException):
    """The end of a process; nothing catches it."""


def killed_after(calls: int, keep: Callable[[ReferencePart], None]) -> Callable[[ReferencePart], None]:
    """Return a function that calls `keep` the given number of times, and raises Killed at the last one."""
    rest = iter(range(calls - 1, -1, -1))

    def call(part: ReferencePart) -> None:
        keep(part)
        if next(rest) == 0:
            raise Killed

    return call


def assert_same(a: Reference, b: Reference) -> None:
    for name in ("train", "val", "states", "head"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_a_computation_continues_after_any_micro_batch(tmp_path: Path) -> None:
    model, task, path = GPT(GPT_CONFIG).eval(), objective(), tmp_path / "part.npz"
    whole = task.describe(model, torch.no_grad)
    micro_batches: list[int] = []
    task.describe(model, torch.no_grad, keep=lambda part: micro_batches.append(part.n_pairs))
    assert len(micro_batches) >= 4
    assert micro_batches[-1] == task.n_pairs
    for calls in range(1, len(micro_batches) + 1):
        with pytest.raises(Killed):
            task.describe(
                model, torch.no_grad, keep=killed_after(calls, lambda part: write_reference_part(path, part, "a"))
            )
        part = read_reference_part(path, "a")
        assert part is not None
        assert part.n_pairs == micro_batches[calls - 1]
        assert_same(task.describe(model, torch.no_grad, part), whole)


def test_a_part_that_is_foreign_or_damaged_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    assert read_reference_part(path, "a") is None
    write_reference_part(path, ReferencePart([np.zeros((3, 2), np.float32)]), "a")
    assert read_reference_part(path, "b") is None
    assert read_reference_part(path, "a") is not None
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[:-40], content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert read_reference_part(path, "a") is None


def interrupted(folder: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """Start a run that is killed after two micro-batches of its reference."""
    describe = PreferenceObjective.describe

    def describe_and_die(self: PreferenceObjective, model: Any, precision: Any, part: Any, keep: Any) -> Reference:
        return describe(self, model, precision, part, killed_after(2, keep))

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceObjective, "describe", describe_and_die)
        patch.setattr(positron.training.reference, "PART_SECONDS", 0.0)
        with pytest.raises(Killed):
            prefer(config, folder)
    return RunPaths(folder)


@pytest.mark.parametrize("damage", ["", "truncated", "foreign"])
def test_a_run_killed_while_its_reference_is_computed_continues(
    damage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preferred(base, max_steps=4)
    run = interrupted(tmp_path / "killed", config, monkeypatch)
    assert not run.reference_path.exists()
    if damage == "truncated":
        run.reference_part_path.write_bytes(run.reference_part_path.read_bytes()[:-40])
    elif damage == "foreign":
        write_reference_part(run.reference_part_path, ReferencePart([np.ones((8, 2), np.float32)]), "other weights")
    prefer(config, tmp_path / "killed")
    prefer(config, tmp_path / "whole")
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert run.reference_path.read_bytes() == (tmp_path / "whole" / "reference.npz").read_bytes()
    assert not run.reference_part_path.exists()
    log = run.log_path.read_text()
    assert ("an earlier start computed 4 pairs" in log) == (not damage)
    assert ("is damaged or belongs to another reference" in log) == bool(damage)
