"""Define Muon, which orthogonalises the momentum of each weight matrix of the blocks, and updates all other weights by AdamW.

The gradient of a weight matrix has nearly low rank, so a plain step moves the weights far in a few directions and hardly in
the others. With the singular value decomposition U S V^T of the momentum, U V^T is the nearest orthogonal matrix; a step along
it moves all directions equally. Five iterations of a polynomial of degree 5 approximate U V^T by matrix products only (Jordan
et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). The step is multiplied by 0.2 sqrt(longer dimension of
the matrix). It then has the root mean square of an AdamW step, so learning rate and weight decay have the same meaning for both
optimizers (Liu et al. 2025, arXiv:2502.16982, eq. 4).

The tests compare this class with torch.optim.Muon. The two differ in three ways. Here, matrices of the same shape are
orthogonalised together, a step with non-finite gradients is skipped without waiting for the device, and one optimizer object
updates the matrices by Muon and the other weights by AdamW. If the weights are sharded, each process gathers the momentum of
every matrix and computes the steps of all matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from positron.model.kernels.torch_private import skip_step_if
from positron.training.sharded_tensors import shard_like, whole

# a, b, c of x <- a x + b x^3 + c x^5, chosen to be steep at 0: after all iterations, singular values that were between 0.0015
# and 1 are between 0.68 and 1.21
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalize(x: Tensor) -> Tensor:
    """Return an approximation of U V^T for each matrix x = U S V^T of a batch (..., n, m) with n <= m.

    Singular values above 0.0015 times the Frobenius norm of x become values between 0.68 and 1.21. Smaller singular values
    are raised less, and 0 stays 0.
    """
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Update parameter groups with the role `matrix` by Muon, and all other groups by AdamW.

    `betas` and `eps` are those of AdamW, and `momentum` is that of Muon. `fused`: AdamW updates all its parameters in one
    kernel. `dtype`: the number format in which `orthogonalize` iterates, unless the weights are float64. bf16 is precise enough
    for this iteration, but a CPU without instructions for bf16 multiplies matrices up to a hundred times more slowly in bf16
    than in fp32.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        *,
        momentum: float,
        fused: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "fused": fused})
        self.dtype, self.momentum = dtype, momentum
        self.found_inf: Tensor | None = None  # if it is 1.0, the next step changes nothing; `skip_step_if` sets it
        self._adamw = torch.optim.AdamW([torch.zeros(1)], lr=lr, betas=betas, eps=eps, fused=fused)
        self._adamw_defaults = {k: v for k, v in self._adamw.param_groups[0].items() if k != "params"}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters from their gradients; return the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["role"] == "matrix":
                self._step_matrices(group)
        # AdamW gets the groups and states of this optimizer before each step, because a loaded checkpoint replaces them
        rest = [group for group in self.param_groups if group["role"] != "matrix"]
        self._adamw.param_groups = [{**self._adamw_defaults, **group} for group in rest]
        self._adamw.state = self.state
        if self.found_inf is not None:
            skip_step_if(self._adamw, self.found_inf)
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault((min(p.shape), max(p.shape)), []).append(p)
        is_finite = 1.0 if self.found_inf is None else 1 - self.found_inf
        for shape, matrices in by_shape.items():
            directions = orthogonalize(torch.stack([_as_wide(whole(self._momentum(p)), self.dtype) for p in matrices]))
            for p, direction in zip(matrices, directions, strict=True):
                keep = 1 - group["lr"] * group["weight_decay"] * is_finite
                step = direction.to(p.dtype) * (0.2 * math.sqrt(shape[1]) * group["lr"])
                step = step if self.found_inf is None else step.nan_to_num_(0.0, 0.0, 0.0) * is_finite
                p.mul_(keep).sub_(shard_like(step if p.shape[0] <= p.shape[1] else step.mT, p))

    def _momentum(self, p: Tensor) -> Tensor:
        """Update the running mean of a parameter's gradients and return Nesterov's momentum, a mix of gradient and mean."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        mean = state["momentum"]
        if self.found_inf is None:
            mean.lerp_(p.grad, 1 - self.momentum)
        else:
            mean.copy_(torch.where(self.found_inf > 0, mean, mean.lerp(p.grad, 1 - self.momentum)))
        return p.grad.lerp(mean, self.momentum)


def _as_wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Transpose a matrix if it has more rows than columns, and convert it to `dtype` unless it is float64."""
    x = x if x.dtype == torch.float64 else x.to(dtype)
    return x if x.shape[0] <= x.shape[1] else x.mT
