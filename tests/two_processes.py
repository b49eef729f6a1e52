"""Training in two processes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import FAST, PATIENCE
from traces import weights

from positron.run.metrics import read_metrics

TWO = ("device=cpu", "device.devices=2", "device.strategy=ddp")


def run(folder, *arguments):
    command = [sys.executable, "-m", "positron.train", "model=debug", *FAST, "train.log_every=1", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return result


def with_one_and_two(folder: Path, command: str, *arguments: str) -> tuple[Path, Path]:
    """Train the same in one process and in two, as a user starts them; return the two run folders."""
    for name, devices in (("one", ("device=cpu",)), ("two", TWO)):
        words = [sys.executable, "-m", f"positron.{command}", *arguments, "precision=fp32", *devices, f"name={name}"]
        result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
    return folder / "outputs" / "one", folder / "outputs" / "two"


def assert_learned_the_same(one: Path, two: Path, base: Path, metrics: Sequence[str]) -> None:
    """Compare metrics and weights, whose differences are much smaller than what the training changed."""
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (one, two))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in metrics:
            if a.get(key) is not None:
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), (a["step"], key)
    before, a, b = weights(base), weights(one), weights(two)
    change = max(float((a[name] - before[name]).abs().max()) for name in a)
    assert change > 0
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=0.02 * change, msg=name)
