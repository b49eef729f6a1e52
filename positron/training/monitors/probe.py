"""The base classes of monitors, and the probe: a few validation windows that stay the same during a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from positron.config import IGNORE
from positron.model.gpt import GPT
from positron.training.module import TrainingModule
from positron.training.objective.base import Objective

PROBE_TOKENS = 2048  # or one window, if that is longer


@dataclass(frozen=True)
class Probe:
    """Hold input and target ids x, y, each (N, T); targets are -100 where no loss is computed."""

    x: Tensor
    y: Tensor

    @classmethod
    def from_objective(cls, objective: Objective) -> Probe:
        """Take about PROBE_TOKENS tokens in windows of one width, at equal distances from the whole validation text."""
        rows = objective.probe_rows()
        count = min(len(rows), max(1, PROBE_TOKENS // max(len(x) for x, _ in rows)))
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
        width = max(len(x) for x, _ in chosen)
        x = torch.stack([F.pad(x, (0, width - len(x))) for x, _ in chosen])
        y = torch.stack([F.pad(y, (0, width - len(y)), value=IGNORE) for _, y in chosen])
        return cls(x, y)

    @property
    def real(self) -> Tensor:
        """Mask (N, T) of the tokens up to the last target of each row; the rest is padding."""
        return (self.y != IGNORE).flip(1).cummax(dim=1).values.flip(1)

    def to(self, device: torch.device) -> Probe:
        """Copy the probe to a device."""
        return Probe(self.x.to(device), self.y.to(device))


class Monitor(L.Callback):
    """Measure at each multiple of `every` optimizer steps, on the first rank."""

    def __init__(self, every: int) -> None:
        self.every = every

    def is_due(self, trainer: L.Trainer, step: int) -> bool:
        """Tell whether this rank measures at a step."""
        return step % self.every == 0 and trainer.is_global_zero


class ProbeMonitor(Monitor):
    """Run the model on the probe, without dropout and in the precision of the training, and measure its inside."""

    def __init__(self, every: int, probe: Probe) -> None:
        super().__init__(every)
        self.probe = probe

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the measured values to the metrics of the step."""
        if not self.is_due(trainer, trainer.global_step):
            return
        probe = self.probe.to(module.device)
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            module.metrics |= self.measure(module.model, probe, module.objective.documents(probe.x))
        module.train()

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """Return the values by their metric names; each monitor overrides this.

        `documents` (N, T): the number of each token's document, or None if attention crosses documents. Use
        `model.hidden`, which, unlike `model`, is never compiled and runs the hooks of each module.
        """
        raise NotImplementedError


def to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Copy scalars () from a device to the host in one transfer."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}


def group_values(keys: Iterable[str], values: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Collect the values of equal keys in lists."""
    groups: dict[str, list[Tensor]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return groups
