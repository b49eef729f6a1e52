"""Compute the cross-entropy of a linear output head without storing the logits of a whole batch.

For a vocabulary of 16,000, the logits of 4,096 tokens take 262 MB in fp32, and their gradient another 262 MB. Here the head
multiplies one chunk of rows at a time, and the softmax, in fp32, reads a part of the chunk at a time. The gradient of the
logits (softmax minus one-hot) is computed in the forward pass and overwrites the logits. The gradients of inputs and weight
follow in the same pass, so that the backward pass only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from positron.config import IGNORE
from positron.model.kernels.precision import product_dtype, wide

FP16_ROWS = 2048  # at most so many rows are summed in one product in fp16, whose largest number is 65,504
CHUNK_VALUES = 1 << 24  # logits per product, 32 MB in bf16; half as many are 3 % slower, twice as many 3 % faster
# Logits per softmax, 16 MB in fp32. Parts that fit into the cache (1 << 19) are 3 % faster on idle cores. But each small
# operator waits for the slowest thread, so that they are twice as slow when another program uses the cores, too.
SOFTMAX_VALUES = 1 << 22
MIN_EXACT_PROBABILITY = 1e-30  # below this, fp32 is near the end of its range and the logarithm is inexact


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute the sum of -log softmax(x weight^T)[target], in nats, over the targets that are not IGNORE (-100).

    x (N, C), weight (V, C), targets (N,) -> ().
    """
    if x.device.type == "cpu":  # on other devices, counting the targets would wait for the device
        scored = targets != IGNORE
        if not scored.all():
            x, targets = x[scored], targets[scored]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        total: Tensor = _LinearCrossEntropy.apply(x, weight, targets, product_dtype(x))
        return total
    return token_losses(x, weight, targets).sum()


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute the loss of each target, in nats, in fp32 or wider; 0 where the target is IGNORE (-100).

    x (N, C), weight (V, C), targets (N,) -> (N,).
    """
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        head = weight.to(dtype).t()
        losses = torch.empty(len(x), dtype=wide(dtype), device=x.device)
        for rows in chunks(len(x), len(weight), CHUNK_VALUES):
            logits, labels = x[rows].to(dtype) @ head, targets[rows]
            for part in chunks(len(logits), len(weight), SOFTMAX_VALUES):
                losses[rows][part], _ = losses_and_softmax(logits[part], labels[part])
    return losses


def linear_token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute the loss of each target as `token_losses` does, and support the backward pass to x and weight.

    x (N, C), weight (V, C), targets (N,) -> (N,). The backward pass computes the logits a second time, a chunk at a
    time. If only the sum of the losses is needed, `linear_cross_entropy` takes less time.
    """
    losses: Tensor = _LinearTokenLosses.apply(x, weight, targets, product_dtype(x))
    return losses


class _LinearTokenLosses(torch.autograd.Function):
    """Implement `linear_token_losses`. The backward pass computes the logits again, and from them the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight, targets)
        ctx.dtype = dtype
        return token_losses(x, weight, targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, targets = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            inputs, head = x.to(ctx.dtype), weight.to(ctx.dtype)
            scale = grad.masked_fill(targets == IGNORE, 0.0)[:, None]  # (N, 1)
            dx = torch.empty_like(inputs)
            dw = torch.zeros(weight.shape, dtype=wide(ctx.dtype), device=weight.device)
            for rows in chunks(len(x), len(weight), product_values(len(weight), inputs.dtype)):
                logits, labels = inputs[rows] @ head.t(), targets[rows]  # (n, V), (n,)
                for part in chunks(len(logits), len(weight), SOFTMAX_VALUES):
                    p = logits[part].softmax(dim=-1, dtype=dw.dtype)
                    # d loss / d logits = softmax - one-hot, written over the logits
                    logits[part] = subtract_one_hot_(p, labels[part]) * scale[rows][part]
                dx[rows] = logits @ head
                dw += logits.t() @ inputs[rows]
        return dx.to(x.dtype), dw.to(weight.dtype), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Implement `linear_cross_entropy`.

    Matrix products are in the argument `dtype` of `forward`. Softmax and the weight's gradient are in fp32 or wider.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            inputs, head = x.to(dtype), weight.to(dtype)
            valid = (targets != IGNORE)[:, None]
            scored = inputs * valid  # (N, C): rows without a target give the weight no gradient
            dx = torch.empty_like(inputs)
            dw = torch.zeros(weight.shape, dtype=wide(dtype), device=weight.device)
            loss = torch.zeros((), dtype=dw.dtype, device=x.device)
            for rows in chunks(len(x), len(weight), product_values(len(weight), inputs.dtype)):
                logits, labels = inputs[rows] @ head.t(), targets[rows]  # (n, V), (n,)
                for part in chunks(len(logits), len(weight), SOFTMAX_VALUES):
                    losses, p = losses_and_softmax(logits[part], labels[part])
                    loss += losses.sum()
                    # d loss / d logits = softmax - one-hot, written over the logits
                    logits[part] = subtract_one_hot_(p, labels[part])
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


def losses_and_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute losses (n,) in nats and softmax (n, V), in fp32 or wider, from logits (n, V) and targets (n,).

    A loss is 0 where the target is IGNORE (-100).
    """
    p = logits.softmax(dim=-1, dtype=wide(logits.dtype))
    p_target = p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    is_cpu = p.device.type == "cpu"  # on other devices, the comparison would wait for the device
    if is_cpu and bool((p_target > MIN_EXACT_PROBABILITY).all()):
        return p_target.log_().neg_().masked_fill_(targets == IGNORE, 0.0), p
    # log-sum-exp = logit - log p for any token. The most probable token has p >= 1 / V, which cannot underflow to 0. This
    # takes less than half the time of computing all exponentials a second time.
    log_sum_exp = logits.amax(dim=-1).to(p.dtype) - p.amax(dim=-1).log()
    target = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].to(p.dtype)
    return (log_sum_exp - target).masked_fill_(targets == IGNORE, 0.0), p


def subtract_one_hot_(p: Tensor, targets: Tensor) -> Tensor:
    """Subtract 1 from the probability of each target in p (n, V), in place, and return p.

    In a row whose target is IGNORE (-100), 1 is subtracted from the first probability, so the caller must not use this row.
    """
    return p.scatter_add_(1, targets.clamp(min=0)[:, None], torch.full_like(p[:, :1], -1.0))


def product_values(vocab_size: int, dtype: torch.dtype) -> int:
    """Return how many logits a matrix product of the backward pass may have.

    In fp16, the sums over many rows could overflow. Loss scaling does not prevent this, because the sums are computed before
    the loss is scaled.
    """
    return min(CHUNK_VALUES, FP16_ROWS * vocab_size) if dtype == torch.float16 else CHUNK_VALUES


def chunks(n: int, width: int, values: int) -> list[slice]:
    """Divide n rows of `width` numbers into slices. Each slice has at most `values` numbers, but at least one row."""
    size = max(1, values // width)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]
