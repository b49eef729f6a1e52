"""Compute norms, heads and activations with hand-written gradients in few passes over memory, for training on a CPU.

Each function has the same result as the operators of torch that `gpt.py` uses elsewhere. Each of these operators reads and
writes a whole activation, forward and backward, often in fp32; together they took a fourth of a training step. Here one
pass does the work of several operators, and writes the input of a matrix product in the dtype of the product. Sums are in
fp32 or wider. Each function is used only where it was measured to be faster: on a CPU, with gradients (docs/LOG.md).
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
# Rows per block; a small block keeps intermediate values in the cache. With two threads, 256 rows are 1.15 times as fast as
# 128, because each operator waits for the slowest thread at its end. With one thread, both numbers are equally fast.
GELU_ROWS = 256


def is_faster(x: Tensor) -> bool:
    """Tell whether the functions of this module are faster than torch's: true if x is on a CPU and needs a gradient."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute RMSNorm by the class `RMSNorm` or by torch, whichever is faster: x (..., C), weight (C,) -> (..., C)."""
    if is_faster(x) and x.dtype == weight.dtype:
        normed: Tensor = RMSNorm.apply(x, weight, eps, product_dtype(x))
        return normed
    return F.rms_norm(x, weight.shape, weight, eps)


class RMSNorm(torch.autograd.Function):
    """Compute y = w x / rms(x), rms(x) = sqrt(mean(x^2) + eps), over the last axis (arXiv:1910.07467, eq. 4).

    With r = 1 / rms(x) and an upstream gradient g:  dx = r g w - x r^3 mean(g w x),  dw = sum of g x r over all rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Compute y in `dtype`: x (..., C), weight (C,) -> (..., C)."""
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x * inverse, weight, out=torch.empty_like(x, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Compute dx (..., C) and dw (C,)."""
        x, weight, inverse = ctx.saved_tensors
        grad = grad.to(x.dtype, copy=True)
        along = (grad * x).flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            dw = along.t() @ inverse.flatten()
            along = (along @ weight).view(inverse.shape).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad.mul_(weight).mul_(inverse).addcmul_(x, along), dw, None, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Compute 1 / sqrt(mean(x^2) + eps) over the last axis, in fp32 or wider: (..., C) -> (..., 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def interleave_pairs(rows: Tensor, d_head: int) -> Tensor:
    """Reorder the rows (heads * D, ...) of a q or k matrix or bias, so that each rotary pair is side by side.

    A rotary pair is two numbers that RoPE rotates together. In each head, the rows i and i + D/2 move to the places 2i and
    2i + 1, where D is `d_head`. Scores do not change, because q and k are permuted in the same way.
    """
    pairs: Tensor = rows.unflatten(0, (-1, 2, d_head // 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def heads(qkv: Tensor, rope: Rope | None, n_head: int, n_kv_head: int, norm_eps: float | None) -> tuple[Tensor, ...]:
    """Split a packed projection into heads: qkv (B, T, (H + 2K) D) -> q (B, H, T, D), k and v (B, K, T, D).

    q and k are rotated by `rope`: cos and sin, (T, D/2) or (B, 1, T, D/2), or None for no rotation. In `qkv`, the rotary pairs
    of q and k must be interleaved (see `interleave_pairs`). If `norm_eps` is given, each vector (D,) of q and k is also divided
    by its root mean square. The results are contiguous.
    """
    rotation = None
    if rope is not None:
        rotation = torch.complex(*rope)
        # (T, 1, D/2) or (B, T, 1, D/2)
        rotation = rotation[:, None] if rotation.ndim == 2 else rotation.transpose(1, 2)
    heads: tuple[Tensor, ...] = Heads.apply(qkv, rotation, n_head, n_kv_head, norm_eps)
    return heads


class Heads(torch.autograd.Function):
    """Split a packed projection into heads, and normalise and rotate q and k, in one pass; see the function `heads`.

    A rotation does not change lengths, so it may come after the normalisation. For y = rotate(x) r with r = 1 / rms(x), and
    an upstream gradient g, dx is r (g - y mean(g y)), rotated by the negative angle.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, rotation: Tensor | None, n_head: int, n_kv_head: int, norm_eps: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q (B, H, T, D), k and v (B, K, T, D) from qkv (B, T, (H + 2K) D).

        `rotation`: cos + i sin of the angles of RoPE, (T, 1, D/2) or (B, T, 1, D/2), or None for no rotation. `norm_eps`: if it
        is not None, each vector x of q and k is divided by sqrt(mean(x^2) + norm_eps). H is `n_head`, and K is `n_kv_head`.
        """
        by_head = qkv.unflatten(-1, (n_head + 2 * n_kv_head, -1))  # (B, T, H + 2K, D)
        qk, v = by_head[:, :, :-n_kv_head], by_head[:, :, -n_kv_head:]
        inverse = None
        if rotation is not None or norm_eps is not None:
            qk = qk.to(wide(qkv.dtype), copy=True)
        if norm_eps is not None:
            inverse = inverse_rms(qk, norm_eps)
            qk.mul_(inverse)
        if rotation is not None:
            _complex(qk).mul_(rotation)
        parts = qk[:, :, :n_head], qk[:, :, n_head:], v
        q, k, v = (_contiguous(part.transpose(1, 2), qkv.dtype) for part in parts)
        ctx.save_for_backward(rotation, inverse, *((q, k) if norm_eps is not None else ()))
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dqkv (B, T, (H + 2K) D) from dq (B, H, T, D), dk and dv (B, K, T, D)."""
        rotation, inverse, *normed = ctx.saved_tensors
        (B, H, T, D), K = dq.shape, dk.shape[1]
        out = dq.new_empty(B, T, H + 2 * K, D)
        out[:, :, H + K :] = dv.transpose(1, 2)
        if rotation is None and inverse is None:
            _concatenate(dq, dk, out[:, :, : H + K])
            return out.flatten(2), None, None, None, None
        grad = _concatenate(dq, dk, dq.new_empty(B, T, H + K, D, dtype=wide(dq.dtype)))
        if inverse is not None:
            y = _concatenate(normed[0], normed[1], torch.empty_like(grad))
            grad.addcmul_(y, torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(-D)).mul_(inverse)
        if rotation is not None:
            _complex(grad).mul_(rotation.conj())
        out[:, :, : H + K] = grad
        return out.flatten(2), None, None, None, None


def _complex(x: Tensor) -> Tensor:
    """View x (..., D) as (..., D/2) complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy x into contiguous memory of `dtype`, in one pass even if the dtype changes."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)


def _concatenate(q: Tensor, k: Tensor, out: Tensor) -> Tensor:
    """Write q (B, H, T, D) and k (B, K, T, D) into out (B, T, H + K, D)."""
    out[:, :, : q.shape[1]] = q.transpose(1, 2)
    out[:, :, q.shape[1] :] = k.transpose(1, 2)
    return out


def relu2(h: Tensor) -> Tensor:
    """Compute max(h, 0)^2 by the class `SquaredReLU` or by torch, whichever is faster for h."""
    out: Tensor = SquaredReLU.apply(h) if is_faster(h) else F.relu(h).square()
    return out


class SquaredReLU(torch.autograd.Function):
    """Compute max(h, 0)^2 (Primer, arXiv:2109.08668), whose derivative is 2 max(h, 0)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """Compute the function and save max(h, 0)."""
        positive = h.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Multiply the upstream gradient by the derivative."""
        positive: Tensor
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def gelu(h: Tensor) -> Tensor:
    """Compute the tanh form of GELU by the class `GELU` or by torch, whichever is faster for h.

    In bf16 on a CPU, the class takes two thirds of the time of torch's kernels.
    """
    if is_faster(h) and h.dtype == torch.bfloat16:
        out: Tensor = GELU.apply(h)
        return out
    return F.gelu(h, approximate="tanh")


class GELU(torch.autograd.Function):
    """Compute GELU's tanh form (arXiv:1606.08415) as h s with s = sigmoid(2 u), u = sqrt(2 / pi) (h + 0.044715 h^3).

    Both forms are equal, because (1 + tanh u) / 2 = s. The derivative is s + 2 h u' s (1 - s).
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """Compute the function and save its derivative, block by block."""
        # Constants are tensors, so that a + b x^2 is computed in one pass.
        unit, a = torch.tensor([1.0, 2 * math.sqrt(2 / math.pi)], dtype=wide(h.dtype))
        b = 0.044715 * a.item()
        y, slope = torch.empty_like(h), torch.empty_like(h)
        blocks = (tensor.flatten(0, -2).split(GELU_ROWS) for tensor in (h, y, slope))
        for h_block, y_block, slope_block in zip(*blocks, strict=True):
            x = h_block.to(wide(h.dtype), copy=True)
            square = x * x
            s = torch.add(a, square, alpha=b).mul_(x).sigmoid_()
            y_block.copy_(x.mul_(s))
            growth = torch.add(a, square, alpha=3 * b, out=square).mul_(x)  # 2 x u'
            slope_block.copy_(torch.lerp(s, unit, growth, out=growth))  # s + growth (1 - s)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Multiply the upstream gradient by the saved derivative."""
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return grad * slope
