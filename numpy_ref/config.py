"""The menu of a GPT: the same fields, defaults and rules as the torch model's `GPTConfig`.

Everything in this package reads these fields from any object that has them, so the torch side's own configuration
serves as well. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class InputError(Exception):
    """Something that the user can mend: shown as one line, exit code 2."""


NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "sinusoidal", "rope")
ACTIVATIONS = ("gelu", "relu", "swish", "relu2", "swiglu")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """`n_kv_head` None: as many key/value heads as heads. `d_ff` None: 4 d_model, or about 8/3 d_model for swiglu."""

    vocab_size: int
    context_length: int
    d_model: int
    n_layer: int
    n_head: int
    n_kv_head: int | None = None
    d_ff: int | None = None
    norm: str = "layernorm"
    position: str = "learned"
    activation: str = "gelu"
    bias: bool = False
    tie_embeddings: bool = True
    qk_norm: bool = False
    smear: bool = False
    window: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_layer", "n_head"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name}={value!r} must be a whole number of at least 1")
        if self.d_model % self.n_head:
            raise InputError(
                f"d_model={self.d_model} is not divisible by n_head={self.n_head}: "
                f"try d_model={self.d_model // self.n_head * self.n_head or self.n_head}"
            )
        if self.n_kv_head is not None and (self.n_kv_head < 1 or self.n_head % self.n_kv_head):
            raise InputError(f"n_kv_head={self.n_kv_head} must divide n_head={self.n_head}")
        for name, allowed in (("norm", NORMS), ("position", POSITIONS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is none of {', '.join(allowed)}")
        if self.position == "rope" and self.d_model // self.n_head % 2:
            raise InputError(f"position=rope needs an even head dimension, not {self.d_model // self.n_head}")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise InputError(f"position=sinusoidal needs an even d_model, not {self.d_model}")
        if self.window is not None and self.window < 1:
            raise InputError(f"window={self.window} must be at least 1, the token itself")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be in [0, 1)")


def kv_heads(config: Any) -> int:
    """K, the number of key/value heads."""
    return int(config.n_kv_head or config.n_head)


def ff_width(config: Any) -> int:
    """F, the width inside the MLP. swiglu has three matrices instead of two, so it gets 2/3 of the width."""
    if config.d_ff is not None:
        return int(config.d_ff)
    return -(-8 * config.d_model // 24) * 8 if config.activation == "swiglu" else 4 * int(config.d_model)
