"""Recompute attention probabilities, which the fused kernels never store, from the inputs of each attention layer.

The mathematics is the same as in gpt.py. These functions draw no random numbers and do not change the model, so training
continues bit for bit as it would without them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from positron.model.gpt import GPT, Attention
from positron.model.kernels.attention import window_mask
from positron.model.kernels.norms_and_heads import Rope
from positron.model.kernels.precision import wide

Inputs = tuple[Tensor, Rope | None, Tensor | None]  # what Attention.forward takes: x (B, T, C), rope, mask (B, 1, T, T)


@torch.no_grad()
def attention_inputs(model: GPT, idx: Tensor, documents: Tensor | None = None) -> list[tuple[Attention, Inputs]]:
    """Return for each block the attention module and the module's inputs for token ids (B, T), without dropout.

    The inputs are the arguments of `Attention.forward`. `documents`: document numbers (B, T), or None if attention crosses
    documents. The inputs are recorded by hooks of the attention modules. This function calls `model.hidden` instead of `model`:
    `model.hidden` is never compiled, so it always calls the hooks.
    """
    per_block: list[tuple[Attention, Inputs]] = []

    def record(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        per_block.append((attention, (arguments[0], arguments[1], arguments[2])))

    hooks = [block.attn.register_forward_pre_hook(record) for block in model.blocks]  # type: ignore[union-attr]
    was_training = model.training
    model.eval()
    try:
        model.hidden(idx, documents)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return per_block


def queries_and_keys(attn: Attention, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor]:
    """Return queries and keys for x (B, T, C), both of shape (B, H, T, D); keys that several heads share are repeated."""
    q, k, _ = attn.heads(x, rope)
    return q, k.repeat_interleave(attn.n_head // attn.n_kv_head, dim=1)


def visible_keys(attn: Attention, inputs: Inputs) -> Tensor:
    """Return a mask (B, T, T), query by key, that is True where the query may attend to the key.

    `inputs` are the arguments of `Attention.forward`. If they contain no mask, the result is the same for all sequences of the
    batch, and its shape is (1, T, T).
    """
    x, _, mask = inputs
    return window_mask(x.shape[1], attn.window, x.device)[None] if mask is None else mask[:, 0]


def probabilities(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) over the visible keys, of shape (..., T, T).

    `q` and `k` have the shape (..., T, D), and `visible` has the shape (..., T, T). The computation is in fp32 or wider, even
    under autocast.
    """
    dtype = wide(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
        return scores.masked_fill_(~visible, float("-inf")).softmax(dim=-1)


@torch.no_grad()
def attention_probabilities(model: GPT, idx: Tensor) -> list[Tensor]:
    """Compute the attention probabilities (B, H, T, T), query by key, of each layer for token ids (B, T)."""
    by_layer = []
    for attn, inputs in attention_inputs(model, idx):
        q, k = queries_and_keys(attn, inputs[0], inputs[1])
        by_layer.append(probabilities(q, k, visible_keys(attn, inputs)[:, None]))
    return by_layer
