"""What wandb gets, read back from its own files, and what its own `wandb sync` makes of them on a server."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FAST, PATIENCE, tiny
from traces import same
from wandb_server import Logged, WandbServer, logged

from positron.config import GPTConfig, LoggerConfig, TensorboardConfig, WandbConfig
from positron.model.gpt import GPT
from positron.model.probes import attention_probabilities
from positron.run.metrics import read_metrics
from positron.run.paths import RunPaths
from positron.run.samples import read_samples
from positron.train import train
from positron.training.trackers import wandb as tracker

WITH_WANDB = LoggerConfig(wandb=WandbConfig())


def outside(folder: Path) -> dict[str, str]:
    """What wandb keeps outside of runs, in the test's folder. HOME stays: in a new one matplotlib looks for all fonts."""
    return {
        "NETRC": str(folder / "netrc"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
    }


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """wandb in this process writes below the test's folder, and its service ends with the test."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_MODE": "offline", **outside(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def server():
    server = WandbServer()
    yield server
    server.close()


def short(folder: Path, **changes):
    return tiny(folder, train__max_steps=12, train__val_every=4, train__save_every=4, train__sample_every=4, **changes)


def folders(run: Path) -> list[Logged]:
    return [logged(path) for path in sorted(run.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)]


def wait_for_the_next_second(run: Path) -> None:
    """Wait for the next second, because wandb names its folders by the second of their start."""
    while list(run.glob(time.strftime("wandb/*run-%Y%m%d_%H%M%S-*"))):
        time.sleep(0.02)


def sync(server: WandbServer, *paths: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", *map(str, paths)]
    environment = {**os.environ, **server.environment, "WANDB_DIR": os.environ["WANDB_CACHE_DIR"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_is_one_run_in_wandb_with_each_step_once(tmp_path, server):
    config, run = short(tmp_path, logger=WITH_WANDB, model__dropout=0.1), tmp_path / "run"
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=10)), run)
    (run / "checkpoints" / "step-000010.ckpt").unlink()  # as if it had been killed after step 10, saved at step 8
    wait_for_the_next_second(run)
    train(config, run)
    first, second = folders(run)
    assert first.id == second.id == (run / "wandb_id").read_text()
    assert (first.name, first.group, first.exit_code, second.exit_code) == ("run", "", 0, 0)
    assert [row["_step"] for row in first.history] == list(range(1, 11))
    assert [row["_step"] for row in second.history] == list(range(1, 13))

    rows = read_metrics(run / "metrics.jsonl")
    for mine, row in zip(second.history, rows, strict=True):
        assert {key: mine[key] for key in row} == row
    names = {"train/loss", "train/lr", "train/grad_norm", "val/bpb", "speed/tokens_per_s", "speed/mfu"}
    assert {*names, "memory/peak_gb"} <= set(rows[-1])
    assert second.config["optimizer"]["lr"] == 3e-3
    assert second.config["resolved"]["batch_tokens"] == 512

    samples = read_samples(RunPaths(run))
    assert [sample.step for sample in samples] == [4, 8, 12]
    assert second.table() == {"columns": ["step", "loss", "bpb", "text"], "data": [list(one) for one in samples]}
    pictures = {row["_step"]: row["attention.path"] for row in second.history if "attention.path" in row}
    assert list(pictures) == [4, 8, 12]
    for step, path in pictures.items():
        picture = (second.folder / "files" / path).read_bytes()
        assert picture == (run / "attention" / f"step-{step:06d}.png").read_bytes()
    assert list((run / "wandb" / "artifacts" / "staging").iterdir()), "a run is a folder: its tables are in it"

    sync(server, first.folder)  # as if it had been uploaded before it went on
    assert server.steps(first.id) == list(range(1, 11))
    sync(server, run / "wandb")
    assert server.steps(first.id) == list(range(1, 13))
    assert list(server.exit_codes) == [first.id]
    assert [row["train/loss"] for _, row in sorted(server.history[first.id].items())] == [r["train/loss"] for r in rows]


@pytest.mark.slow
def test_training_with_dashboards_is_bit_identical_to_training_without(tmp_path):
    both = LoggerConfig(wandb=WandbConfig(), tensorboard=TensorboardConfig())
    train(short(tmp_path, model__dropout=0.1, logger=both), tmp_path / "watched")
    train(short(tmp_path, model__dropout=0.1), tmp_path / "alone")
    assert same(tmp_path / "watched", tmp_path / "alone")
    assert (tmp_path / "watched" / "samples.md").read_text() == (tmp_path / "alone" / "samples.md").read_text()
    assert not (tmp_path / "alone" / "attention").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("attention")] == [4, 8, 12]
    assert [event.step for event in events.Scalars("memory/peak_gb")] == list(range(1, 13))

    # wandb asked for afterwards gets the run from its beginning
    train(short(tmp_path, model__dropout=0.1, logger=WITH_WANDB), tmp_path / "alone")
    (late,) = folders(tmp_path / "alone")
    assert [row["_step"] for row in late.history] == list(range(1, 13))
    assert len(late.table()["data"]) == 3


def processes_with(word: str) -> list[str]:
    """Command lines of the processes of this machine that hold it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in lines if word in line]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_runs_of_one_group_and_the_failed_one_is_marked(start, tmp_path):
    arguments = ("model=debug", *FAST, "name=rates", "train.max_steps=6", "train.log_every=1", "train.val_every=5")
    swept = ("optimizer.lr=1e-3,1e30,1e-2", "schedule.warmup_steps=0", "logger=wandb")
    training = start("train", "-m", *arguments, *swept, WANDB_API_KEY="", **outside(tmp_path))
    result = training.wait()
    assert result.code == 1, result.err
    assert "the training diverged" in result.err  # after a validation that gave NaN
    sweep = tmp_path / "outputs" / "sweeps" / "rates"
    jobs = [logged(folder) for job in "012" for folder in (sweep / job / "wandb").glob("offline-run-*")]
    assert [job.name for job in jobs] == ["rates/0", "rates/1", "rates/2"]
    assert {job.group for job in jobs} == {"rates"}
    assert len({job.id for job in jobs}) == 3
    assert [job.config["optimizer"]["lr"] for job in jobs] == [1e-3, 1e30, 1e-2]
    assert [job.exit_code for job in jobs] == [0, 1, 0]
    for number in (0, 2):
        assert [row["_step"] for row in jobs[number].history] == [1, 2, 3, 4, 5, 6]
        assert (
            jobs[number].history[-1]["train/loss"]
            == read_metrics(sweep / str(number) / "metrics.jsonl")[-1]["train/loss"]
        )
    for job in jobs:
        assert f"wandb sync {job.folder}" in result.err
    if Path("/proc").exists():
        until = time.monotonic() + PATIENCE
        while processes_with(f"--pid {training.process.pid}") and time.monotonic() < until:
            time.sleep(0.05)
        assert not processes_with(f"--pid {training.process.pid}"), "wandb's service outlived the program"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "rope", "n_kv_head": 2, "qk_norm": True},
        {"position": "sinusoidal", "smear": True, "norm": "rmsnorm", "bias": True, "dropout": 0.5},
    ],
    ids=["plain", "rope, grouped, normalised", "smear, dropout"],
)
def test_the_probabilities_are_those_that_the_blocks_attend_with(options):
    """In float64: P v through the output matrix is what the block's own attention returned."""
    torch.set_default_dtype(torch.float64)
    try:
        model = GPT(GPTConfig(vocab_size=50, context_length=80, d_model=32, n_layer=3, n_head=4, **options), seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        parameter.data *= 3  # heads that look somewhere
    model.train()
    idx = torch.randint(50, (2, 70), generator=torch.Generator().manual_seed(0))
    seen = []
    hooks = [
        b.attn.register_forward_hook(lambda attn, given, out: seen.append((attn, given[0], out))) for b in model.blocks
    ]
    state = torch.get_rng_state()
    layers = attention_probabilities(model, idx)
    for hook in hooks:
        hook.remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    assert len(layers) == len(seen) == 3
    for probabilities, (attn, x, out) in zip(layers, seen, strict=True):
        assert probabilities.shape == (2, 4, 70, 70)
        v = attn.v(x).view(2, 70, attn.n_kv_head, 8).transpose(1, 2).repeat_interleave(4 // attn.n_kv_head, dim=1)
        mine = attn.out((probabilities @ v).transpose(1, 2).reshape(2, 70, 32))
        torch.testing.assert_close(mine, out, rtol=0, atol=1e-12)
        assert probabilities.triu(1).abs().max() == 0


@pytest.mark.parametrize(
    ("there", "text"),
    [
        (True, "machine api.forge.coreweave.com\n  login user\n  password 123\n"),
        (True, "machine api.wandb.ai login user password 123"),
        (True, "machine wandb.example.org:8080 login user password 123"),
        (False, "machine huggingface.co login wandb password 123"),
        (False, "machine"),
    ],
)
def test_a_key_is_found_where_wandb_login_leaves_it(monkeypatch, tmp_path, there, text):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not tracker.has_wandb_key()
    (tmp_path / "netrc").write_text(text)
    assert tracker.has_wandb_key() == there


@pytest.fixture
def online(monkeypatch, server):
    for name, value in {**server.environment, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.slow
def test_a_killed_run_that_continues_online_sends_each_step_once(tmp_path, online):
    config, run = short(tmp_path, logger=WITH_WANDB), tmp_path / "run"
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=10)), run)
    (run / "checkpoints" / "step-000010.ckpt").unlink()
    run_id = (run / "wandb_id").read_text()
    assert online.steps(run_id) == list(range(1, 11))
    del online.history[run_id][9]  # the last row did not arrive any more
    wait_for_the_next_second(run)
    train(config, run)
    assert online.steps(run_id) == list(range(1, 13))
    losses = [row["train/loss"] for _, row in sorted(online.history[run_id].items())]
    assert losses == [row["train/loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert online.exit_codes == {run_id: 0}


@pytest.mark.slow
def test_a_server_that_falls_silent_holds_a_run_up_for_a_bounded_time(tmp_path, online, monkeypatch):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 2.0)
    online.silent.set()
    facts = train(short(tmp_path, logger=WITH_WANDB), tmp_path / "run")
    assert facts.status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the upload is incomplete after 2 s" in log
    (folder,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"wandb sync {folder}" in log
    assert [row["_step"] for row in logged(folder).history] == list(range(1, 13))


@pytest.mark.slow
def test_without_an_answer_it_is_logged_offline(tmp_path, online, monkeypatch):
    monkeypatch.setattr(tracker, "INIT_SECONDS", 2.0)
    online.close()
    facts = train(short(tmp_path, logger=WITH_WANDB), tmp_path / "run")
    assert facts.status == "finished"
    (part,) = folders(tmp_path / "run")
    assert [row["_step"] for row in part.history] == list(range(1, 13))
