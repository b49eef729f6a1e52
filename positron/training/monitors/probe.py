"""What monitors share: when they measure, and the probe, a few validation windows that stay the same during a run."""

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

PROBE_TOKENS = 2048  # or one window, where that is longer


@dataclass(frozen=True)
class Probe:
    """Input and target ids x, y (N, T), -100 where there is no loss; `real` (N, T) is False in the padding of a row."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, objective: Objective) -> Probe:
        """Windows from all over the validation text, of one width; about PROBE_TOKENS tokens."""
        rows = objective.probe_rows()
        count = min(len(rows), max(1, PROBE_TOKENS // max(len(x) for x, _ in rows)))
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
        width = max(len(x) for x, _ in chosen)
        x = torch.stack([F.pad(x, (0, width - len(x))) for x, _ in chosen])
        y = torch.stack([F.pad(y, (0, width - len(y)), value=IGNORE) for _, y in chosen])
        return cls(x, y)

    @property
    def real(self) -> Tensor:
        """(N, T) True up to the last target of a row: behind it, nothing is read."""
        return (self.y != IGNORE).flip(1).cummax(dim=1).values.flip(1)

    def to(self, device: torch.device) -> Probe:
        return Probe(self.x.to(device), self.y.to(device))


class Monitor(L.Callback):
    """Measures at each multiple of `every` steps, on the first rank."""

    def __init__(self, every: int) -> None:
        self.every = every

    def is_due(self, trainer: L.Trainer, step: int) -> bool:
        return step % self.every == 0 and trainer.is_global_zero


class ProbeMonitor(Monitor):
    """Measures what the model makes of the probe: without dropout, in the precision of the training."""

    def __init__(self, every: int, probe: Probe) -> None:
        super().__init__(every)
        self.probe = probe

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        if not self.is_due(trainer, trainer.global_step):
            return
        probe = self.probe.to(module.device)
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            module.metrics |= self.measure(module.model, probe, module.objective.documents(probe.x))
        module.train()

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """`documents` (N, T), where they are kept apart, as `GPT.hidden` takes them.

        `model.hidden`, unlike `model`, is never compiled and calls the parts of the model one by one, hooks and all.
        """
        raise NotImplementedError  # each monitor has its own


def on_host(found: dict[str, Tensor]) -> dict[str, float]:
    """Numbers on a device as floats, in one transfer."""
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}


def grouped(keys: Iterable[str], values: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    groups: dict[str, list[Tensor]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return groups
