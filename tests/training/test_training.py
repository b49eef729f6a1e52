"""A run from start to end, in one process: learning, resuming, refusing, and what is left on disk."""

import base64
import dataclasses
import functools
import json
import math
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from conftest import FAST, PATIENCE, tiny
from faults import full_disk
from traces import same, trace, weights

from positron import stories
from positron.cli.preflight import check
from positron.config import (
    Asked,
    DataConfig,
    GPTConfig,
    LoggerConfig,
    PrecisionConfig,
    SweepConfig,
    TensorboardConfig,
    TokenizerConfig,
)
from positron.data.corpus import prepare
from positron.data.shards import TokenFiles
from positron.data.sources import is_validation
from positron.evaluation import plots, report
from positron.evaluation.eval_texts import token_files
from positron.evaluation.score import Score
from positron.run.checkpoint import checkpoints, load_checkpoint, newest_checkpoint
from positron.run.find import find_run
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.run.paths import JOB
from positron.system.disk import replace_by_link
from positron.system.errors import Diverged, LeftAtOnce, UserError
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT
from positron.train import train
from positron.training import allocator
from positron.training.callbacks.checkpoints import Checkpoints
from positron.training.callbacks.stopping import Stopping
from positron.training.device import Machine
from positron.training.module import TrainingModule
from positron.training.objective.pretrain import PretrainObjective
from positron.training.objective.validation_text import entropy_of
from positron.training.resolve import default_batch_tokens, too_long_warmup
from positron.training.resume import decide_start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run that others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(folder), folder / "run")
    return folder / "run"


def test_a_run_leaves_everything_that_the_readme_promises(whole):
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "samples.jsonl",
        "samples.md",
        "loss.png",
        "report.html",
        "train.log",
    } <= names
    facts = Run(whole).facts()
    assert (facts.status, facts.step) == ("finished", 40)
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["tokens"] for row in rows] == [512 * s for s in range(1, 41)]
    assert rows[-1]["train/loss"] < 0.8 * rows[0]["train/loss"]
    assert facts.val_bpb > facts.floor_bpb > 0
    assert facts.val_bytes > 1_000
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 2
    assert [p.name for p in checkpoints(whole / "checkpoints")] == ["step-000030.ckpt", "step-000040.ckpt"]


def test_the_report_draws_the_curves_from_the_files_of_the_run(tmp_path, whole, monkeypatch):
    for curve in ("loss_curve", "learning_rate_curve"):  # not those of `quick_runs`
        monkeypatch.setattr(report, curve, getattr(plots, curve))
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    report.write_report(run)
    width, height = struct.unpack(">II", run.loss_picture.read_bytes()[16:24])
    assert min(width, height) > 300
    assert base64.b64encode(run.loss_picture.read_bytes()).decode() in run.report_path.read_text(encoding="utf-8")
    assert len(run.report_path.read_bytes()) > len((whole / "report.html").read_bytes()) + 20_000


def test_every_checkpoint_loads_without_executing_anything(whole):
    for path in (whole / "checkpoints").iterdir():
        assert {"state_dict", "optimizer_states", "tokenizer_hash", "gpt_config"} <= set(
            torch.load(path, weights_only=True)
        )


def test_the_exported_weights_are_the_model(whole):
    from safetensors.torch import load_file

    model, tokenizer, path = load_model(Run(whole))
    assert path.name == "best.ckpt"
    exported = load_file(whole / "model" / "weights.safetensors")
    own = model.state_dict()
    assert exported.keys() == own.keys()
    assert all(torch.equal(exported[k], own[k]) for k in own)
    config = json.loads((whole / "model" / "config.json").read_text())
    assert config == dataclasses.asdict(model.config)
    assert config["vocab_size"] == tokenizer.vocab_size


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"stop": (17,)}, id="once", marks=pytest.mark.slow),
        pytest.param({"stop": (10, 20, 33)}, id="at validations and saves", marks=pytest.mark.slow),
        pytest.param(
            {"stop": (23,), "train__micro_batch_size": 5, "model__dropout": 0.2}, id="accumulating with dropout"
        ),
    ],
)
def test_a_run_in_chunks_is_bit_identical_to_one_in_one_piece(tmp_path, whole, changes):
    stops = changes.pop("stop")
    config = tiny(tmp_path, **{k: v for k, v in changes.items() if not k.startswith("model")})
    if "model__dropout" in changes:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.2))
        train(config, tmp_path / "reference")
    reference = tmp_path / "reference" if changes else whole
    for stop in stops:
        facts = train(
            dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop)), tmp_path / "run"
        )
        assert (facts.status, facts.step) == ("stopped", stop)
    assert train(config, tmp_path / "run").status == "finished"
    mine = [row for row in trace(tmp_path / "run") if row[0] not in stops or row[0] % 20 == 0]
    theirs = [row for row in trace(reference) if row[0] not in stops or row[0] % 20 == 0]
    assert mine == theirs
    a, b = weights(tmp_path / "run"), weights(reference)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(tmp_path, whole):
    train(tiny(tmp_path, train__micro_batch_size=3, train__max_steps=40), tmp_path / "run")
    for mine, theirs in zip(trace(tmp_path / "run"), trace(whole), strict=True):
        assert mine[2] == pytest.approx(theirs[2], rel=1e-3)
        assert mine[1] == theirs[1]


