"""Measure the time that `monitor=all` adds to training at its default interval.

    python -m scripts.bench.monitors [settings of positron.train]

One run (default: the quickstart's recipe) trains intervals of 100 steps with and without monitors in turns. The wall time of
whole steps is compared, including all callbacks; validation, samples and checkpoints are switched off. The result is a
median over pairs of intervals.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from positron.cli.request import compose
from positron.config import MonitorConfig, RunConfig
from positron.settings import from_dict
from positron.system.exits import errors_as_one_line
from positron.train import train
from positron.training.monitors.probe import Monitor

EVERY = MonitorConfig().every
PAIRS = 6
QUIET = {"val_every": 10**6, "sample_every": 10**6, "save_every": 10**6}


class Stretches(L.Callback):
    """Switch the monitors on in every second interval of EVERY steps; measure each interval except the first one."""

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds: tuple[list[float], list[float]] = ([], [])  # without monitors, with all

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        stretch, place = divmod(trainer.global_step, EVERY)
        if place:
            return
        now = time.perf_counter()
        if stretch > 1:
            self.seconds[(stretch - 1) % 2].append(now - self.start)
        self.start = now
        for monitor in self.monitors:
            monitor.every = EVERY if stretch % 2 else 10**9


def main() -> None:
    stretches = Stretches()
    with errors_as_one_line(), tempfile.TemporaryDirectory() as folder:
        values = compose("train", ["experiment=quickstart", "monitor=all", "name=bench", *sys.argv[1:]])
        values["train"] |= {**QUIET, "max_steps": EVERY * (2 * PAIRS + 1) + 1}
        values["data"]["dir"] = str(Path(folder) / "data")
        train(from_dict(RunConfig, values), Path(folder) / "bench", [stretches])
    without, with_all = stretches.seconds
    ratios = [b / a for a, b in zip(without, with_all, strict=False)]
    spread = f"{min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%} in {len(ratios)} pairs"
    print(
        f"{EVERY} steps without monitors: {statistics.median(without):.3f} s; with all: {statistics.median(with_all):.3f} s"
    )
    print(f"overhead {statistics.median(ratios) - 1:+.2%} ({spread})")


if __name__ == "__main__":
    main()
