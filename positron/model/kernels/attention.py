"""Causal attention: softmax(q k^T / sqrt(D)) v over the past or its last tokens, by the faster of two implementations.

`scaled_dot_product_attention` is the library's. On a CPU in bf16 its kernel is the slowest part of a training step, so
there the same mathematics is done in blocks of queries, with matrix products of a size that the CPU likes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from positron.model.kernels.precision import product_dtype, wide
from positron.model.kernels.torch_private import softmax_gradient

BLOCK = 128  # queries at a time: 64 and 256 are slower at T = 256 to 1024
LONGEST = 2048  # keys a query sees; beyond, the saved probabilities take more memory than they are worth


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, mask: Tensor | None = None, window: int | None = None
) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) with H a multiple of K -> (B, H, T, D).

    A query sees the last `window` tokens, itself included. `mask` (B, 1, T, T), True where a query may look, takes the
    place of both.
    """
    q, k, v = (part.to(product_dtype(part)) for part in (q, k, v))
    grouped, T = k.shape[1] != q.shape[1], q.shape[2]
    seen = min(T, window or T)
    if mask is None and dropout == 0 and blocked_is_faster(q, seen):
        return BlockedCausalAttention.apply(q, k, v, seen)
    if mask is None and seen < T:
        mask = window_mask(T, seen, q.device)
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


def window_mask(T: int, window: int | None, device: torch.device) -> Tensor:
    """(T, T), True where a query (row) may look at a key: itself and the `window` - 1 before it, or all of them."""
    past = torch.ones(T, T, dtype=torch.bool, device=device).tril_()
    return past if window is None else past.triu_(1 - window)


def blocked_is_faster(q: Tensor, seen: int) -> bool:
    """Return whether blocks beat the library's kernel, forward and backward together, on a CPU.

    Measured on cores with AVX512-BF16 and with AMX, D 32 to 64. In bf16: 2 to 4 times SDPA's speed at T = 128 to 1024,
    and whole steps of small models at T = 16 to 64 are 1.4 to 2.2 times as fast. In fp32: 1.4 times at T = 128 to 1024,
    alike at T <= 64. Without gradients SDPA's forward is as fast.
    """
    shortest = 8 if q.dtype == torch.bfloat16 else 64
    fits = q.device.type == "cpu" and q.shape[2] > shortest and seen <= LONGEST
    return fits and torch.is_grad_enabled() and q.requires_grad


class BlockedCausalAttention(torch.autograd.Function):
    """Blocks of queries against the keys up to the block's end: most of what is masked is never computed.

    With P = softmax(S), S = q k^T / sqrt(D), O = P v and an upstream gradient dO:
        dv = P^T dO,  dP = dO v^T,  dS = P * (dP - rowsum(P * dP)),  dq = dS k / sqrt(D),  dk = dS^T q / sqrt(D).
    Softmax and its derivative are the library's fused kernels, fp32 inside. The G heads that share keys lie beside each
    other in the rows of one product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        B, H, T, D = q.shape
        N, G = B * k.shape[1], H // k.shape[1]
        with torch.autocast(q.device.type, enabled=False):
            out = q.new_empty(B, T, H, D).transpose(1, 2)  # so that (B, T, H D) is a view of it
            probabilities = []
            q, k, v = q.reshape(N, G, T, D), k.reshape(N, T, D), v.reshape(N, T, D)
            future = torch.full((BLOCK, BLOCK), float("-inf"), dtype=wide(q.dtype), device=q.device).triu_(1)
            for start in range(0, T, BLOCK):
                end, first = min(T, start + BLOCK), first_key(start, window)
                n = end - start
                scores = scaled_scores(q[:, :, start:end].reshape(N, G * n, D), k[:, first:end])
                by_query = scores.view(N, G, n, end - first)
                by_query[..., start - first :] += future[:n, :n]  # a fourth of masked_fill's time
                if end - first > window:  # the block's last query does not see the first key
                    forgotten = by_query[..., : end - first - window]
                    forgotten += torch.full_like(forgotten[0, 0], float("-inf")).tril_(start - first - window)
                p = scores.softmax(dim=-1).to(q.dtype)  # (N, G n, end - first)
                out[:, :, start:end] = torch.bmm(p, v[:, first:end]).view(B, H, n, D)
                probabilities.append(p)
        ctx.window = window
        ctx.save_for_backward(q, k, v, *probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        N, G, T, D = q.shape
        B, H = grad.shape[:2]
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.to(q.dtype)
            dq = torch.empty_like(grad)
            grad = grad.reshape(N, G, T, D)
            # transposed: dO^T P is faster than P^T dO, since the large factor is read as it lies in memory
            dk, dv = q.new_zeros(N, D, T), q.new_zeros(N, D, T)
            for start, p in zip(range(0, T, BLOCK), probabilities, strict=True):
                seen = slice(first_key(start, ctx.window), end := start + p.shape[1] // G)
                rows, d_out = (x[:, :, start:end].reshape(N, -1, D) for x in (q, grad))  # (N, G n, D)
                dv[..., seen].baddbmm_(d_out.mT, p)
                ds = softmax_gradient(torch.bmm(d_out, v[:, seen].mT), p)
                dk[..., seen].baddbmm_(rows.mT, ds)
                dq[:, :, start:end] = torch.bmm(ds, k[:, seen]).view(B, H, end - start, D)
            dq *= 1 / math.sqrt(D)
            dk *= 1 / math.sqrt(D)
        return dq, dk.mT.view(B, -1, T, D), dv.mT.view(B, -1, T, D), None


def first_key(start: int, window: int) -> int:
    """That the query at `start` sees, or one shortly before: rows of products begin at multiples of 16."""
    return max(0, start - window + 1) // 16 * 16


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """q (N, n, D), k (N, m, D) -> q k^T / sqrt(D), (N, n, m), in fp32 or wider also where q and k are bf16.

    Scores rounded to bf16 make gradients worse the larger they are: by 1 % at a standard deviation of 3, by 9 % at 30,
    where SDPA is at 0.4 and 0.7 %. Unrounded costs a tenth of the attention's time. bmm has no fp32 output on a CPU, so
    the factors are widened and oneDNN narrows them again, exactly, to multiply.
    """
    dtype = wide(q.dtype)
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if q.dtype == torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        return torch.baddbmm(
            q.new_empty((), dtype=dtype), q.to(dtype), k.to(dtype).mT, beta=0, alpha=q.shape[-1] ** -0.5
        )
    finally:
        matmul.fp32_precision = before
