"""Causal attention: softmax(q k^T / sqrt(D)) v over the past."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) with H a multiple of K -> (B, H, T, D)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=k.shape[1] != q.shape[1])
