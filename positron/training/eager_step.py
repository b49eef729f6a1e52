"""Take an optimizer step without Lightning's Trainer.

The setting `budget=TIME` uses this module to measure the training speed, from which it chooses the size of the model. The
benchmarks in scripts/bench use it, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from positron.model.gpt import GPT
from positron.training.device import CPU_MICRO_TOKENS, Machine
from positron.training.objective.base import Part
from positron.training.optim.groups import clip_gradients


def cross_entropy(model: GPT, part: Part) -> Tensor:
    """Return the sum of the losses of a micro-batch, in nats."""
    total: Tensor = model(*part)
    return total


def add_gradient(
    model: GPT, rows: Tensor, machine: Machine, loss_of: Callable[[GPT, Part], Tensor] = cross_entropy
) -> None:
    """Add the gradient of the mean loss over `rows`, token ids (B, T + 1), to the gradients of the model's parameters.

    On a CPU the rows are processed in micro-batches that fit the CPU's cache. `loss_of` returns the sum of the losses of a
    micro-batch, as `Objective.loss` does.
    """
    micro = max(1, CPU_MICRO_TOKENS // rows[0, 1:].numel()) if machine.accelerator == "cpu" else len(rows)
    for part in rows.split(micro):
        with machine.autocast():
            loss = loss_of(model, (part[:, :-1], part[:, 1:])) / rows[:, 1:].numel()
        loss.backward()


def update(model: GPT, optimizer: torch.optim.Optimizer, grad_clip: float) -> None:
    """Clip the gradients to the norm `grad_clip`, take an optimizer step, and clear the gradients."""
    clip_gradients(list(model.parameters()), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
