"""The runs of a sweep, of a research and of a budget compute in the precision that the first of them chose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny

import positron.train
from positron import research
from positron.cli.request import compose_request
from positron.cli.sweeps import _sweep_job
from positron.config import PrecisionConfig, RunConfig
from positron.run.common_precision import with_common_precision, with_model
from positron.run.differences import differences
from positron.run.facts import Facts, write_record
from positron.run.folder import OUTPUTS, Run
from positron.train import configure

AUTO = tiny(Path(), precision=PrecisionConfig("auto"))


def resolved(precision: str | None) -> dict[str, Any]:
    sizes = {"batch_tokens": 512, "micro_batch_size": 16, "max_steps": 40}
    return sizes if precision is None else {**sizes, "precision": precision}


def recorded(folder: Path, precision: str | None, config: RunConfig = AUTO) -> Run:
    """Write what a run records when it begins; `precision` is what replaced auto (None: an older version)."""
    folder.mkdir(parents=True)
    write_record(folder / "config.json", dataclasses.asdict(config))
    write_record(folder / "run.json", {"resolved": resolved(precision)})
    return Run(folder)


def test_auto_becomes_the_precision_of_the_first_run_that_recorded_one(tmp_path: Path) -> None:
    new, old, first = Run(tmp_path / "new"), recorded(tmp_path / "old", None), recorded(tmp_path / "first", "bf16")
    second = recorded(tmp_path / "second", "fp32")
    damaged = recorded(tmp_path / "damaged", "fp32")
    damaged.facts_path.write_text("[")
    assert with_common_precision(AUTO, new, [new, old, damaged, first, second]).precision.dtype == "bf16"
    assert with_common_precision(AUTO, new, [new, old, damaged]) == AUTO
    fp16 = dataclasses.replace(AUTO, precision=PrecisionConfig("fp16"))
    assert with_common_precision(fp16, new, [first]) == fp16


def test_jobs_of_a_sweep_with_another_model_choose_their_own_precision(tmp_path: Path) -> None:
    small, damaged, new = (
        recorded(tmp_path / "small", "fp32"),
        recorded(tmp_path / "damaged", "bf16"),
        Run(tmp_path / "new"),
    )
    damaged.config_path.write_text("[")
    large = tiny(Path(), model__d_model=64).model
    assert list(with_model(AUTO.model, [new, damaged, small])) == [small]
    assert list(with_model(large, [new, damaged, small])) == []


def test_a_run_with_a_checkpoint_keeps_its_own_precision(tmp_path: Path) -> None:
    fp32 = dataclasses.replace(AUTO, precision=PrecisionConfig("fp32"))
    first = recorded(tmp_path / "first", "bf16")
    for name, at_start in (("auto", AUTO), ("common", fp32)):
        own = recorded(tmp_path / name, "fp32", at_start)
        own.checkpoint_folder.mkdir()
        (own.checkpoint_folder / "step-000002.ckpt").touch()
        assert with_common_precision(AUTO, own, [first]) == at_start


@pytest.mark.parametrize(("asked", "differs"), [("auto", False), ("bf16", False), ("fp32", True)])
@pytest.mark.parametrize("at_start", ["auto", "bf16"])
def test_auto_is_the_precision_that_replaced_it(tmp_path: Path, at_start: Any, asked: Any, differs: bool) -> None:
    run = recorded(tmp_path / "run", "bf16", dataclasses.replace(AUTO, precision=PrecisionConfig(at_start)))
    changed = differences(run, dataclasses.replace(AUTO, precision=PrecisionConfig(asked)))
    assert changed == (["precision.dtype: bf16 -> fp32"] if differs else [])


@pytest.mark.parametrize("command", ["sweep", "research"])
def test_later_runs_have_the_precision_of_the_first(tmp_path: Path, monkeypatch: Any, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("positron.cli.sweeps.write_sweep_report", lambda _: None)
    trained: list[str] = []

    def train(config: RunConfig, folder: Path, *_: Any) -> Facts:
        trained.append(config.precision.dtype)
        write_record(Run(folder).config_path, dataclasses.asdict(config))
        Run(folder).update(resolved=resolved("bf16" if len(trained) == 1 else "fp32"))
        return Facts(status="finished", val_bpb=1.0)

    for number in range(3):
        overrides = ["model=debug", f"seed={number}"]
        if command == "research":
            folder = OUTPUTS / "research" / "r" / ("base" if number == 0 else "other") / str(number)
            folder.mkdir(parents=True)
            monkeypatch.setattr(positron.train, "train", train)
            research._train(overrides, folder)
        else:
            hydra = SimpleNamespace(
                sweep=SimpleNamespace(dir=tmp_path / "s"),
                job=SimpleNamespace(num=number),
                launcher=SimpleNamespace(_target_="BasicLauncher"),
                sweeper=SimpleNamespace(_target_="BasicSweeper"),
            )
            request = compose_request("train", [*overrides, "name=s"])
            _sweep_job(hydra, overrides, request, configure, train)
    assert trained == ["auto", "bf16", "bf16"]
