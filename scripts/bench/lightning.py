"""Measure the time that Lightning and Positron's callbacks add to a training step.

    python -m scripts.bench.lightning

Before every step of `positron.train`, a copy of the model makes the same step (batch, gradients, clipping, optimizer) in a
loop of a few lines. The time of a step of `positron.train` ends when the next step begins, so that it includes reading the
batch, Lightning's loop, logging every 10 steps, and the progress line. Validation, samples and checkpoints are switched off.
The table shows medians over pairs of steps.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from positron.cli.request import compose
from positron.config import RunConfig
from positron.settings import from_dict
from positron.system.exits import errors_as_one_line
from positron.train import train
from positron.training.device import Machine
from positron.training.eager_step import add_gradient, update
from positron.training.optim.groups import build_optimizer

SIZES = {  # settings of positron.train, and number of steps
    "tinygpt": (["model=tinygpt", "train.batch_tokens=4096"], 34),
    "nano": (["model=nano", "train.batch_tokens=4096"], 64),
    "debug": (["model=debug", "train.batch_tokens=2048"], 300),
}
QUIET = ["train.val_every=1000000", "train.sample_every=1000000", "train.save_every=1000000", "schedule.warmup_steps=1"]
WARMUP_PAIRS = 4  # number of pairs at the beginning that are not counted


class Turns(L.Callback):
    """Make each step in the plain loop first; record pairs (seconds in this loop, seconds in Lightning)."""

    every = 10**9  # steps between rows in metrics.jsonl, as for a monitor

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.bare_s = self.start = 0.0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.model = copy.deepcopy(module.model)
        self.machine = Machine("cpu", "bf16" if "bf16" in module.trainer.precision else "fp32", "")
        self.optimizer = build_optimizer(self.model.named_parameters(), module.optimizer_config, fused=True)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        now = time.perf_counter()
        if self.start:
            self.pairs.append((self.bare_s, now - self.start))
        self.bare_step(module.objective.train.batch(trainer.global_step + 1), module)
        self.start = time.perf_counter()
        self.bare_s = self.start - now

    def bare_step(self, rows: torch.Tensor, module: Any) -> None:
        add_gradient(self.model, rows, self.machine)
        update(self.model, self.optimizer, module.grad_clip)


def pairs_of(settings: list[str], steps: int, folder: Path) -> list[tuple[float, float]]:
    turns = Turns()
    common = [
        "tokenizer=spm_4k",
        "device=cpu",
        f"data.dir={folder / 'data'}",
        f"train.max_steps={steps}",
        "name=bench",
    ]
    train(from_dict(RunConfig, compose("train", [*common, *QUIET, *settings])), folder / settings[0], [turns])
    return turns.pairs[WARMUP_PAIRS:]


def main() -> None:
    results = {}
    with errors_as_one_line(), tempfile.TemporaryDirectory() as folder:
        for name, (settings, steps) in SIZES.items():
            results[name] = pairs_of(settings, steps, Path(folder))
    print(f"\n{'':<10}{'loop, ms':>10}{'Lightning, ms':>15}{'difference':>12}{'share':>8}")
    for name, pairs in results.items():
        bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
        difference = statistics.median(b - a for a, b in pairs)
        print(f"{name:<10}{1e3 * bare:>10.1f}{1e3 * ours:>15.1f}{1e3 * difference:>9.2f} ms{difference / bare:>8.1%}")


if __name__ == "__main__":
    main()
