"""What lies between the matrix products, in few passes over memory: norms, heads and activations for training on a CPU.

Each function here is what `gpt.py` writes with the library's operators, with its gradient written out. Those operators
read and write a whole activation each, forward and again backward, and much of it in fp32; that took a fourth of a step.
Here one pass does what it can, and what goes on into a matrix product leaves in the product's dtype. Sums are in fp32 or
wider. Each is chosen where it was measured to be faster: on a CPU, with gradients (docs/LOG.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from positron.model.kernels.precision import product_dtype, wide

Rope = tuple[Tensor, Tensor]  # cos, sin
# At a time, so that their intermediate values stay in the cache. With two threads 256 rows are 1.15 times as fast as 128,
# since each operator ends with a wait for the slowest thread; with one thread alike. The bits do not depend on it.
GELU_ROWS = 256


def is_faster(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C), weight (C,) -> (..., C)."""
    if is_faster(x) and x.dtype == weight.dtype:
        return RMSNorm.apply(x, weight, eps, product_dtype(x))
    return F.rms_norm(x, weight.shape, weight, eps)


class RMSNorm(torch.autograd.Function):
    """y = w x / rms(x), rms(x) = sqrt(mean(x^2) + eps), over the last axis (arXiv:1910.07467, eq. 4), y in `dtype`.

    With r = 1 / rms(x) and an upstream gradient g:  dx = r g w - x r^3 mean(g w x),  dw = sum of g x r over all rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x * inverse, weight, out=torch.empty_like(x, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad = grad.to(x.dtype, copy=True)
        along = (grad * x).flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            dw = along.t() @ inverse.flatten()
            along = (along @ weight).view(inverse.shape).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad.mul_(weight).mul_(inverse).addcmul_(x, along), dw, None, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., C) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def side_by_side(rows: Tensor, d_head: int) -> Tensor:
    """Of a q or k matrix or bias (heads * D, ...): features i and i + D/2 of each head become 2i and 2i + 1.

    Scores do not change when q and k are permuted alike, and a rotary pair is then one complex number.
    """
    return rows.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)


def heads(qkv: Tensor, rope: Rope | None, n_head: int, n_kv_head: int, norm_eps: float | None) -> tuple[Tensor, ...]:
    """qkv (B, T, (H + 2K) D) -> q (B, H, T, D), k and v (B, K, T, D), each contiguous.

    q and k turned by `rope`, cos and sin (T or B 1 T, D/2), their pairs side by side, and with `norm_eps` divided by their
    root mean square.
    """
    turn = None
    if rope is not None:
        turn = torch.complex(*rope)
        turn = turn[:, None] if turn.ndim == 2 else turn.transpose(1, 2)  # (T or B T, 1, D/2)
    return Heads.apply(qkv, turn, n_head, n_kv_head, norm_eps)


class Heads(torch.autograd.Function):
    """Turning leaves lengths as they are, so the order of turning and normalising does not matter.

    For y = turn(x) r, r = 1 / rms(x), and an upstream gradient g:  dx = turn back (r (g - y mean(g y))).
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, turn: Tensor | None, n_head: int, n_kv_head: int, norm_eps: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        every = qkv.unflatten(-1, (n_head + 2 * n_kv_head, -1))  # (B, T, H + 2K, D)
        qk, v = every[:, :, :-n_kv_head], every[:, :, -n_kv_head:]
        inverse = None
        if turn is not None or norm_eps is not None:
            qk = qk.to(wide(qkv.dtype), copy=True)
        if norm_eps is not None:
            inverse = inverse_rms(qk, norm_eps)
            qk.mul_(inverse)
        if turn is not None:
            _complex(qk).mul_(turn)
        parts = qk[:, :, :n_head], qk[:, :, n_head:], v
        q, k, v = (_contiguous(part.transpose(1, 2), qkv.dtype) for part in parts)
        ctx.save_for_backward(turn, inverse, *((q, k) if norm_eps is not None else ()))
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        turn, inverse, *normed = ctx.saved_tensors
        (B, H, T, D), K = dq.shape, dk.shape[1]
        out = dq.new_empty(B, T, H + 2 * K, D)
        out[:, :, H + K :] = dv.transpose(1, 2)
        if turn is None and inverse is None:
            _beside(dq, dk, out[:, :, : H + K])
            return out.flatten(2), None, None, None, None
        grad = _beside(dq, dk, dq.new_empty(B, T, H + K, D, dtype=wide(dq.dtype)))
        if inverse is not None:
            y = _beside(normed[0], normed[1], torch.empty_like(grad))
            grad.addcmul_(y, torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(-D)).mul_(inverse)
        if turn is not None:
            _complex(grad).mul_(turn.conj())
        out[:, :, : H + K] = grad
        return out.flatten(2), None, None, None, None


def _complex(x: Tensor) -> Tensor:
    """A view of (..., D) as (..., D/2) complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, in one pass also where the dtype changes."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)


def _beside(q: Tensor, k: Tensor, out: Tensor) -> Tensor:
    """(B, H, T, D) and (B, K, T, D) into out (B, T, H + K, D)."""
    out[:, :, : q.shape[1]] = q.transpose(1, 2)
    out[:, :, q.shape[1] :] = k.transpose(1, 2)
    return out


def relu2(h: Tensor) -> Tensor:
    return SquaredReLU.apply(h) if is_faster(h) else F.relu(h).square()


class SquaredReLU(torch.autograd.Function):
    """max(h, 0)^2 (Primer, arXiv:2109.08668), whose slope is 2 max(h, 0)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        positive = h.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def gelu(h: Tensor) -> Tensor:
    """The library's bf16 kernels of the tanh form are slow: two thirds of their time, and exact to the last bit."""
    if is_faster(h) and h.dtype == torch.bfloat16:
        return GELU.apply(h)
    return F.gelu(h, approximate="tanh")


class GELU(torch.autograd.Function):
    """h s with s = sigmoid(2 u), u = sqrt(2 / pi) (h + 0.044715 h^3): GELU's tanh form (arXiv:1606.08415), since
    (1 + tanh u) / 2 = s. Its slope, s + 2 h u' s (1 - s), is found along with it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        # as tensors, so that a + b x^2 is one pass
        one, a = torch.tensor([1.0, 2 * math.sqrt(2 / math.pi)], dtype=wide(h.dtype))
        b = 0.044715 * a.item()
        y, slope = torch.empty_like(h), torch.empty_like(h)
        rows = (each.flatten(0, -2).split(GELU_ROWS) for each in (h, y, slope))
        for part, y_part, slope_part in zip(*rows, strict=True):
            x = part.to(wide(h.dtype), copy=True)
            square = x * x
            s = torch.add(a, square, alpha=b).mul_(x).sigmoid_()
            y_part.copy_(x.mul_(s))
            more = torch.add(a, square, alpha=3 * b, out=square).mul_(x)
            slope_part.copy_(torch.lerp(s, one, more, out=more))  # s + more (1 - s)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope
