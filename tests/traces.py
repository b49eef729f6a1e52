"""What two runs that learned the same have in common."""

from itertools import zip_longest
from pathlib import Path

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
