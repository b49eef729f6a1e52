"""Compute the loss of distillation at a linear output head without storing the logits of a whole batch.

As in `loss.py`, the head multiplies one chunk of rows at a time, and the gradient of the logits is computed in the forward
pass. The logits of the teachers are computed for the same chunk from their last hidden states, so that memory holds the logits
of only one chunk at a time. numpy_ref/distillation.py has the same formulas with their derivation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from positron.config import IGNORE
from positron.model.kernels.loss import SOFTMAX_VALUES, chunks, losses_and_softmax, product_values, subtract_one_hot_
from positron.model.kernels.precision import product_dtype, wide

States = tuple[Tensor, Tensor]  # last hidden states (N, C) and output matrix (V, C) of a teacher, without gradients


def linear_distillation(
    x: Tensor, weight: Tensor, targets: Tensor, teachers: Sequence[States], alpha: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of distillation and its two parts, CE and KL. Each is a tensor () in nats, summed over the targets.

    The loss is (1 - alpha) CE + alpha temperature² KL. Only the loss has a gradient.
    CE is the cross-entropy of the target, at temperature 1.
    KL is KL(q, s), where q is the mean of the teachers' distributions and s the student's distribution, all at `temperature`.
    `x` (N, C) are the student's last hidden states, and `weight` (V, C) is its output matrix. `targets` (N,) are token ids.
    `teachers`: the last hidden states (N, W) and the output matrix (V, W) of each teacher, where W is the teacher's width.
    A position whose target is IGNORE (-100) is not counted.
    """
    if x.device.type == "cpu":  # on other devices, counting the targets would wait for the device
        scored = targets != IGNORE
        if not scored.all():
            x, targets = x[scored], targets[scored]
            teachers = [(states[scored], head) for states, head in teachers]
    total, ce, kl = _LinearDistillation.apply(x, weight, targets, teachers, alpha, temperature, product_dtype(x))
    return total, ce, kl


class _LinearDistillation(torch.autograd.Function):
    """Implement `linear_distillation`.

    Matrix products are in the argument `dtype` of `forward`. Softmax and the weight's gradient are in fp32 or wider.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        teachers: Sequence[States],
        alpha: float,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            inputs, head = x.to(dtype), weight.to(dtype)
            taught = [(states.to(dtype), matrix.to(dtype).t()) for states, matrix in teachers]
            valid = (targets != IGNORE)[:, None]
            scored = inputs * valid  # (N, C): rows without a target give the weight no gradient
            dx = torch.empty_like(inputs)
            dw = torch.zeros(weight.shape, dtype=wide(dtype), device=weight.device)
            ce, kl = (torch.zeros((), dtype=dw.dtype, device=x.device) for _ in range(2))
            for rows in chunks(len(x), len(weight), product_values(len(weight), inputs.dtype)):
                logits, labels = inputs[rows] @ head.t(), targets[rows]  # (n, V), (n,)
                of_teachers = [states[rows] @ matrix for states, matrix in taught]  # (n, V) each
                for part in chunks(len(logits), len(weight), SOFTMAX_VALUES):
                    divergences, pull = _divergences(logits[part], [each[part] for each in of_teachers], temperature)
                    kl += divergences.masked_fill_(labels[part] == IGNORE, 0.0).sum()
                    losses, p = losses_and_softmax(logits[part], labels[part])
                    ce += losses.sum()
                    # d loss / d logits, written over the logits: (1 - a) (softmax - one-hot) + a T (s - q)
                    d = subtract_one_hot_(p, labels[part])
                    logits[part] = d.mul_(1 - alpha).add_(pull, alpha=alpha * temperature)
                dx[rows] = logits @ head
                dw += logits.t() @ scored[rows]
            dx *= valid
        ctx.save_for_backward(dx, dw)
        ctx.dtypes = x.dtype, weight.dtype
        ctx.mark_non_differentiable(ce, kl)
        return (1 - alpha) * ce + alpha * temperature**2 * kl, ce, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        dx, dw = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        return (dx * grad).to(x_dtype), (dw * grad).to(weight_dtype), None, None, None, None, None


def _divergences(logits: Tensor, teachers: list[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Compute KL(q, s) (n,) in nats and s - q (n, V), in fp32 or wider, from logits (n, V) of the student and each teacher.

    s is the student's distribution, and q the mean of the teachers' distributions, all at `temperature`. If the logits of the
    student and of its only teacher are equal, both results are exactly 0.
    """
    log_s, *logs = (_log_softmax(each, temperature) for each in (logits, *teachers))
    log_q = functools.reduce(torch.logaddexp, logs) - math.log(len(logs))
    q = log_q.exp()
    divergences = log_q.sub_(log_s).mul_(q).sum(dim=-1)
    return divergences, log_s.exp_().sub_(q)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits.to(wide(logits.dtype)) / temperature).log_softmax(dim=-1)
