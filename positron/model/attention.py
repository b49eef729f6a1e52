"""Causal attention: softmax(q k^T / sqrt(D)) v over the past, by the faster of two implementations.

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

BLOCK = 128  # queries at a time: 64 and 256 are slower at T = 256 to 1024
LONGEST = 2048  # tokens; beyond, the saved probabilities take more memory than they are worth


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) with H a multiple of K -> (B, H, T, D)."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if dropout == 0 and blocked_is_faster(q):
        return BlockedCausalAttention.apply(q, k, v)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


def blocked_is_faster(q: Tensor) -> bool:
    """Measured with forward and backward on 2 cores with AVX512-BF16, D 32 to 64: 2 to 3 times SDPA's speed in bf16 and
    1.3 times in fp32 at T = 256 to 1024; alike at T <= 64. Without gradients SDPA's forward is as fast."""
    return q.device.type == "cpu" and 64 < q.shape[2] <= LONGEST and torch.is_grad_enabled() and q.requires_grad


class BlockedCausalAttention(torch.autograd.Function):
    """Blocks of queries against the keys up to the block's end: most of the masked half is never computed.

    With P = softmax(S), S = q k^T / sqrt(D), O = P v and an upstream gradient dO:
        dv = P^T dO,  dP = dO v^T,  dS = P * (dP - rowsum(P * dP)),  dq = dS k / sqrt(D),  dk = dS^T q / sqrt(D).
    Softmax and its derivative are the library's fused kernels, fp32 inside. Heads that share keys (G of them) lie beside
    each other in the rows of one product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, H, T, D = q.shape
        N, G = B * k.shape[1], H // k.shape[1]
        ctx.shapes = q.shape, k.shape
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = q.reshape(N, G, T, D), k.reshape(N, T, D), v.reshape(N, T, D)
            out, probabilities = torch.empty_like(q), []
            future = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).triu_(1)
            for start in range(0, T, BLOCK):
                end = min(T, start + BLOCK)
                n = end - start
                rows = q[:, :, start:end].reshape(N, G * n, D)
                scores = torch.bmm(rows, k[:, :end].mT).mul_(1 / math.sqrt(D)).view(N, G, n, end)
                scores[..., start:].masked_fill_(future[:n, :n], float("-inf"))
                p = scores.softmax(dim=-1).view(N, G * n, end)
                out[:, :, start:end] = torch.bmm(p, v[:, :end]).view(N, G, n, D)
                probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        return out.view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *probabilities = ctx.saved_tensors
        N, G, T, D = q.shape
        scale = 1 / math.sqrt(D)
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.to(q.dtype).reshape(N, G, T, D)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for start, p in zip(range(0, T, BLOCK), probabilities, strict=True):
                end = start + p.shape[1] // G
                d_out = grad[:, :, start:end].reshape(N, -1, D)  # (N, G n, D)
                dv[:, :end].baddbmm_(p.mT, d_out)
                dp = torch.bmm(d_out, v[:, :end].mT)
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # (N, G n, end)
                dq[:, :, start:end] = torch.bmm(ds, k[:, :end]).mul_(scale).view(N, G, end - start, D)
                dk[:, :end].baddbmm_(ds.mT, q[:, :, start:end].reshape(N, -1, D), alpha=scale)
        q_shape, kv_shape = ctx.shapes
        return dq.view(q_shape), dk.view(kv_shape), dv.view(kv_shape)
