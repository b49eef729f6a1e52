"""Kill runs at random moments, start them again by the same command, and compare with runs that were never disturbed.

    python -m pytest tests/slow/test_kills.py -m slow -n 0 -s                  # 15 kills, of all kinds of training
    KILLS=60 SEED=7 python -m pytest tests/slow/test_kills.py -m slow -n 0 -s  # 60 kills, at other moments

A kill is SIGKILL, SIGTERM, SIGINT or SIGHUP at a random moment of training, the same in the first second of a process,
or SIGKILL while a checkpoint is being written. Weights, optimizer moments, loss trace and samples of the run have to be
bit-identical in the end. A run that finishes before it has had its kills is compared and followed by the next one.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FAST, PATIENCE, CommandProcess
from traces import trace

from positron.run.checkpoint import checkpoints, load_checkpoint

if sys.platform == "win32":
    pytest.skip("Windows sends no signals to other processes", allow_module_level=True)

KILLS, SEED = int(os.environ.get("KILLS", "15")), int(os.environ.get("SEED", "1"))
STEPS = 150
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOP = (f"train.max_steps={STEPS}", "train.log_every=1", "train.val_every=25", "train.sample_every=50")
MODEL = (*(each for each in FAST if "context" not in each), "model=debug", "model.context_length=64")
TUNE = ("init_from=base", "data=instruct", "data.path=talks.jsonl", "sft.patience=0", "device=cpu", "precision=fp32")
PREFER = ("init_from=base", "data=preferences", "data.path=pairs.jsonl", "device=cpu", "precision=fp32")
REWARD = (
    *("init_from=base", "data=instruct", "data.path=talks.jsonl", "device=cpu", "precision=fp32"),
    *("reward=length", "reward.target=20", "reinforce.prompts=2", "reinforce.samples=2", "reinforce.max_tokens=12"),
    *("reinforce.val_prompts=2", "reinforce.val_samples=2"),
)
TEACH = ("teachers=base", "distill.temperature=2", "device=cpu", "precision=fp32")
SMALL = ("train.batch_tokens=512", "train.val_tokens=1000", "train.sample_tokens=8", "train.micro_batch_size=4")

KINDS = {
    "pretraining with dropout": (
        "train",
        (*MODEL, "model.dropout=0.1", "train.micro_batch_size=3", "train.save_every=2"),
    ),
    "fine-tuning": ("sft", (*TUNE, *SMALL, "train.save_every=3")),
    "LoRA": ("sft", (*TUNE, *SMALL, "sft.lora.rank=2", "train.save_every=1")),
    "packing": ("sft", (*TUNE, *SMALL, "sft.packing=true", "train.save_every=7")),
    "replay": ("sft", (*TUNE, *SMALL, "sft.replay_ratio=0.25", "train.save_every=20")),
    "preference": ("prefer", (*PREFER, *SMALL, "train.save_every=5")),
    "distillation": ("distill", (*TEACH, *SMALL, "train.save_every=4")),
    "reinforcement": ("reinforce", (*REWARD, *SMALL[1:], "train.save_every=2")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a base run and conversations."""
    folder = tmp_path_factory.mktemp("kills")
    animals = ("cat", "dog", "bird", "fox", "frog", "mouse", "bear", "duck", "goat", "hen", "owl", "pig")
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Where is the {a}?"},
                {"role": "assistant", "content": f"With the {b}."},
            ]
        }
        for a in animals
        for b in animals
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    pairs = [
        {"prompt": f"Where is the {a}?", "chosen": f"With the {b}.", "rejected": "Away."}
        for a in animals
        for b in animals
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    base = ("name=base", *MODEL, "model.dropout=0.1", "train.max_steps=20", "train.save_every=20")
    result = CommandProcess("train", base, folder, "", {}).wait()
    assert result.code == 0, result.err
    return folder


def rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition, training: CommandProcess) -> None:
    until = time.monotonic() + PATIENCE
    while not condition() and training.process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.0005)


def disturb(training: CommandProcess, folder: Path, rng: random.Random) -> str | None:
    """Send a signal at a random moment; returns what was done, None where the run ended before."""
    how, signum = rng.choice(("training", "training", "starting", "writing")), rng.choice(SIGNALS)
    match how:
        case "starting":
            time.sleep(rng.random())
        case "writing":
            signum = signal.SIGKILL
            before = rows(folder)
            wait_until(lambda: rows(folder) > before, training)
            time.sleep(rng.random() * 0.2)
            wait_until(lambda: any((folder / "checkpoints").glob(".*.tmp")), training)
        case _:
            before = rows(folder)
            wait_until(lambda: rows(folder) != before, training)
            time.sleep(rng.random() * 0.4)
    if training.process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(training.process.pid, signum)
    code = training.wait().code
    assert code in (0, -signum, 128 + signum), f"{how}, {signum!r}: exit code {code}"
    return None if code == 0 else f"{signum.name} {how}"


def final(folder: Path) -> dict:
    return load_checkpoint(checkpoints(folder / "checkpoints")[-1])


def same(a, b) -> bool:
    """Whether two checkpoints hold the same numbers, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_runs_killed_at_random_moments_end_bit_identical(kind, place):
    command, settings = KINDS[kind]
    rng = random.Random(f"{SEED} {kind}")
    wanted = KILLS // len(KINDS) + (list(KINDS).index(kind) < KILLS % len(KINDS))
    slug = kind.replace(" ", "-")

    def started(name: str) -> CommandProcess:
        return CommandProcess(command, (*settings, *LOOP, f"name={name}"), place, "", {})

    result = started(f"{slug}-whole").wait()
    assert result.code == 0, result.err
    whole = place / "outputs" / f"{slug}-whole"
    reference, record, done, runs = final(whole), trace(whole), [], 0
    assert [row[0] for row in record if row[0]] == list(range(1, STEPS + 1))  # preference tuning records step 0, too
    while len(done) < wanted:
        runs += 1
        folder = place / "outputs" / f"{slug}-{runs}"
        while len(done) < wanted:
            what = disturb(started(folder.name), folder, rng)
            if what is None:
                break
            done.append(what)
        result = started(folder.name).wait()
        assert result.code == 0, result.err
        assert json.loads((folder / "run.json").read_text())["status"] == "finished"
        assert trace(folder) == record
        mine = final(folder)
        for part in ("state_dict", "optimizer_states", "bad_steps", "bad_in_a_row", "global_step"):
            assert same(mine[part], reference[part]), f"{part} differ after {done}"
        for name in ("samples.jsonl", "samples.md"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        assert not list(folder.rglob("*.tmp"))
    print(f"\n  {kind}: {len(done)} kills in {runs} runs, all bit-identical: " + ", ".join(sorted(done)))
