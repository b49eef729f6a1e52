"""Compute causal attention, softmax(q k^T / sqrt(D)) v, by the faster of two implementations.

The first implementation is torch's `scaled_dot_product_attention` (SDPA). On a CPU in bf16, its kernel is the slowest part
of a training step. The second implementation does the same in blocks of queries, with matrix products of a size at which
the CPU is fast.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from positron.model.kernels.dropout import draw_kept, scale_of_kept
from positron.model.kernels.precision import product_dtype, wide
from positron.model.kernels.torch_private import softmax_gradient
from positron.system.torch_settings import bf16_products

BLOCK_QUERIES = 128  # 64 and 256 are slower at T = 256 to 1024
MAX_BLOCKED_KEYS = 2048  # with more visible keys, the saved probabilities take too much memory


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, mask: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Compute causal attention: q (B, H, T, D), k and v (B, K, T, D), H a multiple of K -> (B, H, T, D).

    A query attends to the last `window` tokens, itself included (None: to itself and all earlier tokens). If `mask`
    (B, 1, T, T) is given, a query attends only to keys for which the mask is True; the mask must be False for all keys outside
    the window and after the query. `dropout` is the probability of setting an attention weight to 0.
    """
    q, k, v = (x.to(product_dtype(x)) for x in (q, k, v))
    grouped, T = k.shape[1] != q.shape[1], q.shape[2]
    visible = min(T, window or T)
    if blocked_is_faster(q, visible, dropout):
        out: Tensor = BlockedCausalAttention.apply(q, k, v, visible, mask, dropout)
        return out
    if mask is None and visible < T:
        mask = window_mask(T, visible, q.device)
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


def window_mask(T: int, window: int | None, device: torch.device, start: int = 0) -> Tensor:
    """Return a mask (T - start, T) that is True where a query (row) may attend to a key (column).

    The queries are those from position `start` on. A query attends to itself and to the `window` - 1 keys before it (None: to
    all keys before it).
    """
    past = torch.ones(T - start, T, dtype=torch.bool, device=device).tril_(start)
    return past if window is None else past.triu_(start + 1 - window)


def blocked_is_faster(q: Tensor, visible: int, dropout: float = 0.0) -> bool:
    """Tell whether BlockedCausalAttention is faster than SDPA in forward and backward pass together.

    `q`: the queries (B, H, T, D) of T tokens and H heads of dimension D. `visible`: the number of keys that a query attends to.

    The speeds were measured on cores with AVX512-BF16 and with AMX, for D from 32 to 64.
    In bf16, BlockedCausalAttention is 2 to 4 times as fast as SDPA at T = 128 to 1024. At T = 16 to 64, with
    BlockedCausalAttention, a whole training step of a small model is 1.4 to 2.2 times as fast as with SDPA.
    In fp32, BlockedCausalAttention is 1.4 times as fast as SDPA at T = 128 to 1024, and equally fast at T <= 64.
    Without gradients, both are equally fast. Dropout makes SDPA ten times as slow.
    """
    if dropout > 0 and torch.compiler.is_compiling():
        return False  # a compiled graph draws its random numbers in its own way
    min_length = 8 if q.dtype == torch.bfloat16 or dropout > 0 else 64
    fits = q.device.type == "cpu" and q.shape[2] > min_length and visible <= MAX_BLOCKED_KEYS
    return fits and torch.is_grad_enabled() and q.requires_grad


