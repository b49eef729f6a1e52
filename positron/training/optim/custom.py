"""Build any torch optimizer by its name: `optimizer=custom optimizer._target_=torch.optim.RAdam`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from positron.config import OptimizerConfig, Precision
from positron.model.kernels.torch_private import divides_by_loss_scale
from positron.system.errors import UserError
from positron.system.imports import load_object

KEY = "optimizer._target_"


def custom_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build an optimizer of the class that `optimizer._target_` names, with `optimizer.options` as further arguments.

    `groups`: the parameter groups; the training loop sets the learning rate of each group before each step. Raises UserError
    if the class cannot be used (see `optimizer_class`), refuses its arguments, or cannot update sharded weights, or if
    `optimizer.options` contains a value that each parameter group has already.
    """
    options = config.options or {}
    for name in ("lr", "weight_decay"):
        if name in options:
            raise UserError(
                f"optimizer.options.{name}={options[name]} would have no effect, because Positron sets {name} in each "
                f"parameter group: give optimizer.{name}={options[name]} instead"
            )
    build = functools.partial(optimizer_class(config), lr=config.lr, **options)
    try:
        optimizer: torch.optim.Optimizer = build(groups)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{KEY}={config._target_} refuses its arguments ({' '.join(str(error).split())}): correct optimizer.options=, or "
            "choose another optimizer"
        ) from error
    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        _check_sharded_step(build, groups, config)
    return optimizer


def _check_sharded_step(
    build: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], config: OptimizerConfig
) -> None:
    """Raise UserError if the optimizer class cannot update sharded weights.

    To find out, it takes one optimizer step on sharded tensors of zeros: one tensor for each number of dimensions that
    occurs in `groups`. All processes must call this function together.
    """
    by_ndim = {parameter.ndim: parameter for group in groups for parameter in group["params"]}
    tried = [torch.nn.Parameter(torch.zeros_like(parameter)) for parameter in by_ndim.values()]
    for parameter in tried:
        parameter.grad = torch.ones_like(parameter)
    try:
        build(tried).step()
    except (NotImplementedError, RuntimeError) as error:  # what DTensor raises for an operation that it does not have
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UserError(
            f"{KEY}={config._target_} cannot update weights that are divided among processes ({reason}): choose "
            "device.strategy=ddp, or another optimizer"
        ) from error


def optimizer_class(config: OptimizerConfig) -> Any:
    """Import and return the class that `optimizer._target_` names.

    Raises UserError if the class cannot be imported or is not an optimizer, if its `step` needs a closure, or if it has no
    argument `weight_decay` although `optimizer.weight_decay` is not 0.
    """
    assert config._target_ is not None
    cls = load_object(config._target_, KEY)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise UserError(f"{KEY}={config._target_} is not a torch optimizer: name a subclass of torch.optim.Optimizer")
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{KEY}={config._target_} evaluates the loss several times per step, which Positron's training does not "
            "support: choose another optimizer"
        )
    if config.weight_decay and "weight_decay" not in inspect.signature(cls).parameters:
        raise UserError(f"{KEY}={config._target_} has no weight decay: give optimizer.weight_decay=0")
    return cls


def refuse_unusable(config: OptimizerConfig, precision: Precision) -> None:
    """Raise UserError if `config` names a custom optimizer that cannot be built, or that cannot train in this precision.

    Call this before the text is prepared, which may take long.
    """
    if not config.is_custom:
        return
    optimizer = custom_optimizer([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}], config)
    # in fp16, gradients must be divided by the loss scale before they are clipped
    if precision == "fp16" and divides_by_loss_scale(optimizer):
        raise UserError(
            f"{KEY}={config._target_} with fused=true cannot be used in fp16, because it divides the gradients by the loss "
            "scale only after they are clipped: leave fused out of optimizer.options=, or give precision=bf16 or precision=fp32"
        )
