"""What a model does inside, read off by the side: the same mathematics as in gpt.py, in its plain form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, NORM_EPS, Attention, Rope, apply_rope


@torch.no_grad()
def attention_probabilities(model: GPT, idx: Tensor) -> list[Tensor]:
    """softmax(q k^T / sqrt(D)) over the past, (B, H, T, T) for each layer, of token ids (B, T) without dropout.

    The fused kernels of training never hold these numbers, so they are computed here anew from each attention's input.
    Nothing is drawn and nothing of the model changes: training goes on as if nobody had looked.
    """
    inputs: list[tuple[Attention, Tensor, Rope | None]] = []

    def note(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        inputs.append((attention, arguments[0], arguments[1]))

    hooks = [block.attn.register_forward_pre_hook(note) for block in model.blocks]  # type: ignore[union-attr]
    was_training = model.training
    model.eval()
    try:
        model.hidden(idx)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [_probabilities(*one) for one in inputs]


def _probabilities(attention: Attention, x: Tensor, rope: Rope | None) -> Tensor:
    """x (B, T, C) -> (B, H, T, T), query by key; the heads of a group look at the same keys."""
    B, T, _ = x.shape
    q = attention.q(x).view(B, T, attention.n_head, attention.d_head).transpose(1, 2)  # (B, H, T, D)
    k = attention.k(x).view(B, T, attention.n_kv_head, attention.d_head).transpose(1, 2)  # (B, K, T, D)
    if rope is not None:
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if attention.qk_norm:
        q, k = (F.rms_norm(part, (attention.d_head,), eps=NORM_EPS) for part in (q, k))
    k = k.repeat_interleave(attention.n_head // attention.n_kv_head, dim=1)  # (B, H, T, D)
    scores = q @ k.mT / math.sqrt(attention.d_head)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)
