"""What two runs that learned the same have in common."""

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
    x, y = weights(a), weights(b)
    return trace(a) == trace(b) and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