def test_one_batch_is_learnt_by_heart(tmp_path):
    """Overfitting: the same batch at every step drives the loss to almost nothing."""

    class SameBatch(PretrainObjective):
        def batch(self, step, rank, world_size):
            return super().batch(1, rank, world_size)

    rarely = {f"train__{what}_every": 400 for what in ("val", "save", "sample")}
    config = tiny(tmp_path, train__max_steps=400, train__batch_tokens=32, optimizer__lr=1e-2, **rarely)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0))
    train(config, tmp_path / "run", objective=SameBatch)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["train/loss"] < 0.01


def test_an_objective_can_make_its_examples_with_the_weights_before_the_step(tmp_path):
    seen: list[tuple[int, float]] = []

    class OwnTexts(PretrainObjective):
        def examples(self, model, parts, step, rank, world_size, pause):
            pause()
            seen.append((step, float(sum(p.detach().double().sum() for p in model.parameters()))))
            return parts[:1]

        def measures(self, model, rank, world_size):
            assert not model.training
            return {"own/steps": len(seen)}

    config = tiny(tmp_path, train__max_steps=4, train__save_every=1, train__val_every=2)
    train(config, tmp_path / "run", objective=OwnTexts)
    folder = tmp_path / "run" / "checkpoints"
    saved = {step: load_checkpoint(folder / f"step-{step:06d}.ckpt")["state_dict"] for step in (3, 4)}
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == float(sum(weight.double().sum() for weight in saved[3].values()))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("own/steps") for row in rows] == [None, 2, None, 4]


def test_the_newest_checkpoint_is_the_result_if_the_objective_says_so(tmp_path):
    class WorseAndWorse(PretrainObjective):
        keeps_best, validations = False, 0

        def score(self, model, part, token_bytes):
            self.validations += 1
            return super().score(model, part, token_bytes) * torch.tensor([self.validations, 1, 1])

    config = tiny(tmp_path, train__max_steps=4, train__save_every=2, train__val_every=2)
    facts = train(config, tmp_path / "run", objective=WorseAndWorse)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[3]["val/bpb"] > rows[1]["val/bpb"]
    assert (facts.best_step, facts.best_bpb) == (4, rows[3]["val/bpb"])
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["global_step"] == 4


class LosesItsText(PretrainObjective):
    def batch(self, step, rank, world_size):
        if step == 4:
            raise UserError("the disk of the text is full")
        return super().batch(step, rank, world_size)


def test_an_error_of_the_text_saves_the_last_whole_step_and_is_reported_although_it_cannot_be_saved(
    tmp_path, monkeypatch
):
    config, run = tiny(tmp_path, train__max_steps=5, train__log_every=5), tmp_path / "run"
    with pytest.raises(UserError, match="the disk of the text is full"):
        train(config, run, objective=LosesItsText)
    saved = load_checkpoint(newest_checkpoint(run / "checkpoints"))["global_step"]
    assert saved >= 2  # Lightning reads a batch ahead
    assert Run(run).facts().step == saved
    assert train(config, run).status == "finished"

    def full(*_):
        raise UserError("the disk of the run is full")

    monkeypatch.setattr("positron.training.callbacks.checkpoints.Checkpoints.save", full)
    with pytest.raises(UserError, match="the disk of the text is full"):
        train(config, tmp_path / "other", objective=LosesItsText)


class NewestCounts(PretrainObjective):
    keeps_best = False


@pytest.mark.parametrize("objective", [PretrainObjective, NewestCounts])
def test_a_checkpoint_is_marked_as_the_best_one_although_the_process_that_saved_it_was_killed(
    tmp_path, monkeypatch, objective
):
    config = tiny(tmp_path, train__max_steps=4, train__save_every=2, train__val_every=2)
    train(config, tmp_path / "whole", objective=objective)

    def killed(source, target):
        if source.name == "step-000004.ckpt":
            raise LeftAtOnce(signal.SIGTERM)
        replace_by_link(source, target)

    name = "positron.training.callbacks.checkpoints.replace_by_link"
    monkeypatch.setattr(name, killed)
    with pytest.raises(LeftAtOnce):
        train(config, tmp_path / "run", objective=objective)
    monkeypatch.setattr(name, replace_by_link)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert load_checkpoint(best)["global_step"] == 2
    assert load_checkpoint(newest_checkpoint(best.parent))["global_step"] == 4
    facts = train(config, tmp_path / "run", objective=objective)
    assert (facts.status, facts.best_step) == ("finished", 4)
    assert load_checkpoint(best)["global_step"] == 4
    exported = [tmp_path / name / "model" / "weights.safetensors" for name in ("run", "whole")]
    assert exported[0].read_bytes() == exported[1].read_bytes()


