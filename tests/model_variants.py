"""Every option of a model and of an optimizer, taken from the settings, so that a new option is tested without a new test."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from positron.config import GPTConfig, ModelConfig, OptimizerConfig
from positron.model.gpt import GPT

PLAIN = GPTConfig(vocab_size=50, context_length=16, d_model=24, n_layer=2, n_head=4)
SIZES = {"context_length", "d_model", "n_layer", "n_head"}  # every variant has them
NUMBERS = {"n_kv_head": 2, "d_ff": 40, "head_dim": 8, "window": 5, "dropout": 0.1, "rope_base": 100.0, "norm_eps": 1e-3}
NEEDS: dict[str, dict[str, Any]] = {
    "qk_scale": {"qk_norm": True},
    "rope_base": {"position": "rope"},
}  # what it works with


def values(name: str, hint: Any) -> tuple[Any, ...]:
    """Return the values of an option. Raises KeyError for a new number, which needs a value in NUMBERS."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return (True, False) if hint is bool else (NUMBERS[name],)


MODELS: dict[str, GPTConfig] = {"plain": PLAIN}
MODELS |= {
    f"{name}={value}": dataclasses.replace(PLAIN, **{**NEEDS.get(name, {}), name: value})
    for name, hint in get_type_hints(ModelConfig).items()
    if name not in SIZES
    for value in values(name, hint)
    if value != getattr(PLAIN, name)
}
MODELS["modern"] = dataclasses.replace(
    PLAIN,
    **{"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "tie_embeddings": False, "n_kv_head": 2},
    **{"qk_norm": True, "qk_scale": True, "smear": True, "window": 5},
)
OPTIMIZERS: dict[str, OptimizerConfig] = {
    kind: OptimizerConfig(kind, lr=1e-2, weight_decay=0.0, _target_="torch.optim.RAdam" if kind == "custom" else None)
    for kind in get_args(get_type_hints(OptimizerConfig)["kind"])
}


def decisive_model(name: str, vocab_size: int) -> GPT:
    """A model of a variant whose logits are far enough from each other that rounding changes no token."""
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(MODELS[name], vocab_size=vocab_size)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model
