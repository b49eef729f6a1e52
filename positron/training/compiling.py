"""Compile the model (`device.compile=true`), and undo this if the loss or gradient norm differs from that of eager mode."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from positron.config import IGNORE
from positron.model.gpt import GPT
from positron.model.kernels.torch_private import undo_compile
from positron.system.console import one_line
from positron.training.device import Machine
from positron.training.eager_step import cross_entropy
from positron.training.objective.base import Part

logger = logging.getLogger(__name__)

# Accepted relative difference of loss and gradient norm. Fused kernels sum in another order and round less often, so the last
# digits differ; a wrong kernel would cause a far larger difference.
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}


def compile_in_place(
    model: GPT, part: Part, machine: Machine, loss_of: Callable[[GPT, Part], Tensor] = cross_entropy
) -> bool:
    """Compile the model and compare it with eager mode on the micro-batch `part`; return whether it stays compiled.

    `loss_of` returns the sum of the losses of a micro-batch, as `Objective.loss` does, perhaps with a mask of documents.

    If the compiler fails, a warning is logged and the model stays in eager mode. The same happens if the loss or the gradient
    norm differs by more than a relative tolerance, which depends on the precision (TOLERANCE). The names in the state dict do
    not change. Dropout is off during the comparison, because compiled code draws other random numbers.
    """
    model.to(machine.device)
    part = tuple(tensor.to(machine.device) for tensor in part)
    model.train(model.config.dropout == 0)
    eager = _loss_and_norm(model, part, machine, loss_of)
    reason = None
    try:
        model.compile()
        compiled = _loss_and_norm(model, part, machine, loss_of)
        if not torch.allclose(compiled, eager, rtol=TOLERANCE[machine.precision], atol=0.0):
            reason = f"loss and gradient norm are {_shown(compiled)} when compiled, but {_shown(eager)} otherwise"
    except Exception as error:  # a compiler and its tools can fail in many ways, and no failure should end the run
        reason = one_line(" ".join(str(error).split()), 200) or type(error).__name__
    finally:
        model.zero_grad(set_to_none=True)
        model.train()
    if reason is not None:
        undo_compile(model)
        logger.warning(f"device.compile=true is ignored: {reason}")
    return reason is None


def _loss_and_norm(model: GPT, part: Part, machine: Machine, loss_of: Callable[[GPT, Part], Tensor]) -> Tensor:
    """Return a tensor (2,): the loss in nats per token, and the global norm of its gradient."""
    model.zero_grad(set_to_none=True)
    with machine.autocast():
        loss = loss_of(model, part) / (part[1] != IGNORE).sum()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return torch.stack([loss.detach(), norm])


def _shown(values: Tensor) -> str:
    return " and ".join(f"{value:.4g}" for value in values.tolist())
