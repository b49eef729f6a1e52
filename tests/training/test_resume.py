"""Kill it anywhere, start it again by the same command: the losses and the weights of a run that was never stopped."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FAST, tiny
from traces import trace, weights

from positron.system.errors import UserError
from positron.training.resume import open_session

if sys.platform == "win32":
    pytest.skip("Windows sends no signals to other processes", allow_module_level=True)

STEPS = 60


def command(name: str, *more: str) -> tuple[str, ...]:
    return (
        "model=debug",
        f"name={name}",
        *FAST,
        f"train.max_steps={STEPS}",
        "train.log_every=1",
        "train.val_every=15",
        "train.sample_every=30",
        "model.dropout=0.1",
        "optimizer.lr=3e-3",
        "schedule.warmup_steps=5",
        "schedule.average_share=0.1",
        *more,
    )


def rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def stopped_and_restarted(start, folder: Path, arguments, how: list[signal.Signals], rng: random.Random) -> list[int]:
    """Start the command, stop it at a random moment of its training by the next signal of `how`, and so on; then let it
    finish. Returns the exit codes."""
    codes = []
    for signum in how:
        before = rows(folder)
        training = start("train", *arguments)
        # a few steps later, however long a step takes, and then at any moment of one
        enough = max(1, before + 1) + rng.randint(0, STEPS // (3 * len(how)))
        while rows(folder) < enough and training.process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        with contextlib.suppress(ProcessLookupError):  # it was faster and has finished
            os.kill(training.process.pid, signum)
        codes.append(training.wait().code)
    result = start("train", *arguments).wait()
    assert result.code == 0, result.err
    return codes


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Uninterrupted runs, by what makes them differ."""
    from conftest import CommandProcess

    made = {}

    def reference(*more: str) -> Path:
        if more not in made:
            folder = tmp_path_factory.mktemp("reference")
            result = CommandProcess("train", command("whole", *more), folder, "", {}).wait()
            assert result.code == 0, result.err
            made[more] = folder / "outputs" / "whole"
        return made[more]

    return reference


CASES = {
    "kill -9": ([signal.SIGKILL] * 3, ("train.micro_batch_size=16", "train.save_every=3"), -signal.SIGKILL),
    "kill -9 while saving": (
        [signal.SIGKILL] * 3,
        ("train.micro_batch_size=16", "train.save_every=1"),
        -signal.SIGKILL,
    ),
    "kill -9, accumulation 3, two threads": (
        [signal.SIGKILL] * 3,
        ("train.micro_batch_size=6", "train.save_every=7", "device.threads=2"),
        -signal.SIGKILL,
    ),
    "Ctrl-C": ([signal.SIGINT] * 3, ("train.micro_batch_size=16", "train.save_every=50"), 130),
    "SIGTERM": ([signal.SIGTERM] * 3, ("train.micro_batch_size=6", "train.save_every=50"), 143),
}


FAST_CASE = "kill -9 while saving"  # tests/training/test_signals.py stops runs by signals


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c == FAST_CASE else pytest.mark.slow) for c in CASES])
def test_a_run_stopped_anywhere_ends_bit_identical_to_one_never_stopped(case, tmp_path, start, references, capsys):
    how, more, code = CASES[case]
    folder = tmp_path / "outputs" / "stopped"
    codes = stopped_and_restarted(start, folder, command("stopped", *more), how, random.Random(case))
    stops = sum(c == code for c in codes)
    assert set(codes) <= {code, 0}
    assert stops >= len(how) // 2, "the run ended before it could be stopped"
    reference = references(*more)
    assert trace(folder) == trace(reference)
    mine, theirs = weights(folder), weights(reference)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    steps = [row[0] for row in trace(folder)]
    assert steps == list(range(1, STEPS + 1))
    for name in ("samples.jsonl", "samples.md"):
        text = (folder / name).read_text()
        assert text == (reference / name).read_text()
    with capsys.disabled():
        print(f"  [{case}: {stops} stops, loss trace and weights bit-identical]")


def test_after_an_interruption_nothing_but_the_step_in_progress_is_lost(tmp_path, start):
    folder = tmp_path / "outputs" / "long"
    arguments = command("long", "train.max_steps=100000", "train.save_every=100000", "train.val_every=100000")
    training = start("train", *arguments)
    while rows(folder) < 20:
        time.sleep(0.01)
        assert training.process.is_alive()
    os.kill(training.process.pid, signal.SIGINT)
    result = training.wait()
    assert result.code == 130
    assert "Traceback" not in result.err
    done = rows(folder)
    assert (folder / "checkpoints" / f"step-{done:06d}.ckpt").exists()
    assert '"status": "stopped"' in (folder / "run.json").read_text()


def test_the_reason_of_a_refusal_is_shown_although_the_folder_was_deleted_during_it(tmp_path):
    folder = tmp_path / "new"

    def refused() -> None:
        shutil.rmtree(folder)
        raise UserError("the reason")

    with pytest.raises(UserError, match=r"^the reason$"), open_session(folder, tiny(tmp_path), time.monotonic()):
        refused()
