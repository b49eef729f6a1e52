"""Define the base classes of monitors, and the probe: a few validation windows that stay the same during the whole run."""

from __future__ import annotations

from abc import ABC, abstractmethod
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

PROBE_TOKENS = 2048  # the tokens of a probe; a single window may be longer


@dataclass(frozen=True)
class Probe:
    """Hold N fixed validation windows of T tokens: input ids x (N, T) and target ids y (N, T).

    A target of -100 has no loss.
    """

    x: Tensor
    y: Tensor

    @classmethod
    def from_objective(cls, objective: Objective) -> Probe:
        """Select evenly spaced windows of the validation text, at most about 2,048 tokens together (PROBE_TOKENS).

        At least one window is selected. Shorter windows are padded to the length of the longest one.
        """
        rows = objective.probe_rows()
        count = min(len(rows), max(1, PROBE_TOKENS // max(len(x) for x, _ in rows)))
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
        width = max(len(x) for x, _ in chosen)
        x = torch.stack([F.pad(x, (0, width - len(x))) for x, _ in chosen])
        y = torch.stack([F.pad(y, (0, width - len(y)), value=IGNORE) for _, y in chosen])
        return cls(x, y)

    @property
    def real(self) -> Tensor:
        """Return a mask (N, T) that is True for the tokens up to the last target of each row, and False for the padding."""
        return (self.y != IGNORE).flip(1).cummax(dim=1).values.flip(1)

    def to(self, device: torch.device) -> Probe:
        """Copy the probe to a device."""
        return Probe(self.x.to(device), self.y.to(device))


class Monitor(L.Callback):
    """Serve as the base class of monitors, which measure a run at each optimizer step that is a multiple of `every`.

    Only the first rank measures.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def is_due(self, trainer: L.Trainer, step: int) -> bool:
        """Tell whether this rank measures at `step`."""
        return step % self.every == 0 and trainer.is_global_zero


class ProbeMonitor(Monitor, ABC):
    """Serve as the base class of monitors that run the model on the probe and measure its activations or losses.

    The probe is a few fixed validation windows. The model runs as in validation: without dropout, with the mean of the weights
    if there is one, and in the precision of the training.
    """

    def __init__(self, every: int, probe: Probe) -> None:
        super().__init__(every)
        self.probe = probe

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the measured values to the metrics of the step."""
        if not self.is_due(trainer, trainer.global_step):
            return
        probe = self.probe.to(module.device)
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context(), module.average.in_use():
            module.metrics |= self.measure(module.model, probe, module.objective.documents(probe.x))
        module.train()

    @abstractmethod
    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """Return a dict from metric name to measured value. Each subclass overrides this method.

        `probe`: N fixed validation windows of T tokens, with input ids `probe.x` and targets `probe.y`, (N, T) each.
        `documents` (N, T): the index of each token's document in its row, or None if attention crosses documents. An
        implementation must call `model.hidden` and not `model`, because `hidden` is never compiled and always runs the hooks of
        each module.
        """


def to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Convert scalar tensors to floats, with a single transfer from the device."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}


def group_values(keys: Iterable[str], values: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Return a dict from each key to the list of its values; `keys` and `values` have the same length."""
    groups: dict[str, list[Tensor]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return groups
