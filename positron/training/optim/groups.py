"""AdamW (arXiv:1711.05101) or Muon, with weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from positron.config import OptimizerConfig
from positron.training.optim.muon import Muon


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, *, fused: bool
) -> torch.optim.Optimizer:
    """Vectors (norms, biases) are not decayed: pulling a scale towards zero is no regularisation."""
    named = [(name, p) for name, p in parameters if p.requires_grad]
    vectors = [p for _, p in named if p.ndim < 2]
    matrices = [p for _, p in named if p.ndim >= 2]
    if config.kind == "adamw":
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    # rows of an embedding and of the head belong to single tokens, so their gradients are no maps between directions
    hidden = [p for name, p in named if p.ndim >= 2 and "blocks." in name]
    tables = [p for name, p in named if p.ndim >= 2 and "blocks." not in name]
    groups = [
        {"params": hidden, "weight_decay": config.weight_decay, "orthogonal": True},
        {"params": tables, "weight_decay": config.weight_decay, "orthogonal": False},
        {"params": vectors, "weight_decay": 0.0, "orthogonal": False},
    ]
    groups = [group for group in groups if group["params"]]
    return Muon(groups, config.lr, config.betas, config.eps, fused=fused)


def set_lr(groups: list[dict[str, Any]], lr: float, config: OptimizerConfig) -> None:
    """Of all groups; with Muon, embeddings and the head move at `embedding_ratio` times it."""
    for group in groups:
        is_table = group.get("orthogonal") is False and group["params"][0].ndim >= 2
        group["lr"] = lr * (config.embedding_ratio if is_table else 1.0)


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Global L2 norm of all gradients; scales them in place to at most `max_norm` (0: leaves them). No host sync."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
