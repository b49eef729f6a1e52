"""Set randomly chosen numbers of an activation to 0 in training (dropout, Srivastava et al. 2014), fast on a CPU.

torch's dropout draws one random float for each number, on one core. For 4,096 tokens of width 384, it takes 16 ms. This is
longer than the product of these tokens with a (384, 384) matrix takes. Here each draw of 64 random bits decides about four
numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

VALUES = 1 << 16  # values of the 16 random bits that decide about a number; p is rounded to a multiple of 1 / VALUES


class Dropout(nn.Module):
    """Set each number to 0 with probability p in training, and multiply the others by 1 / (1 - p); otherwise do nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        dropped: Tensor = _Dropout.apply(x, self.p)
        return dropped


class _Dropout(torch.autograd.Function):
    """Compute y = x * keep / (1 - p), whose gradient is dx = dy * keep / (1 - p); keep is the mask of `draw_kept`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = draw_kept(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = scale_of_kept(p)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """Draw a mask on the CPU whose elements are True with probability 1 - p.

    The probability is rounded to a multiple of 2^-16. The mask depends only on the state of torch's default generator, and not
    on the number of threads.
    """
    n = shape.numel()
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)
    mask: Tensor = bits.view(torch.int16)[:n] >= _dropped_values(p) - VALUES // 2
    return mask.view(shape)


def scale_of_kept(p: float) -> float:
    """Return the factor by which kept numbers are multiplied, so that the expected value of each number does not change.

    The factor is 1 / (1 - p), where p is rounded to a multiple of 2^-16.
    """
    return VALUES / (VALUES - _dropped_values(p))


def _dropped_values(p: float) -> int:
    """Return how many of the 2^16 values of a random 16-bit integer mean "set the number to 0".

    This is p * 2^16, rounded, but at most 2^16 - 1: one value always means "keep the number".
    """
    return min(round(p * VALUES), VALUES - 1)
