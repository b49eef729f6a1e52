"""Take an optimizer step without Lightning's Trainer, for the measurements of a time budget and for benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from positron.model.gpt import GPT, document_numbers
from positron.training.device import CPU_MICRO_TOKENS, Machine
from positron.training.optim.groups import clip_gradients


def add_gradient(model: GPT, rows: Tensor, machine: Machine, document_start: int | None = None) -> None:
    """Add the gradient of the mean loss over rows (B, T + 1) to the parameters' gradients.

    On a CPU the rows are processed in micro-batches that fit the CPU's cache. `document_start`: the id that begins documents
    if attention does not cross documents, otherwise None.
    """
    micro = max(1, CPU_MICRO_TOKENS // model.config.context_length) if machine.accelerator == "cpu" else len(rows)
    for part in rows.split(micro):
        x, y = part[:, :-1], part[:, 1:]
        with machine.autocast():
            loss = model(x, y, document_numbers(x, document_start)) / rows[:, 1:].numel()
        loss.backward()


def update(model: GPT, optimizer: torch.optim.Optimizer, grad_clip: float) -> None:
    """Clip the gradients to the norm `grad_clip`, take an optimizer step, and clear the gradients."""
    clip_gradients(list(model.parameters()), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
