"""Refuse to train if the processes of a run have chosen different values for settings that are `auto`."""

from __future__ import annotations

import lightning as L
from torch import distributed

from positron.run.facts import Resolved
from positron.system.errors import UserError
from positron.training.module import TrainingModule


class Agreement(L.Callback):
    """Raise UserError before the first step if two processes chose different values for a setting that is `auto`.

    Each process measures its own device, so the precision and the micro-batch size of two processes may differ. Without this
    check, two processes with different values would score the wrong parts of the validation text, and with sharded weights
    they would wait for each other forever.
    """

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved

    def on_fit_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Raise UserError in all processes if two of them chose different values for a setting that is `auto`."""
        if trainer.world_size == 1:
            return
        plans: list[Resolved] = [self.resolved] * trainer.world_size
        distributed.all_gather_object(plans, self.resolved)
        refuse_different_plans(plans)


def refuse_different_plans(plans: list[Resolved]) -> None:
    """Raise UserError if the ranks have different values of a setting that must be equal; `plans[i]` belongs to rank i."""
    for key, setting in (
        ("batch_tokens", "train.batch_tokens"),
        ("max_steps", "train.max_steps"),
        ("accelerator", "device"),
        ("precision", "precision"),
        ("micro_batch_size", "train.micro_batch_size"),
    ):
        values = [getattr(plan, key) for plan in plans]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            match key:
                case "micro_batch_size":
                    advice = min(values)
                case "accelerator":
                    advice = "cpu"  # the only one that each machine has
                case _:
                    advice = values[0]
            raise UserError(
                f"the processes chose different values of {setting} ({values[0]} on rank 0, {values[other]} on rank {other}): "
                f"start all processes with {setting}={advice}"
            )
