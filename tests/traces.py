"""What two runs that learned the same have in common."""

from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.metrics import read_metrics

TRACE = ("step", "tokens", "train/loss", "train/lr", "train/grad_norm", "val/loss", "val/bpb")


def trace(folder: Path) -> list[tuple]:
    """All of metrics.jsonl that must not depend on where and how often a run was stopped."""
    return [tuple(row.get(key) for key in TRACE) for row in read_metrics(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = checkpoints(folder / "checkpoints")[-1]
    return load_checkpoint(path)["state_dict"]


def assert_same_trace(run: Path, one: Path) -> None:
    """Compare the metrics of two runs up to the rounding of sums in another order; steps and tokens are equal."""
    ours, theirs = trace(run), trace(one)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    for mine, wanted in zip(ours, theirs, strict=True):
        for a, b in zip(mine[2:], wanted[2:], strict=True):
            assert (a is None) == (b is None)
            assert a is None or a == pytest.approx(b, rel=2e-4), (mine, wanted)


def same(a: Path, b: Path) -> bool:
    """Tell whether two runs learned the same bit for bit; print what differs, which pytest shows if the test fails."""
    x, y = weights(a), weights(b)
    rows = [pair for pair in zip_longest(trace(a), trace(b)) if pair[0] != pair[1]]
    names = [
        name for name in x.keys() | y.keys() if name not in x or name not in y or not torch.equal(x[name], y[name])
    ]
    for first, second in rows:
        print(f"{first}\n{second}\n")
    for name in names:
        far = float((x[name] - y[name]).abs().max()) if name in x and name in y else None
        print(f"{name}: largest difference {far}")
    return not rows and not names
