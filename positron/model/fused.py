"""What lies between the matrix products, in few passes over memory: norms, rotary positions and relu^2 for a CPU.

Each function is the mathematics that `gpt.py` writes with the library's operators, with its gradient written out. Those
operators read and write the whole activation once each, forward and again backward, in fp32; here one pass does what it
can, and what goes on into a matrix product leaves in the product's dtype. All sums are in fp32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from positron.model.precision import product_dtype


class RMSNorm(torch.autograd.Function):
    """y = w x / rms(x), rms(x) = sqrt(mean(x^2) + eps), over the last axis (arXiv:1910.07467, eq. 4).

    With n = x / rms(x) and an upstream gradient g:  dx = (g w - n mean(g w n)) / rms(x),  dw = sum of g n over all rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        dw = torch.einsum("...c,...c->c", grad.to(x.dtype), normed)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1) / x.shape[-1]
        return grad.sub_(normed.mul_(along)).mul_(inverse), dw, None, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., C) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