def test_the_progress_of_a_killed_run_is_that_of_its_newest_checkpoint(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise SystemExit

    monkeypatch.setattr("positron.training.loop.conclude", killed)
    with pytest.raises(SystemExit):
        train(tiny(tmp_path, train__max_steps=4, train__stop_at=2), tmp_path / "run")
    facts = Run(tmp_path / "run").facts()
    assert (facts.status, facts.step, facts.tokens) == ("running", 2, 1024)
    assert 0 < facts.time_s < 60


def test_the_best_step_stays_that_of_the_best_checkpoint_after_the_metrics_were_lost(tmp_path, whole):
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    shutil.copy(run.checkpoint_folder / "step-000030.ckpt", run.checkpoint_folder / "best.ckpt")
    (run.checkpoint_folder / "step-000040.ckpt").unlink()
    run.metrics_path.unlink()
    run.update(status="stopped", step=30, best_step=30, best_bpb=0.5)  # lower than what step 40 reaches
    facts = train(tiny(whole.parent), run.folder)
    assert (facts.step, facts.best_step, facts.best_bpb) == (40, 30, 0.5)
    assert load_checkpoint(run.checkpoint_folder / "best.ckpt")["global_step"] == 30


def test_a_run_that_begins_again_from_another_checkpoint_keeps_no_row_of_its_first_attempt(tmp_path, whole):
    config = tiny(whole.parent, train__max_steps=42)
    folder = tmp_path / "run"
    first = dataclasses.replace(config, ckpt_path=str(whole / "checkpoints" / "step-000030.ckpt"))
    train(dataclasses.replace(first, train=dataclasses.replace(first.train, stop_at=33)), folder)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [31, 32, 33]
    shutil.rmtree(folder / "checkpoints")
    train(dataclasses.replace(config, ckpt_path=str(whole)), folder)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [41, 42]


def test_a_job_that_was_killed_before_it_recorded_its_pruning_is_pruned_again(tmp_path):
    config = tiny(tmp_path, train__max_steps=4, train__val_every=2)
    config = dataclasses.replace(config, sweep=SweepConfig(prune="median", startup_jobs=1))
    better, worse = Run(tmp_path / "sweep" / "0"), Run(tmp_path / "sweep" / "1")
    train(config, better.folder)
    (better.folder / JOB).write_text('{"overrides": []}')
    rate = dataclasses.replace(config.optimizer, lr=1e-6)
    config = dataclasses.replace(config, optimizer=rate)
    assert train(config, worse.folder).status == "pruned"
    worse.update(status="running")
    facts = train(config, worse.folder)
    assert (facts.status, facts.step) == ("pruned", 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_precisions_learn_too(tmp_path, whole, dtype):
    config = tiny(tmp_path, train__stop_at=20)  # half of the run: a step of fp16 on a CPU takes as long as ten of fp32
    facts = train(dataclasses.replace(config, precision=PrecisionConfig(dtype)), tmp_path / "run")
    rows, wanted = read_metrics(tmp_path / "run" / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl")
    assert facts.val_bpb == pytest.approx(wanted[19]["val/bpb"], rel=0.05)
    assert rows[19]["train/loss"] < 0.8 * rows[0]["train/loss"]


def test_a_changed_setting_is_refused_with_the_difference(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.003 -> 0\.1"):
        train(tiny(whole.parent, optimizer__lr=0.1), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.extend=true"):
        train(tiny(whole.parent, train__max_steps=60), tmp_path / "run")
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert Run(tmp_path / "run").facts().status == "finished"


def test_a_run_of_an_older_version_continues_with_the_defaults_of_new_settings(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    saved = json.loads(path.read_text())
    for key in ("document_mask", "files", "field", "url"):
        del saved["data"][key]
    path.write_text(json.dumps(saved))
    assert train(tiny(whole.parent), tmp_path / "old").status == "finished"


def test_documents_kept_apart_learn_and_are_validated_so(tmp_path, whole):
    facts, mixed = train(tiny(tmp_path, data__document_mask=True), tmp_path / "apart"), Run(whole).facts()
    assert facts.status == "finished"
    assert facts.val_bpb != mixed.val_bpb
    assert facts.val_bpb == pytest.approx(mixed.val_bpb, rel=0.1)


def test_windows_longer_than_the_context_change_the_training_and_not_the_validation(tmp_path):
    """Windows of 160 tokens for a context of 32: three of them are a batch of 480 tokens. Validation windows stay."""
    config = tiny(tmp_path, data__document_mask=True, data__window_tokens=160, train__micro_batch_size="auto")
    train(config, tmp_path / "whole")
    run, apart = Run(tmp_path / "whole"), tiny(tmp_path, data__document_mask=True)
    assert (run.resolved().batch_tokens, run.resolved().micro_batch_size) == (480, 3)
    train(apart, tmp_path / "apart")
    assert run.facts().val_bpb == pytest.approx(Run(tmp_path / "apart").facts().val_bpb, rel=0.1)
    assert run.facts().val_bytes == Run(tmp_path / "apart").facts().val_bytes
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=15)), tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert trace(tmp_path / "stopped")[15:] == trace(tmp_path / "whole")[15:]


def test_long_windows_need_attention_inside_documents(tmp_path):
    with pytest.raises(UserError, match=r"data\.window_tokens= needs data\.document_mask=true"):
        tiny(tmp_path, data__window_tokens=160)
    assert tiny(tmp_path, data__document_mask=True, data__window_tokens=16).window_tokens == 32  # the context


def test_extending_a_run_whose_settings_changed_is_refused_and_changes_nothing(tmp_path):
    config = tiny(tmp_path, train__max_steps=4)
    train(config, tmp_path / "run")
    longer = dataclasses.replace(config.train, max_steps=8, extend=True)
    other = dataclasses.replace(config, train=longer, optimizer=dataclasses.replace(config.optimizer, lr=0.5))
    with pytest.raises(UserError, match=r"optimizer\.lr") as told:
        train(other, tmp_path / "run")
    assert "train.extend" not in str(told.value)  # it was given
    unextended = dataclasses.replace(longer, extend=False)
    with pytest.raises(UserError, match=r"train\.max_steps may be larger with train\.extend=true"):
        train(dataclasses.replace(other, train=unextended), tmp_path / "run")
    with pytest.raises(UserError, match=r"give train\.extend=true to train more steps, or another name="):
        train(dataclasses.replace(config, train=unextended), tmp_path / "run")
    for extend in (False, True):  # extending does not help
        shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2, extend=extend))
        with pytest.raises(
            UserError, match=r"max_steps=2 is shorter than the 4 steps .* give train.max_steps=4, or another name="
        ) as told:
            train(shorter, tmp_path / "run")
        assert "train.extend" not in str(told.value)
    assert Run(tmp_path / "run").facts().resolved.max_steps == 4


def test_train_extend_lengthens_a_run(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    config = dataclasses.replace(
        tiny(whole.parent), data=dataclasses.replace(tiny(whole.parent).data), train=tiny(whole.parent).train
    )
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=50, extend=True))
    assert train(longer, tmp_path / "run").step == 50
    assert "extending the training from 40 to 50 steps" in (tmp_path / "run" / "train.log").read_text()
    rates = [row["train/lr"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates[40] > rates[39]


def test_a_command_that_extends_a_pruned_run_changes_no_record_of_it(tmp_path):
    config = tiny(tmp_path, train__max_steps=4, train__stop_at=2)
    config = dataclasses.replace(config, sweep=SweepConfig(prune="median"))
    run = Run(tmp_path / "run")
    train(config, run.folder)
    run.update(status="pruned")
    before = run.config(), dataclasses.replace(run.facts(), updated=None)
    for changes in ({"max_steps": 9, "extend": True, "stop_at": None}, {}):
        again = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
        train(again, run.folder)
        assert (run.config(), dataclasses.replace(run.facts(), updated=None)) == before


def test_the_forecast_of_a_run_that_continues_is_that_of_its_further_steps(tmp_path, caplog):
    config = tiny(tmp_path, train__max_steps=45, train__save_every=22, train__val_every=45)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=22)), tmp_path / "run")
    train(config, tmp_path / "run")
    train(config, tmp_path / "at_once")
    forecasts = [line for line in caplog.messages if "matrix products" in line]
    assert [line.partition("at most; ")[2].split(" for ")[1].split(";")[0] for line in forecasts] == [
        "steps 1 to 22",
        "steps 23 to 45",
        "the whole run",
    ]


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_run_records_how_many_bytes_of_its_text_are_validated(tmp_path, is_whole):
    (tmp_path / "my.txt").write_text("".join(f"Line {i} of a text with é.\n\n" for i in range(300)), encoding="utf-8")
    data = DataConfig(source="text", path=str(tmp_path / "my.txt"), dir=str(tmp_path / "data"), val_fraction=0.2)
    config = tiny(tmp_path, data=data, train__max_steps=1, train__val_tokens=10_000 if is_whole else 100)
    facts = train(config, tmp_path / "run")
    files = token_files(Run(tmp_path / "run"), "val")
    ids = files.read(0, files.n_tokens if is_whole else 101)
    expected = files.token_bytes(load_tokenizer(Run(tmp_path / "run").tokenizer_folder))[ids[1:]].sum()
    assert facts.val_bytes == pytest.approx(expected, abs=2)
    assert (facts.val_bytes == files.n_bytes) == is_whole


