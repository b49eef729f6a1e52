"""Divide the trained parameters of a model into parameter groups, and build the optimizer that updates them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from positron.config import OptimizerConfig
from positron.system.errors import UserError
from positron.training.optim.custom import custom_optimizer
from positron.training.optim.muon import Muon
from positron.training.sharded_tensors import whole

MUON_RATE = 7e-3  # peak learning rate of Muon at every width; twice this rate changes the loss by at most 0.2 %
ADAMW_RATE = 1.0  # peak learning rate of AdamW, multiplied by d_model

Role = Literal["matrix", "table", "vector"]


def role_of(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> Role:
    """Return the role of a parameter, which determines its parameter group.

    A parameter with fewer than two dimensions, such as a norm weight or a bias, is `vector`. With Muon, the embeddings and
    the output head are `table`. All other parameters are `matrix`.
    """
    if parameter.ndim < 2:
        return "vector"
    match config.kind:
        case "adamw" | "custom":
            return "matrix"  # one group in the model's order, because checkpoints store moments by position
        case "muon":
            # a row of the embeddings or of the head belongs to one token, so that orthogonalising them makes no sense
            return "matrix" if "blocks." in name else "table"
        case _:
            assert_never(config.kind)


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return one parameter group for each role, with the keys `params`, `role`, `weight_decay` and `lr_factor`.

    The role of a parameter is "matrix", "table" (embeddings and output head, only with Muon) or "vector" (see `role_of`). A
    role without parameters has no group. Frozen parameters are left out.

    The learning rate of a group is the schedule's rate times `lr_factor`. Vectors have no weight decay, because pulling the
    scale of a norm towards zero does not regularise. The order of the groups must not change, because checkpoints store the
    optimizer's state in this order.
    """
    groups: dict[Role, dict[str, Any]] = {
        "matrix": {"weight_decay": config.weight_decay, "lr_factor": 1.0},
        "table": {"weight_decay": config.weight_decay, "lr_factor": config.embedding_ratio},
        "vector": {"weight_decay": 0.0, "lr_factor": 1.0},
    }
    members: dict[Role, list[nn.Parameter]] = {role: [] for role in groups}
    for name, parameter in parameters:
        if parameter.requires_grad:
            members[role_of(name, parameter, config)].append(parameter)
    return [{"params": members[role], "role": role, **group} for role, group in groups.items() if members[role]]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    *,
    fused: bool,
    bf16: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimizer that `config` names: AdamW (arXiv:1711.05101), Muon or the user's own.

    Its parameter groups are the result of `parameter_groups`. `fused`: AdamW updates all parameters in one kernel. `bf16`:
    the model is trained in bf16, so that Muon orthogonalises in bf16, too. Otherwise Muon uses fp32, because a machine that
    trains in fp32 may be slow in bf16.
    """
    groups = parameter_groups(parameters, config)
    optimizer: torch.optim.Optimizer
    match config.kind:
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        case "muon":
            optimizer = Muon(
                groups,
                config.lr,
                config.betas,
                config.eps,
                momentum=config.momentum,
                fused=fused,
                dtype=torch.bfloat16 if bf16 else torch.float32,
            )
        case "custom":
            optimizer = custom_optimizer(groups, config)
        case _:
            assert_never(config.kind)
    _keep_configured_values(optimizer, config)
    return optimizer


def _keep_configured_values(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Make `load_state_dict` leave those values of the parameter groups as they are that the configuration decides.

    By default, torch replaces all values of the parameter groups by those in the checkpoint. Hyperparameters such as betas and
    weight decay would then be those of the checkpoint, not those of the run's config. The values `role` and `lr_factor`, which
    Positron adds to each group, would be missing after loading an old checkpoint.

    The user's own optimizer may keep a state in its groups, such as the step counter of Prodigy or of a schedule-free
    optimizer. Therefore, its other values are restored from the checkpoint.
    """
    configured = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    if config.is_custom:
        decided = {"role", "lr_factor", "lr", "weight_decay", *(config.options or {})}
        configured = [{key: value for key, value in g.items() if key in decided} for g in configured]

    def restore(loaded: torch.optim.Optimizer) -> None:
        for group, values in zip(loaded.param_groups, configured, strict=True):
            group |= values
            if group.get("fused"):  # torch has placed the step counts as `fused` of the checkpoint asks
                for state in (loaded.state.get(parameter, {}) for parameter in group["params"]):
                    if torch.is_tensor(state.get("step")):
                        state["step"] = state["step"].to(group["params"][0].device, torch.float32)

    optimizer.register_load_state_dict_post_hook(restore)


def suitable_rate(config: OptimizerConfig, d_model: int) -> float:
    """Return the peak learning rate that suits a model of width `d_model`.

    If the setting `budget=` gives a training time, this rate is used unless the user gives optimizer.lr=. Raises UserError for
    optimizer=custom, whose learning rate must be given.
    """
    match config.kind:
        case "muon":
            return MUON_RATE
        case "adamw":
            return ADAMW_RATE / d_model
        case "custom":
            raise UserError("budget= cannot choose the learning rate for optimizer=custom: give optimizer.lr=")
        case _:
            assert_never(config.kind)


def set_lr(groups: list[dict[str, Any]], lr: float) -> None:
    """Set the learning rate of each group to `lr` times the group's `lr_factor`."""
    for group in groups:
        group["lr"] = lr * group["lr_factor"]


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their global L2 norm is at most `max_norm`; return the norm before scaling.

    If `max_norm` is 0, the gradients are not changed. The result is a scalar tensor on the device, so that the CPU does not
    wait for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))  # over the shards of all processes
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
