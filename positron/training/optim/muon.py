"""Muon: momentum whose matrices are made orthogonal before they are a step; AdamW for all that is no matrix of a block.

A gradient of a weight matrix is nearly of low rank: a few directions move far, the rest hardly. Replaced by its nearest
orthogonal matrix U V^T (of the singular value decomposition U S V^T), every direction moves alike. Five iterations of a
quintic polynomial come close enough, with matrix products alone (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"). Times 0.2 sqrt(longer side), a step has the root mean square that AdamW's has, so learning
rate and weight decay mean the same in both (Liu et al. 2025, arXiv:2502.16982, eq. 4).

Ours beside torch.optim.Muon, which tests hold it against: matrices of one shape are orthogonalised together, gradients
that are not finite change nothing without asking the device, and one optimizer holds both kinds of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from positron.model.kernels.torch_private import skip_step_if

# a, b, c of x <- a x + b x^3 + c x^5: steepest at 0, singular values to 0.7..1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
EPS = 1e-7


def orthogonalize(x: Tensor) -> Tensor:
    """About U V^T of each (n, m) matrix of a batch (..., n, m), n <= m, singular values between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Step groups of the role `matrix` orthogonally; the others are AdamW's (`fused`, where the device has it)."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, *, fused: bool
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "fused": fused})
        self.found_inf: Tensor | None = None  # 1.0 for a step that is to change nothing, as `skip_step_if` sets it
        self._adamw = torch.optim.AdamW([torch.zeros(1)], lr=lr, betas=betas, eps=eps, fused=fused)
        self._adamw_defaults = {k: v for k, v in self._adamw.param_groups[0].items() if k != "params"}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["role"] == "matrix":
                self._step_matrices(group)
        # the groups and states of this optimizer are lent to AdamW for a step: a checkpoint may have brought new ones
        rest = [group for group in self.param_groups if group["role"] != "matrix"]
        self._adamw.param_groups = [{**self._adamw_defaults, **group} for group in rest]
        self._adamw.state = self.state
        if self.found_inf is not None:
            skip_step_if(self._adamw, self.found_inf)
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                alike.setdefault((min(p.shape), max(p.shape)), []).append(p)
        good = 1.0 if self.found_inf is None else 1 - self.found_inf
        for shape, some in alike.items():
            directions = orthogonalize(torch.stack([_lying(self._momentum(p)) for p in some]))
            for p, direction in zip(some, directions, strict=True):
                keep = 1 - group["lr"] * group["weight_decay"] * good
                step = direction.to(p.dtype) * (0.2 * math.sqrt(shape[1]) * group["lr"])
                step = step if self.found_inf is None else step.nan_to_num_(0.0, 0.0, 0.0) * good
                p.mul_(keep).sub_(step if p.shape[0] <= p.shape[1] else step.mT)

    def _momentum(self, p: Tensor) -> Tensor:
        """Nesterov's look ahead along the running mean of gradients."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        mean = state["momentum"]
        if self.found_inf is None:
            mean.lerp_(p.grad, 1 - MOMENTUM)
        else:
            mean.copy_(torch.where(self.found_inf > 0, mean, mean.lerp(p.grad, 1 - MOMENTUM)))
        return p.grad.lerp(mean, MOMENTUM)


def _lying(x: Tensor) -> Tensor:
    """(n, m) with n <= m, in bf16 unless it is float64: the iterations forgive its rounding."""
    x = x if x.dtype == torch.float64 else x.bfloat16()
    return x if x.shape[0] <= x.shape[1] else x.mT
