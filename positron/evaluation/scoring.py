"""What a model makes of a text: the sums behind loss, perplexity and bits per byte."""

from __future__ import annotations

import torch
from torch import Tensor

from positron.evaluation.metrics import Score
from positron.model.gpt import GPT
from positron.model.loss import IGNORE, token_losses

ROWS = 16  # windows at a time


@torch.inference_mode()
def window_losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Nats of each target, (N, T), 0 where y is -100; x, y (N, T)."""
    device = model.wte.weight.device
    losses = []
    for part_x, part_y in zip(x.split(ROWS), y.split(ROWS), strict=True):
        hidden = model.hidden(part_x.to(device)).flatten(0, 1)
        losses.append(token_losses(hidden, model.head_weight, part_y.to(device).flatten()).view_as(part_y).cpu())
    return torch.cat(losses)


def score(model: GPT, x: Tensor, y: Tensor, token_bytes: Tensor) -> Score:
    """Over all windows x, y (N, T); `token_bytes` (V,)."""
    scored = y != IGNORE
    n_bytes = token_bytes[y.clamp(min=0)].mul(scored).sum()
    return Score(nats=float(window_losses(model, x, y).double().sum()), bytes=int(n_bytes), tokens=int(scored.sum()))