class BlockedCausalAttention(torch.autograd.Function):
    """Compute causal attention in blocks of queries.

    A block of queries is multiplied only by the keys up to its last query, so that few masked scores are computed.
    With P = softmax(S), S = q k^T / sqrt(D), O = P v and an upstream gradient dO:
        dv = P^T dO,  dP = dO v^T,  dS = P * (dP - rowsum(P * dP)),  dq = dS k / sqrt(D),  dk = dS^T q / sqrt(D).
    With dropout of probability p, a random mask M of zeros and 1 / (1 - p) changes three of these: O = (P * M) v,
    dv = (P * M)^T dO and dP = (dO v^T) * M. In the code, M consists of zeros and ones. The factor 1 / (1 - p) is applied at the
    end to O, dq, dk and dv, because they contain fewer numbers than P.
    Softmax and its derivative are computed by torch's fused kernels, in fp32. The queries of the G heads that share keys are
    rows of a single matrix product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, dropout: float) -> Tensor:
        """Compute O = softmax(q k^T / sqrt(D)) v: q (B, H, T, D), k and v (B, K, T, D) -> O (B, H, T, D).

        `mask` (B, 1, T, T) is True where a query attends to a key. If it is None, a query attends to the last `window` keys,
        its own included. `dropout`: the probability with which an attention weight (a result of the softmax) is set to 0.
        """
        B, H, T, D = q.shape
        N, G = B * k.shape[1], H // k.shape[1]
        with torch.autocast(q.device.type, enabled=False):
            out = q.new_empty(B, T, H, D).transpose(1, 2)  # this layout makes (B, T, H D) a view, without a copy
            probabilities, keep_masks = [], []
            q, k, v = q.reshape(N, G, T, D), k.reshape(N, T, D), v.reshape(N, T, D)
            size = (BLOCK_QUERIES, BLOCK_QUERIES)
            future = torch.full(size, float("-inf"), dtype=wide(q.dtype), device=q.device).triu_(1)
            for start in range(0, T, BLOCK_QUERIES):
                end, first = min(T, start + BLOCK_QUERIES), first_key(start, window)
                n = end - start
                scores = scaled_scores(q[:, :, start:end].reshape(N, G * n, D), k[:, first:end])
                by_query = scores.view(N, G, n, end - first)
                if mask is None:
                    by_query[..., start - first :] += future[:n, :n]  # takes a fourth of the time of masked_fill
                    if end - first > window:  # the first key is outside the window of the block's last query
                        too_old = by_query[..., : end - first - window]
                        too_old += torch.full_like(too_old[0, 0], float("-inf")).tril_(start - first - window)
                else:
                    by_query.view(B, H, n, -1).add_(torch.where(mask[:, :, start:end, first:end], 0.0, float("-inf")))
                p = scores.softmax(dim=-1).to(q.dtype)  # (N, G n, end - first)
                probabilities.append(p)
                if dropout > 0:
                    keep_masks.append(draw_kept(p.shape, dropout))
                    p = p * keep_masks[-1]
                out[:, :, start:end] = torch.bmm(p, v[:, first:end]).view(B, H, n, D)
            if dropout > 0:
                out *= scale_of_kept(dropout)
        ctx.window, ctx.dropout = window, dropout
        ctx.save_for_backward(q, k, v, *probabilities, *keep_masks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Compute dq (B, H, T, D), dk and dv (B, K, T, D) from dO (B, H, T, D)."""
        q, k, v, *blocks = ctx.saved_tensors
        n_blocks = -(-q.shape[2] // BLOCK_QUERIES)
        probabilities, keep_masks = blocks[:n_blocks], blocks[n_blocks:] or [None] * n_blocks
        N, G, T, D = q.shape
        B, H = grad.shape[:2]
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.to(q.dtype)
            dq = torch.empty_like(grad)
            grad = grad.reshape(N, G, T, D)
            # Computed transposed: dO^T P is faster than P^T dO, because it reads the larger factor, P, in memory order.
            dk, dv = q.new_zeros(N, D, T), q.new_zeros(N, D, T)
            for start, p, keep_mask in zip(range(0, T, BLOCK_QUERIES), probabilities, keep_masks, strict=True):
                keys = slice(first_key(start, ctx.window), end := start + p.shape[1] // G)
                rows, d_out = (x[:, :, start:end].reshape(N, -1, D) for x in (q, grad))  # (N, G n, D)
                dp = torch.bmm(d_out, v[:, keys].mT)
                if keep_mask is not None:
                    dp *= keep_mask
                dv[..., keys].baddbmm_(d_out.mT, p if keep_mask is None else p * keep_mask)
                ds = softmax_gradient(dp, p)
                dk[..., keys].baddbmm_(rows.mT, ds)
                dq[:, :, start:end] = torch.bmm(ds, k[:, keys]).view(B, H, end - start, D)
            scale = scale_of_kept(ctx.dropout)
            dq *= scale / math.sqrt(D)
            dk *= scale / math.sqrt(D)
            if scale != 1:
                dv *= scale
        return dq, dk.mT.view(B, -1, T, D), dv.mT.view(B, -1, T, D), None, None, None


def first_key(start: int, window: int) -> int:
    """Return the position of the first key that is multiplied by the block of queries beginning at `start`.

    This is the first key in the window of the query at `start`, rounded down to a multiple of 16 for fast products.
    """
    return max(0, start - window + 1) // 16 * 16


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """Compute q k^T / sqrt(D) in fp32 or wider, even for bf16 factors: q (N, n, D), k (N, m, D) -> (N, n, m).

    N is the number of sequences times key/value heads, n the number of query rows, and m the number of keys.

    Scores in bf16 would make the gradients inexact: by 1 % for scores with a standard deviation of 3, and by 9 % for a standard
    deviation of 30 (with torch's SDPA: 0.4 % and 0.7 %). With scores in fp32, attention is about 10 % slower than with scores
    in bf16.

    On a CPU, bmm cannot multiply bf16 tensors into an fp32 result. So bf16 factors are converted to fp32, and oneDNN is told to
    round these factors to bf16 again, for speed. This rounding loses nothing, because the factors were bf16 before. But oneDNN
    also rounds the factors of float32 products that other threads compute at this moment.
    """
    dtype = wide(q.dtype)
    with bf16_products.changed() if q.dtype == torch.bfloat16 else nullcontext():
        return torch.baddbmm(
            q.new_empty((), dtype=dtype), q.to(dtype), k.to(dtype).mT, beta=0, alpha=q.shape[-1] ** -0.5
        )
