"""An optimizer step without a trainer around it: what a budget's measuring and the benchmarks take."""

from __future__ import annotations

import torch
from torch import Tensor

from positron.model.gpt import GPT
from positron.training.device import CPU_MICRO_TOKENS, Machine
from positron.training.optimizer import clip_gradients


def add_gradient(model: GPT, rows: Tensor, machine: Machine) -> None:
    """Of the mean loss of rows (B, T + 1) on the machine's device, so many at a time as suit a CPU's cache."""
    for part in rows.split(max(1, CPU_MICRO_TOKENS // model.config.context_length)):
        with machine.autocast():
            loss = model(part[:, :-1], part[:, 1:]) / rows[:, 1:].numel()
        loss.backward()


def update(model: GPT, optimizer: torch.optim.Optimizer, grad_clip: float) -> None:
    clip_gradients(list(model.parameters()), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
