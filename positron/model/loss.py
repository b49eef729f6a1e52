"""Cross-entropy of a linear output head, without ever holding the logits of a whole batch.

At vocabulary 16,000 the logits of 4,096 tokens take 262 MB in fp32, and their gradient as much again; in chunks of rows
they stay near the cache. The gradient of the logits, softmax minus one-hot, is formed in place as soon as a chunk's
loss is known, so the backward pass has nothing left to do but to scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that carries no loss
CHUNK_VALUES = 1 << 23  # logits at a time: 32 MB in fp32


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed -log softmax(x weight^T)[target] in nats over the targets that are not IGNORE. x (N, C), weight (V, C)."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(x, weight, targets, dtype)
    return token_losses(x, weight, targets).sum()


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target (N,) in nats, 0 where IGNORE, in fp32 or wider."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    losses = torch.empty(len(x), dtype=wide, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        head = weight.to(dtype).t()
        for rows in _chunks(len(x), len(weight)):
            logits = (x[rows].to(dtype) @ head).to(wide)
            target = logits.gather(1, targets[rows].clamp(min=0)[:, None])[:, 0]
            losses[rows] = (logits.logsumexp(dim=-1) - target).mul_(targets[rows] != IGNORE)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Matrix products in `dtype` (autocast's, where it is on), softmax and the weight's gradient in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            inputs, head = x.to(dtype), weight.to(dtype)
            dx = torch.empty_like(inputs)
            dw = torch.zeros(weight.shape, dtype=wide, device=weight.device)
            loss = torch.zeros((), dtype=wide, device=x.device)
            for rows in _chunks(len(x), len(weight)):
                logits = inputs[rows] @ head.t()  # (n, V)
                target, valid = targets[rows].clamp(min=0)[:, None], (targets[rows] != IGNORE).to(wide)[:, None]
                p = logits.softmax(dim=-1, dtype=wide)
                # log-sum-exp by the likeliest token, p >= 1 / V, whose logarithm cannot be that of an underflowed 0
                top, place = p.max(dim=-1, keepdim=True)
                lse = logits.gather(1, place).to(wide) - top.log()
                loss += ((lse - logits.gather(1, target).to(wide)) * valid).sum()
                # d loss / d logits = softmax - one-hot, nothing where there is no target
                p.scatter_add_(1, target, torch.full_like(valid, -1.0))
                d = p.mul_(valid).to(dtype)
                dx[rows] = d @ head
                dw += d.t() @ inputs[rows]
        ctx.save_for_backward(dx, dw)
        ctx.dtypes = x.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, dw = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        return (dx * grad).to(x_dtype), (dw * grad).to(weight_dtype), None, None


def _chunks(n: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_VALUES // vocab_size)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]
