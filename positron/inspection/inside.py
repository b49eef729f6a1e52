"""Compute the forward pass without fast kernels, and keep the residual stream and the attention probabilities."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from positron.model.gpt import GPT, Block
from positron.model.probes import probabilities, visible_keys


class Inside(NamedTuple):
    """Hold the residual streams and the attention probabilities of a forward pass through L layers."""

    stream: list[Tensor]  # L + 1 tensors (B, T, C): the residual stream before the first block and after each block
    attention: list[Tensor | None]  # L tensors (B, H, T, T), query by key; None for a layer that was not asked for


@torch.no_grad()
def look_inside(model: GPT, idx: Tensor, layers: Collection[int] | None = None) -> Inside:
    """Compute the intermediate values for token ids (B, T), without dropout. Several threads may share one model.

    `layers`: the layers whose attention is returned, or None for all. Raises ValueError if T exceeds the context length.
    """
    x, rope, mask = model.embed(idx)
    stream, attention = [x], list[Tensor | None]()
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        attn, normed = block.attn, block.norm1(x)
        q, k, v = attn.heads(normed, rope)
        group = attn.n_head // attn.n_kv_head
        p = probabilities(q, k.repeat_interleave(group, dim=1), visible_keys(attn, (normed, rope, mask))[:, None])
        y = p.to(v.dtype) @ v.repeat_interleave(group, dim=1)  # (B, H, T, D)
        x = x + attn.out(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        stream.append(x)
        attention.append(p if layers is None or layer in layers else None)
    return Inside(stream, attention)


@torch.no_grad()
def log_probabilities(model: GPT, stream: Tensor) -> Tensor:
    """Apply the final norm and the output matrix to the residual stream (..., C), and return log probabilities (..., V).

    The result is in nats, as float64. For the residual stream after the last block, the result is the model's prediction. For
    the residual stream after an earlier block, the result is the prediction of the logit lens.
    """
    return model.logits(model.norm_f(stream)).double().log_softmax(dim=-1)
