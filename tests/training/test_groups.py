"""The one rule of parameter groups: roles, learning rates, weight decay, and what a checkpoint may change of them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny

from positron.config import OptimizerConfig
from positron.model.gpt import GPT
from positron.training.optim.groups import build_optimizer, set_lr

ADAMW = OptimizerConfig("adamw", lr=0.01, weight_decay=0.3)
MUON = OptimizerConfig("muon", lr=0.01, weight_decay=0.3, embedding_ratio=3.0)


def small_model() -> GPT:
    return GPT(dataclasses.replace(tiny(Path()).model, bias=True, tie_embeddings=False).with_vocab(50), seed=1)


def built(config: OptimizerConfig) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    model = small_model()
    return dict(model.named_parameters()), build_optimizer(model.named_parameters(), config, fused=False)


def values_of(optimizer: torch.optim.Optimizer, key: str, named: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    values = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in named.items()}


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_norms_and_biases_are_not_decayed_and_all_else_is(config: OptimizerConfig) -> None:
    named, optimizer = built(config)
    decay = values_of(optimizer, "weight_decay", named)
    assert decay == {name: 0.0 if "norm" in name or name.endswith("bias") else 0.3 for name in named}


def test_only_embeddings_and_head_move_at_the_embedding_ratio() -> None:
    named, optimizer = built(MUON)
    set_lr(optimizer.param_groups, 0.02)
    tables = {"wte.weight", "wpe.weight", "lm_head.weight"}
    assert values_of(optimizer, "lr", named) == {name: 0.06 if name in tables else 0.02 for name in named}


def one_step(named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=generator)
    set_lr(optimizer.param_groups, 0.02)
    optimizer.step()


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_a_checkpoint_without_roles_continues_as_if_it_had_them(config: OptimizerConfig) -> None:
    """Checkpoints of before 2026-12 mark Muon's groups as `orthogonal` or not, and AdamW's as nothing."""
    a, first = built(config)
    one_step(a, first)
    saved = copy.deepcopy(first.state_dict())  # moments are updated in place
    for group in saved["param_groups"]:
        role = group.pop("role")
        del group["lr_factor"]
        if config.kind == "muon":
            group["orthogonal"] = role == "matrix"
    b, second = built(config)
    with torch.no_grad():
        for name, p in b.items():
            p.copy_(a[name])
    second.load_state_dict(saved)
    for named, optimizer in ((a, first), (b, second)):
        one_step(named, optimizer)
    assert all(torch.equal(p, b[name]) for name, p in a.items())


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_the_config_outweighs_the_values_in_a_checkpoint(config: OptimizerConfig) -> None:
    named, old = built(config)
    one_step(named, old)
    changed = dataclasses.replace(config, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    _, new = built(changed)
    new.load_state_dict(old.state_dict())
    assert [g["betas"] for g in new.param_groups] == [(0.8, 0.9)] * len(new.param_groups)
    assert [g["eps"] for g in new.param_groups] == [1e-6] * len(new.param_groups)
    assert [g["weight_decay"] for g in new.param_groups] == [0.5] * (len(new.param_groups) - 1) + [0.0]
    assert len(new.state) == len(named)


class Counting(torch.optim.SGD):
    """Divides the learning rate by the number of steps, which it counts in its parameter groups as Prodigy does."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["lr"] /= group["k"]
        super().step(closure)


def test_what_an_own_optimizer_keeps_in_its_groups_is_restored_but_not_what_is_configured() -> None:
    options = {"momentum": 0.9}
    config = OptimizerConfig("custom", lr=0.01, weight_decay=0.3, _target_=f"{__name__}.Counting", options=options)
    _, first = built(config)
    first.step()
    _, second = built(dataclasses.replace(config, lr=0.02, weight_decay=0.5, options={"momentum": 0.8}))
    second.load_state_dict(first.state_dict())
    values = [(group["k"], group["lr"], group["momentum"], group["weight_decay"]) for group in second.param_groups]
    assert values == [(1, 0.02, 0.8, 0.5), (1, 0.02, 0.8, 0.0)]


def test_groups_are_plain_values_that_a_checkpoint_may_hold(tmp_path: Path) -> None:
    _, optimizer = built(MUON)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.load(tmp_path / "optimizer.pt", weights_only=True)
