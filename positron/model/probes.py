"""What a model does inside, read off by the side: the same mathematics as in gpt.py, in its plain form.

The fused kernels of training never hold attention's probabilities, so they are computed here anew from what each block's
attention reads. Nothing is drawn and nothing of the model changes: training goes on as if nobody had looked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from positron.model.gpt import GPT, Attention, Rope
from positron.model.kernels.attention import window_mask
from positron.model.kernels.precision import wide

Inputs = tuple[Tensor, Rope | None, Tensor | None]  # what Attention.forward takes: x (B, T, C), rope, mask (B, 1, T, T)


@torch.no_grad()
def attention_inputs(model: GPT, idx: Tensor, documents: Tensor | None = None) -> list[tuple[Attention, Inputs]]:
    """Each block's attention with what it reads for token ids (B, T), without dropout.

    `model.hidden`, unlike `model`, is never compiled and calls the parts of the model one by one, hooks and all.
    """
    found: list[tuple[Attention, Inputs]] = []

    def note(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        found.append((attention, (arguments[0], arguments[1], arguments[2])))

    hooks = [block.attn.register_forward_pre_hook(note) for block in model.blocks]  # type: ignore[union-attr]
    was_training = model.training
    model.eval()
    try:
        model.hidden(idx, documents)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def queries_and_keys(attn: Attention, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor]:
    """What `attn` multiplies with each other for x (B, T, C): (B, H, T, D) each, keys repeated for heads that share."""
    q, k, _ = attn.heads(x, rope)
    return q, k.repeat_interleave(attn.n_head // attn.n_kv_head, dim=1)


def visible_keys(attn: Attention, inputs: Inputs) -> Tensor:
    """(B or 1, T, T), True where a query (row) may look at a key."""
    x, _, mask = inputs
    return window_mask(x.shape[1], attn.window, x.device)[None] if mask is None else mask[:, 0]


def probabilities(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) over the keys that are visible, (..., T, T); in fp32 or wider, whatever autocast says."""
    dtype = wide(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
        return scores.masked_fill_(~visible, float("-inf")).softmax(dim=-1)


@torch.no_grad()
def attention_probabilities(model: GPT, idx: Tensor) -> list[Tensor]:
    """(B, H, T, T) for each layer, query by key, of token ids (B, T)."""
    found = []
    for attn, inputs in attention_inputs(model, idx):
        q, k = queries_and_keys(attn, inputs[0], inputs[1])
        found.append(probabilities(q, k, visible_keys(attn, inputs)[:, None]))
    return found