@pytest.mark.parametrize("stop_at", [None, 3])
def test_no_batch_is_read_beyond_the_last_step(tmp_path, stop_at):
    read = []

    class Recorded(PretrainObjective):
        def batch(self, step, rank, world_size):
            read.append(step)
            return super().batch(step, rank, world_size)

    train(tiny(tmp_path, train__max_steps=4, train__stop_at=stop_at), tmp_path / "run", objective=Recorded)
    assert max(read) == (stop_at or 4)


def test_the_newest_whole_checkpoint_wins_over_a_corrupt_one(tmp_path, whole, logged):
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = folder / "step-000040.ckpt"
    content = newest.read_bytes()
    for broken in (content[:-1000], b"", content[: len(content) // 2] + b"\1" + content[len(content) // 2 + 1 :]):
        newest.unlink()
        newest.write_bytes(broken)
        assert newest_checkpoint(folder).name == "step-000030.ckpt"
        assert "step-000040.ckpt" in logged.pop()
    config = tiny(whole.parent)
    assert train(config, tmp_path / "run").step == 40
    assert same(tmp_path / "run", whole)


def test_a_moved_run_continues_and_generates(tmp_path, whole, run_command):
    shutil.move(shutil.copytree(whole, tmp_path / "a"), tmp_path / "elsewhere")
    result = run_command("generate", "Once", "--run", "elsewhere", "--max-tokens", "5")
    assert result.code == 0, result.err
    assert result.out.startswith("Once")


def test_resume_insists_where_told(tmp_path, whole):
    with pytest.raises(UserError, match="resume=must"):
        train(dataclasses.replace(tiny(tmp_path), resume="must"), tmp_path / "new")
    typo = f"{whole.name[:-1]}s{whole.name[-1]}"
    with pytest.raises(UserError, match=f"there is no run .*{typo}: did you mean name={whole.name}"):
        train(dataclasses.replace(tiny(whole.parent), resume="must"), whole.with_name(typo))
    with pytest.raises(UserError, match="resume=never does not continue a run"):
        train(dataclasses.replace(tiny(whole.parent), resume="never"), whole)
    with pytest.raises(UserError, match=f"ckpt_path=latest, but there is no run .*: did you mean name={whole.name}"):
        train(dataclasses.replace(tiny(whole.parent), ckpt_path="latest"), whole.with_name(typo))
    assert train(dataclasses.replace(tiny(whole.parent), resume="must", ckpt_path="latest"), whole).step == 40


@pytest.mark.slow
def test_a_fork_takes_everything_and_init_from_the_weights_only(tmp_path, whole):
    config = tiny(whole.parent)
    fork = dataclasses.replace(config, ckpt_path=str(whole), train=dataclasses.replace(config.train, max_steps=45))
    assert train(fork, tmp_path / "fork").step == 45
    assert trace(tmp_path / "fork")[0][0] == 41
    assert train(fork, tmp_path / "fork").step == 45  # the same command again
    start = dataclasses.replace(config, init_from=str(whole))
    train(start, tmp_path / "tuned")
    first = trace(tmp_path / "tuned")[0]
    assert first[0] == 1
    assert first[2] < trace(whole)[0][2] * 0.8
    with pytest.raises(UserError, match="give the new run another name"):
        train(dataclasses.replace(config, ckpt_path=str(tmp_path / "fork")), whole)


@pytest.fixture
def fork(tmp_path, monkeypatch, whole):
    """A run that began with a checkpoint of the run `source`, which was deleted since."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "outputs/fork")
    run = Run(Path("outputs/fork"))
    run.update(forked_from="outputs/source/checkpoints/step-000020.ckpt")
    return run


FILE = "checkpoints/step-000020.ckpt"


@pytest.mark.parametrize("name", ["source", "outputs/source", f"outputs/source/{FILE}", "latest", "fork"])
def test_a_run_continues_whatever_became_of_the_checkpoint_it_began_with(fork, name):
    for ckpt_path in (name, os.path.abspath(name)) if "/" in name else (name,):
        start = decide_start(fork, dataclasses.replace(tiny(fork.folder), ckpt_path=ckpt_path))
        assert (start.step, start.is_own) == (40, True)


@pytest.mark.parametrize("name", ["other", "outputs/source/checkpoints/step-000030.ckpt", f"outputs/fork/{FILE}"])
def test_a_run_is_not_continued_from_another_checkpoint_than_its_own(fork, name):
    with pytest.raises(UserError, match=f"to start from ckpt_path={name} instead, give the new run another name="):
        decide_start(fork, dataclasses.replace(tiny(fork.folder), ckpt_path=name))


@pytest.mark.parametrize("path", ["nothing.ckpt", "nothing"])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, path):
    with pytest.raises(UserError, match="nothing"):
        train(dataclasses.replace(tiny(tmp_path), ckpt_path=path), tmp_path / "run")


def test_a_finished_run_stays_finished_where_stop_at_is_passed_already(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "train.log").unlink()
    (tmp_path / "run" / "report.html").unlink()
    config = tiny(tmp_path, train__stop_at=20)
    assert train(config, tmp_path / "run").status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "to train longer, give train.extend=true and a larger train.max_steps=" in log
    assert "writing the weights" not in log
    assert (tmp_path / "run" / "report.html").exists()  # a missing file is written again


def test_a_named_run_whose_checkpoints_are_all_damaged_is_not_to_be_trained_first(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "torn")
    for path in (tmp_path / "torn" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"every checkpoint in \S+ is damaged: restore one from a copy, or name another run"
    ):
        train(dataclasses.replace(tiny(tmp_path), ckpt_path=str(tmp_path / "torn")), tmp_path / "run")
    shutil.rmtree(tmp_path / "torn" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint: train it first"):
        train(dataclasses.replace(tiny(tmp_path), ckpt_path=str(tmp_path / "torn")), tmp_path / "run2")


def test_a_run_continues_on_no_other_text(tmp_path):
    for name, word in (("a.txt", "one "), ("b.txt", "two ")):
        (tmp_path / name).write_text(word * 2000)
    text = DataConfig(source="text", path=str(tmp_path / "a.txt"), dir=str(tmp_path / "data"))
    config = tiny(tmp_path, data=text)
    train(config, tmp_path / "run")
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "b.txt")))
    with pytest.raises(
        UserError,
        match=r"was trained on another text, data\.path=\S+a\.txt: give this path to continue .* undo a renaming",
    ):
        train(other, tmp_path / "run")
    (tmp_path / "a.txt").write_text("three " * 2000)
    with pytest.raises(
        UserError, match=r"the training text of \S+run has changed since the run started: restore the text"
    ):
        train(config, tmp_path / "run")


def test_a_tokenizer_that_does_not_belong_is_refused(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    from positron.text.char_word import CharTokenizer

    CharTokenizer("abc").save(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match="do not belong together"):
        load_model(Run(tmp_path / "run"))
    with pytest.raises(UserError, match=r"do not belong together|changed|do not fit"):
        train(tiny(whole.parent, train__max_steps=40), tmp_path / "run")


def test_a_text_that_was_edited_since_is_refused(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("The cat sat on the mat.\n" * 400)
    config = tiny(tmp_path, train__stop_at=5)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source="text", path=str(text), val_fraction=0.1)
    )
    train(config, tmp_path / "run")
    text.write_text("The dog sat on the mat.\n" * 400)
    with pytest.raises(UserError, match="has changed"):
        train(config, tmp_path / "run")


class Fails(L.Callback):
    def on_train_batch_end(self, *_):
        raise ValueError("a mistake in the callback")


def test_a_run_without_a_checkpoint_begins_anew_on_a_changed_text(tmp_path):
    data = DataConfig(source="text", path=str(tmp_path / "my.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    for text, fraction in (("one ", 0.1), ("two ", 0.1), ("two ", 0.2)):
        (tmp_path / "my.txt").write_text(text * 2000)
        config = tiny(tmp_path, train__max_steps=1, data=dataclasses.replace(data, val_fraction=fraction))
        with pytest.raises(ValueError, match="a mistake"):
            train(config, tmp_path / "run", [Fails()])
        assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert train(config, tmp_path / "run").status == "finished"
    assert Run(tmp_path / "run").settings().data.val_fraction == 0.2


def poisoned(steps, monkeypatch):
    """The loss of these steps is NaN."""
    original = TrainingModule._accumulate

    def accumulate(self, parts):
        loss = original(self, parts)
        if self.global_step + 1 in steps:
            for p in self.parameters():
                p.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(TrainingModule, "_accumulate", accumulate)


@pytest.mark.parametrize("precision", ["fp32"])
def test_a_step_with_nan_changes_nothing_and_is_counted(tmp_path, monkeypatch, precision):
    poisoned({7, 8, 20}, monkeypatch)
    facts = train(tiny(tmp_path), tmp_path / "run")
    assert facts.status == "finished"
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["train/skipped_steps"] == 3
    assert rows[6]["train/grad_norm"] is None
    assert math.isfinite(rows[-1]["val/bpb"])
    assert all(w.isfinite().all() for w in weights(tmp_path / "run").values())


def test_a_run_that_stays_nan_stops_with_its_last_good_weights(tmp_path, monkeypatch):
    poisoned(set(range(13, 100)), monkeypatch)
    with pytest.raises(Diverged, match=r"5 steps in a row.*optimizer\.lr"):
        train(tiny(tmp_path), tmp_path / "run")
    assert Run(tmp_path / "run").facts().status == "diverged"
    saved = weights(tmp_path / "run")
    assert all(w.isfinite().all() for w in saved.values())
    assert load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["global_step"] == 17


def test_a_time_limit_ends_the_run_saved_and_validated(tmp_path):
    config = tiny(tmp_path, train__max_steps=1_000_000, train__max_time=1.5, train__val_every=50, train__log_every=10)
    facts = train(config, tmp_path / "run")
    assert facts.status == "stopped"
    assert 0 < facts.step < 1_000_000
    assert load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["global_step"] == facts.step
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val/bpb"] > 0


def test_a_run_that_ends_just_within_its_time_is_finished(tmp_path, monkeypatch):
    """At the last step there is no time left for another one, nor a need."""
    usual = Stopping.on_train_batch_end

    def slow_end(self, trainer, module, *more):
        if trainer.global_step == self.last_step:
            self.max_seconds = 1e-9
        usual(self, trainer, module, *more)

    monkeypatch.setattr(Stopping, "on_train_batch_end", slow_end)
    assert train(tiny(tmp_path, train__max_steps=5, train__max_time="1h"), tmp_path / "run").status == "finished"


def test_a_logger_that_raises_is_a_warning(tmp_path, monkeypatch):
    from positron.training import loop as fit
    from positron.training.trackers.tracker import GuardedTracker

    class Broken:
        def log(self, row, step):
            raise RuntimeError("the server is on fire")

    monkeypatch.setattr(fit, "open_trackers", lambda *_: [GuardedTracker(Broken, "broken")])
    assert train(tiny(tmp_path), tmp_path / "run").status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("the server is on fire") == 1


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if tensorboard were not installed
    config = dataclasses.replace(tiny(tmp_path), logger=LoggerConfig(tensorboard=TensorboardConfig()))
    with pytest.raises(UserError, match=r"pip install 'positron\[tensorboard\]'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_the_tokens_that_the_run_reads(whole):
    log = (whole / "train.log").read_text()
    plans = re.findall(r"context 32; (\d+) steps of (\d+) tokens \(16 sequences at a time\), ", log)
    steps, tokens = plans[0]  # other tests start the finished run again
    assert int(steps) * int(tokens) == read_metrics(whole / "metrics.jsonl")[-1]["tokens"]


def test_a_batch_of_less_than_a_sequence_is_said_to_be_one(tmp_path):
    train(tiny(tmp_path, train__max_steps=1, train__batch_tokens=10, schedule__warmup_steps=0), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert "train.batch_tokens=10 is less than a sequence of " in (run.folder / "train.log").read_text()
    assert run.resolved().batch_tokens == run.settings().model.context_length


def test_a_warmup_that_never_ends_is_answered_with_a_setting_that_the_run_accepts():
    said = too_long_warmup(20, 8, is_own=False)
    assert (
        "the warmup (schedule.warmup_steps=20) is longer than the run (8 steps): the learning rate never reaches"
        in said
    )
    assert "is as long as the run (8 steps): the learning rate never falls" in too_long_warmup(8, 8, is_own=False)
    assert "with schedule.warmup_steps=0, or a larger train.max_steps=" in said
    assert "schedule.warmup_steps=1," in too_long_warmup(20, 15, is_own=False)
    assert said.partition(";")[0] == too_long_warmup(20, 8, is_own=True).partition(";")[0]
    assert "give train.extend=true" in too_long_warmup(20, 8, is_own=True)  # another warmup would be refused


@pytest.mark.parametrize("val_tokens", [10**6, 3000], ids=["whole text", "beginning"])
def test_a_loss_below_the_floor_is_called_a_leak(tmp_path, monkeypatch, val_tokens):
    from positron.training.callbacks import validation

    real = validation.validate

    def cheat(trainer, module, batches):
        score = real(trainer, module, batches)
        return Score(nats=1.0, bytes=score.bytes, tokens=score.tokens)

    monkeypatch.setattr(validation, "validate", cheat)
    train(tiny(tmp_path, train__val_tokens=val_tokens), tmp_path / "run")
    assert "sees the future" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_two_processes_never_train_one_run(tmp_path, start, run_command):
    command = ("model=debug", "name=one", *FAST, "train.max_steps=100000", "train.val_every=100000")
    first = start("train", *command)
    metrics = tmp_path / "outputs" / "one" / "metrics.jsonl"
    while not metrics.exists():
        first.process.join(0.05)
        assert first.process.exitcode is None
    second = run_command("train", *command)
    first.process.kill()
    assert second.code == 2
    assert "another process is training" in second.err


def test_a_folder_that_cannot_be_written_is_named(tmp_path, run_command):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    result = run_command("train", "model=debug", *FAST)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "outputs" in result.err


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path, monkeypatch):
    if sys.platform == "win32":
        pytest.skip("Windows has no limit for the size of a file")
    import resource

    config = tiny(tmp_path, train__stop_at=10)
    train(config, tmp_path / "run")
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    content = newest.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        full_disk(len(content) // 2)
        with pytest.raises(UserError, match=r"cannot write .*step-000020\.ckpt.*too large"):
            train(tiny(tmp_path), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert newest.read_bytes() == content
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert train(tiny(tmp_path), tmp_path / "run").step == 40


def test_a_checkpoint_that_a_program_has_open_on_windows_is_deleted_with_the_next(tmp_path, monkeypatch):
    refused, unlink = [], Path.unlink

    def refuse_once(path, missing_ok=False):
        if path.name == "step-000010.ckpt" and not refused:
            refused.append(path)
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_once)
    assert train(tiny(tmp_path, train__keep_last=1), tmp_path / "run").step == 40
    assert refused
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000040.ckpt"]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the log, in which a refusal is noted."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "train.log"}


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one byte"])
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_keeps_its_record(tmp_path, whole, damage):
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        content = path.read_bytes()
        middle = len(content) // 2
        broken = {
            "truncated": content[:1000],
            "emptied": b"",
            "one byte": content[:middle] + b"\1\2\3" + content[middle + 3 :],
        }
        path.unlink()
        path.write_bytes(broken[damage])
    before = snapshot(folder)
    for resume in ("auto", "must", "never"):
        with pytest.raises(
            UserError, match=r"step-000030.ckpt, step-000040.ckpt, best.ckpt\). Restore .* another name="
        ):
            train(dataclasses.replace(tiny(whole.parent), resume=resume), folder)
    assert snapshot(folder) == before


def test_a_finished_run_without_its_checkpoints_is_refused(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    before = snapshot(folder)
    with pytest.raises(UserError, match="its checkpoints are missing, though it was trained to step 40"):
        train(tiny(whole.parent), folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_checkpoints_without_settings_are_refused_and_kept(tmp_path, whole, resume):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "config.json").unlink()
    before, config = snapshot(folder), dataclasses.replace(tiny(whole.parent), resume=resume)
    message = (
        r"contains checkpoints \(step-000040\.ckpt\) but no config\.json, .*: restore .* another name=, or delete "
    )
    with pytest.raises(UserError, match=message):
        check(config, folder, Asked())
    with pytest.raises(UserError, match=message):
        train(config, folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("steps", [3, 39])
def test_a_horizon_is_not_extended_to_a_shorter_one(tmp_path, whole, steps):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = snapshot(folder)
    with pytest.raises(UserError, match=f"train.max_steps={steps} is shorter than the 40 steps"):
        train(tiny(whole.parent, train__max_steps=steps, train__extend=True), folder)
    assert snapshot(folder) == before
    assert train(tiny(whole.parent), folder).status == "finished"


def test_an_extension_that_is_refused_later_changes_nothing(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("The cat sat on the mat.\n" * 400)
    config = tiny(tmp_path, train__max_steps=4)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source="text", path=str(text), val_fraction=0.1)
    )
    train(config, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    text.write_text("The dog sat on the mat.\n" * 400)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=8, extend=True))
    with pytest.raises(UserError, match="has changed"):
        train(longer, tmp_path / "run")
    assert snapshot(tmp_path / "run") == before
    assert "resuming" not in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("changes", [{}, {"train__max_steps": 20}, {"train__max_steps": 80, "train__stop_at": 40}])
def test_a_fork_that_has_nothing_left_to_train_says_so_and_leaves_no_folder(tmp_path, whole, changes):
    with pytest.raises(UserError, match=r"is at step 40 and this run would end at step \d+: nothing is left to train"):
        train(dataclasses.replace(tiny(whole.parent, **changes), ckpt_path=str(whole)), tmp_path / "fork")
    assert not (tmp_path / "fork").exists()


def test_the_newest_run_is_found(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    for name, said in ((None, "no run in .*: train one with"), ("mine", "no run mine")):
        with pytest.raises(UserError, match=said):
            find_run(name)
    shutil.copytree(whole, tmp_path / "outputs" / "old")
    shutil.copytree(whole, tmp_path / "outputs" / "new")
    os.utime(tmp_path / "outputs" / "old" / "run.json", (1, 1))
    assert find_run(None).folder.name == "new"
    assert find_run("old").folder.name == "old"
    with pytest.raises(UserError, match=r"nobody.*\(its runs: new, old\)"):
        find_run("nobody")


def test_small_models_get_batches_that_make_many_steps_and_large_ones_what_suits_the_machine():
    machine = Machine("cpu", "fp32", why="")
    sizes = {"debug": (64, 2, 4, 1_000), "nano": (192, 6, 6, 50_257), "tinygpt": (320, 8, 8, 16_000)}
    batches = {}
    for name, (d_model, n_layer, n_head, vocab) in sizes.items():
        gpt = GPTConfig(vocab_size=vocab, context_length=64, d_model=d_model, n_layer=n_layer, n_head=n_head)
        batches[name] = default_batch_tokens(gpt, machine)
        assert 20 * gpt.n_params() / batches[name] >= 2_000
    assert batches == {"debug": 1_024, "nano": 65_536, "tinygpt": 65_536}


MEMORY_TWICE = """
import ctypes, platform, resource
from positron.training.allocator import tune_allocator

libc, pages = ctypes.CDLL(None), []
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2_200_000_000)  # more than an int can say to mallopt
    libc.memset(block, 1, 100_000_000)
    libc.free(block)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems' allocators have no such setting")
def test_memory_that_was_freed_stays_in_the_process():
    """In a process of its own: the allocator is set once and for all."""
    result = subprocess.run([sys.executable, "-c", MEMORY_TWICE], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    first, again = map(int, result.stdout.split())
    assert first > 40  # 48 pages of 2 MiB, or 24,000 pages of 4 KiB
    assert again < 5


IN_HUGE_PAGES = """
import re, resource, sys
from pathlib import Path
import torch
from positron.training.allocator import tune_allocator

if len(sys.argv) > 1:
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
tune_allocator()
address = torch.ones(30_000_000).data_ptr() + 60_000_000
for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())[1:]:
    first, last = (int(number, 16) for number in part.split()[0].split("-"))
    if first <= address < last:
        print("hg" in part.split("VmFlags:")[1].split())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems' allocators have no such setting")
def test_tensors_lie_in_memory_for_which_huge_pages_are_asked():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists() or allocator._counts_unused_memory():
        pytest.skip("this system has no huge pages, or counts memory that is not used yet")
    for limits, is_huge in (
        ((), "True\n"),
        (("100000000000",), "False\n"),
    ):  # a limit of the addresses counts unused memory
        command = [sys.executable, "-c", IN_HUGE_PAGES, *limits]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (result.stdout, result.stderr) == (is_huge, "")


@pytest.mark.slow
def test_fp16_on_a_cpu_scales_the_loss_and_continues_with_the_same_scale(tmp_path, monkeypatch):
    """The first scales are so large that the gradients are infinite; the scaler skips these steps and halves the scale."""
    first = functools.partialmethod(torch.amp.GradScaler.__init__, init_scale=2.0**30)
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", first)
    every = {"train__save_every": 3, "train__val_every": 3}
    config = dataclasses.replace(tiny(tmp_path, train__max_steps=20, **every), precision=PrecisionConfig("fp16"))
    train(config, tmp_path / "whole")
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=3)), tmp_path / "stopped")
    early = load_checkpoint(newest_checkpoint(tmp_path / "stopped" / "checkpoints"))
    assert early["MixedPrecision"]["scale"] == 2.0**27  # three steps were skipped
    train(config, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    late = load_checkpoint(newest_checkpoint(tmp_path / "whole" / "checkpoints"))
    assert 1 <= late["MixedPrecision"]["scale"] < 2.0**27
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert rows[2]["val/loss"] > 4.15  # of a model that has not learned yet: the logarithm of 65 characters is 4.17
    assert rows[-1]["val/loss"] < rows[2]["val/loss"] - 0.3
    assert Run(tmp_path / "whole").facts().status == "finished"


def test_a_new_checkpoint_is_kept_beside_damaged_ones_of_later_steps(tmp_path):
    for name in ("step-000010.ckpt", "step-000020.ckpt", "step-000030.ckpt"):
        (tmp_path / name).write_bytes(b"whole" if name == "step-000010.ckpt" else b"torn")
    seen: list[int] = []
    trainer = SimpleNamespace(
        global_step=15, is_global_zero=True, save_checkpoint=lambda path: Path(path).write_bytes(b"new")
    )
    Checkpoints(tmp_path, every=5, keep_last=1, best=None, note_saved=seen.append, note_best=lambda *_: None).save(
        trainer
    )
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-0000{n}.ckpt" for n in (15, 20, 30)]
    assert (tmp_path / "best.ckpt").read_bytes() == b"new"
    assert seen == [15]


def test_the_floor_is_the_entropy_of_the_stories_that_are_validated(tmp_path):
    config = tiny(tmp_path)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    files = TokenFiles(folder, "val", tokenizer)
    whole = (files.bits, files.n_bytes)
    assert entropy_of(files, tokenizer, files.n_tokens) == whole
    end = tokenizer.special_id(END_OF_TEXT)
    cut = int(np.flatnonzero(files.read(0, files.n_tokens) == end)[3])
    texts = [story.text for story in stories.documents(config.data.seed, 0, 500)]
    held = [text for text in texts if is_validation(text, config.data.seed, config.data.val_fraction)][:3]
    bits, size = entropy_of(files, tokenizer, cut + 20)  # three stories and the beginning of the fourth
    assert size == sum(len(text.encode()) for text in held)
    assert bits == pytest.approx(sum(map(stories.bits, held)))
    assert entropy_of(files, tokenizer, 20) == whole, "no whole story is read"


def test_a_text_with_unknown_words_has_no_floor(tmp_path):
    config = tiny(tmp_path, tokenizer=TokenizerConfig("word", vocab_size=1000))
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    files = TokenFiles(folder, "val", tokenizer)
    assert files.bits is not None
    first = int(np.flatnonzero(files.read(0, files.n_tokens) == 0)[0])
    assert first > 0
    assert entropy_of(files, tokenizer, first - 1)[0] is not None, "no unknown word is read"
    for limit in (first, files.n_tokens):
        assert entropy_of(files, tokenizer, limit) == (None, files.n_bytes)
