"""Weights that are kept from the whole training: when, and the same however often the run was stopped."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import same, weights
from tuning import tuned

from positron.config import LoraConfig, SFTConfig
from positron.run.folder import Run
from positron.run.kept_weights import KeptWeights, history_steps, read_kept_weights
from positron.run.load import bare_names, load_kept_model, load_model
from positron.sft import sft
from positron.system.errors import UserError
from positron.train import train

COUNT = 5


@given(st.integers(0, 60), st.integers(1, 10**6))
@settings(max_examples=200, deadline=None)
def test_steps_are_as_many_as_asked_for_and_end_at_the_horizon(count, horizon):
    steps = sorted(history_steps(count, horizon))
    assert len(steps) == min(count, horizon + 1)
    if count:
        assert steps[-1] == horizon
    if count > 1:
        assert steps[0] == 0
    gaps = [b - a for a, b in pairwise(steps)]
    assert all(gap > 0 for gap in gaps)


def test_steps_have_nearly_equal_ratios():
    steps = sorted(history_steps(20, 100_000))
    assert steps[:3] == [0, 1, 2]
    ratios = [b / a for a, b in pairwise(steps[6:])]
    assert max(ratios) / min(ratios) < 1.05
    assert math.prod(ratios) == pytest.approx(100_000 / steps[6])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(folder, train__keep_history=COUNT), folder / "run")
    train(tiny(folder), folder / "plain")
    return folder


def contents(folder: Path) -> dict[int, bytes]:
    return {kept.step: kept.path.read_bytes() for kept in Run(folder).history}


@pytest.mark.slow
def test_a_run_keeps_the_weights_of_each_step_and_learns_the_same(whole):
    run = Run(whole / "run")
    assert {kept.step for kept in run.history} == history_steps(COUNT, 40)
    assert same(whole / "run", whole / "plain")
    assert Run(whole / "plain").history == []
    assert not (whole / "plain" / "history").exists()
    last = bare_names(weights(whole / "run"))
    kept = read_kept_weights(run.history[-1])
    assert kept.keys() == last.keys()
    assert all(torch.equal(kept[name], last[name]) for name in last)


@pytest.mark.slow
def test_kept_weights_load_as_the_runs_model(whole):
    run = Run(whole / "run")
    model, _, _ = load_model(run, run.checkpoint_folder / "step-000040.ckpt")
    idx = torch.arange(20)[None]
    assert torch.equal(load_kept_model(run, run.history[-1])(idx), model(idx))
    assert not torch.equal(load_kept_model(run, run.history[0])(idx), model(idx))


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_the_same_bytes(whole, tmp_path):
    config = tiny(tmp_path, train__keep_history=COUNT)
    folder = tmp_path / "run"
    train(tiny(tmp_path, train__keep_history=COUNT, train__stop_at=16), folder)
    assert {kept.step for kept in Run(folder).history} == {step for step in history_steps(COUNT, 40) if step <= 16}
    (folder / "history" / "step-000033.safetensors").write_bytes(b"of a process that was killed")
    train(config, folder)
    assert contents(folder) == contents(whole / "run")


@pytest.mark.slow
def test_a_longer_horizon_adds_steps_and_keeps_the_earlier_ones(whole, tmp_path):
    folder = tmp_path / "run"
    train(tiny(tmp_path, train__keep_history=COUNT, train__stop_at=16), folder)
    before = contents(folder)
    train(tiny(tmp_path, train__keep_history=COUNT, train__max_steps=60, train__extend=True), folder)
    after = contents(folder)
    later = {step for step in history_steps(COUNT, 60) if step > 16}
    assert after.keys() == before.keys() | later
    assert all(after[step] == content for step, content in before.items())


@pytest.mark.slow
def test_a_run_can_keep_weights_from_a_later_start_on(whole, tmp_path):
    folder = tmp_path / "run"
    train(tiny(tmp_path, train__stop_at=16), folder)
    train(tiny(tmp_path, train__keep_history=COUNT), folder)
    kept, all_of_them = contents(folder), contents(whole / "run")
    assert kept == {step: content for step, content in all_of_them.items() if step > 16}


def test_a_fine_tuned_run_keeps_its_weights_with_lora_merged(tmp_path):
    train(tiny(tmp_path, train__max_steps=4, model__context_length=64), tmp_path / "base")
    record = {"instruction": "The hat?", "output": "It is red."}
    (tmp_path / "conversations.jsonl").write_text(f"{json.dumps(record)}\n" * 60)
    config = tuned(tmp_path, sft=SFTConfig(lora=LoraConfig(rank=2), patience=0))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=3, keep_history=2))
    sft(config, tmp_path / "tuned")
    run = Run(tmp_path / "tuned")
    assert [kept.step for kept in run.history] == [0, 3]
    idx = torch.arange(20)[None]
    base, _, _ = load_model(Run(tmp_path / "base"))
    assert torch.equal(load_kept_model(run, run.history[0])(idx), base(idx))
    model, _, _ = load_model(run, run.checkpoint_folder / "step-000003.ckpt")
    assert torch.equal(load_kept_model(run, run.history[1])(idx), model(idx))
    assert not torch.equal(model(idx), base(idx))


def test_damaged_weights_are_named(whole, tmp_path):
    path = tmp_path / "history" / "step-000040.safetensors"
    path.parent.mkdir()
    path.write_bytes(Run(whole / "run").history[-1].path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"step-000040.safetensors is damaged"):
        read_kept_weights(KeptWeights(40, path))
