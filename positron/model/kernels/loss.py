"""Cross-entropy of a linear output head, without ever holding the logits of a whole batch.

At vocabulary 16,000 the logits of 4,096 tokens take 262 MB in fp32, and their gradient as much again. Here a chunk of
rows is multiplied at a time, and part of those rows passes through the softmax at a time, which is in fp32. The gradient
of the logits, softmax minus one-hot, takes the place of the logits as soon as their loss is known, so the backward pass
has nothing left to do but to scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from positron.config import IGNORE
from positron.model.kernels.precision import product_dtype, wide

CHUNK_VALUES = 1 << 24  # logits at a time, 32 MB in bf16: half as many are 3 % slower, twice as many 3 % faster
# of them in the softmax at a time, 16 MB in fp32. Parts that fit the cache, 1 << 19, are 3 % faster on idle cores, but
# all their small operators wait for the slowest thread: twice as slow when another program wants the cores, too.
SOFTMAX_VALUES = 1 << 22
SMALL = 1e-30  # probabilities from which logarithms are exact: below, fp32 is near the end of its range


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed -log softmax(x weight^T)[target] in nats over the targets that are not IGNORE. x (N, C), weight (V, C)."""
    if x.device.type == "cpu":  # elsewhere, to know how many are left would wait for the device
        scored = targets != IGNORE
        if not scored.all():
            x, targets = x[scored], targets[scored]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(x, weight, targets, product_dtype(x))
    return token_losses(x, weight, targets).sum()


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target (N,) in nats, 0 where IGNORE, in fp32 or wider."""
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        head = weight.to(dtype).t()
        losses = torch.empty(len(x), dtype=wide(dtype), device=x.device)
        for rows in _chunks(len(x), len(weight), CHUNK_VALUES):
            logits, labels = x[rows].to(dtype) @ head, targets[rows]
            for part in _chunks(len(logits), len(weight), SOFTMAX_VALUES):
                losses[rows][part], _ = _losses(logits[part], labels[part])
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Matrix products in `dtype` (autocast's, where it is on), softmax and the weight's gradient in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            inputs, head = x.to(dtype), weight.to(dtype)
            valid = (targets != IGNORE)[:, None]
            scored = inputs * valid  # (N, C): rows without a target give the weight no gradient
            dx = torch.empty_like(inputs)
            dw = torch.zeros(weight.shape, dtype=wide(dtype), device=weight.device)
            loss = torch.zeros((), dtype=dw.dtype, device=x.device)
            for rows in _chunks(len(x), len(weight), CHUNK_VALUES):
                logits, labels = inputs[rows] @ head.t(), targets[rows]  # (n, V), (n,)
                for part in _chunks(len(logits), len(weight), SOFTMAX_VALUES):
                    losses, p = _losses(logits[part], labels[part])
                    loss += losses.sum()
                    # d loss / d logits = softmax - one-hot, in the place of the logits
                    place = labels[part].clamp(min=0)[:, None]
                    logits[part] = p.scatter_add_(1, place, torch.full_like(p[:, :1], -1.0))
                dx[rows] = logits @ head
                dw += logits.t() @ scored[rows]
            dx *= valid
        ctx.save_for_backward(dx, dw)
        ctx.dtypes = x.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, dw = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        return (dx * grad).to(x_dtype), (dw * grad).to(weight_dtype), None, None


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and targets (n,) -> losses (n,) and softmax (n, V), both in fp32 or wider."""
    p = logits.softmax(dim=-1, dtype=wide(logits.dtype))
    of_target = p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    if p.device.type == "cpu" and bool((of_target > SMALL).all()):  # elsewhere, to know would wait for the device
        return of_target.log_().neg_().masked_fill_(targets == IGNORE, 0.0), p
    # Any token gives the log-sum-exp, its logit - log p. The likeliest one has p >= 1 / V, which cannot underflow to 0,
    # and costs less than half of a second pass of exponentials.
    log_sum_exp = logits.amax(dim=-1).to(p.dtype) - p.amax(dim=-1).log()
    target = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].to(p.dtype)
    return (log_sum_exp - target).masked_fill_(targets == IGNORE, 0.0), p


def _chunks(n: int, width: int, values: int) -> list[slice]:
    """Slices of n rows with at most `values` numbers each, or one row."""
    size = max(1, values // width)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]
