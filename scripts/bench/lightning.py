"""What Lightning and our callbacks cost: each step of a real run beside the same step of a bare loop, in turns.

    python -m scripts.bench.lightning

Before every step of `positron.train`, a copy of the model takes the same step (same batch, gradients, clipping, optimizer)
in a loop of a few lines. The run's own step is everything from there to the next one: reading the batch, Lightning's loop,
logging every 10 steps, the progress line. Validation, samples and checkpoints are left out. Medians and differences of pairs.
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

SIZES = {  # settings of positron.train, and how many steps
    "tinygpt": (["model=tinygpt", "train.batch_tokens=4096"], 34),
    "nano": (["model=nano", "train.batch_tokens=4096"], 64),
    "debug": (["model=debug", "train.batch_tokens=2048"], 300),
}
QUIET = ["train.val_every=1000000", "train.sample_every=1000000", "train.save_every=1000000", "schedule.warmup_steps=1"]
WARM = 4  # pairs that are not counted


class Turns(L.Callback):
    """Keeps (bare, through Lightning) in seconds for each pair of steps."""

    every = 10**9  # as of any monitor, for the rows of metrics.jsonl

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.bare_s = self.begun = 0.0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.model = copy.deepcopy(module.model)
        self.machine = Machine("cpu", "bf16" if "bf16" in module.trainer.precision else "fp32", "")
        self.optimizer = build_optimizer(self.model.named_parameters(), module.optimizer_config, fused=True)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        now = time.perf_counter()
        if self.begun:
            self.pairs.append((self.bare_s, now - self.begun))
        self.bare_step(module.objective.train.batch(trainer.global_step + 1), module)
        self.begun = time.perf_counter()
        self.bare_s = self.begun - now

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
    return turns.pairs[WARM:]


def main() -> None:
    found = {}
    with errors_as_one_line(), tempfile.TemporaryDirectory() as folder:
        for name, (settings, steps) in SIZES.items():
            found[name] = pairs_of(settings, steps, Path(folder))
    print(f"\n{'':<10}{'bare, ms':>10}{'Lightning, ms':>15}{'difference':>12}{'share':>8}")
    for name, pairs in found.items():
        bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
        more = statistics.median(b - a for a, b in pairs)
        print(f"{name:<10}{1e3 * bare:>10.1f}{1e3 * ours:>15.1f}{1e3 * more:>9.2f} ms{more / bare:>8.1%}")


if __name__ == "__main__":
    main()
