"""Define the options of a GPT, with the same fields, defaults and rules as the torch model's `GPTConfig`.

The functions of this package accept any object that has these fields and properties, so the torch model's own configuration
works, too. This module imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never, get_args


class InputError(Exception):
    """Report something that the user can correct; the commands show it as one line and exit with code 2."""


Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["learned", "sinusoidal", "rope"]
Activation = Literal["gelu", "relu", "swish", "relu2", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Describe the architecture of a GPT. Raises InputError for impossible values.

    `context_length` is in tokens. `head_dim` is the number of channels of a head (None: d_model / n_head), and `n_kv_head` the
    number of key/value heads (None: as many as query heads). `d_ff` is the width of the MLP. If it is None, the width is four
    times d_model; with the activation swiglu, it is 8/3 d_model, rounded up to a multiple of 8.

    With `bias`, LayerNorms and all linear layers except the output head have a bias. With `tie_embeddings`, the output head is
    the matrix of the token embeddings. With `qk_norm`, queries and keys are normalized with RMSNorm, and with `qk_scale`, this
    norm has a learned scale. With `smear`, a learned multiple of the previous token's embedding is added to each embedding.
    `window` is the number of tokens to which each token attends, itself included (None: itself and all tokens before it).
    `dropout` is the dropout probability.
    """

    vocab_size: int
    context_length: int
    d_model: int
    n_layer: int
    n_head: int
    head_dim: int | None = None
    n_kv_head: int | None = None
    d_ff: int | None = None
    norm: Norm = "layernorm"
    position: Position = "learned"
    activation: Activation = "gelu"
    bias: bool = False
    tie_embeddings: bool = True
    qk_norm: bool = False
    qk_scale: bool = False
    smear: bool = False
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    window: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_layer", "n_head"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name}={value!r} must be an integer of at least 1")
        if self.head_dim is not None and (type(self.head_dim) is not int or self.head_dim < 1):
            raise InputError(f"head_dim={self.head_dim!r} must be an integer of at least 1")
        if self.head_dim is None and self.d_model % self.n_head:
            raise InputError(
                f"d_model={self.d_model} is not divisible by n_head={self.n_head}: "
                f"try d_model={self.d_model // self.n_head * self.n_head or self.n_head}"
            )
        if self.n_kv_head is not None and (self.n_kv_head < 1 or self.n_head % self.n_kv_head):
            raise InputError(f"n_kv_head={self.n_kv_head} must divide n_head={self.n_head}")
        for name, choices in (("norm", Norm), ("position", Position), ("activation", Activation)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"{name}={getattr(self, name)!r} is unknown: use one of {', '.join(get_args(choices))}"
                )
        if self.qk_scale and not self.qk_norm:
            raise InputError("qk_scale=True needs qk_norm=True: give both")
        for name in ("rope_base", "norm_eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r} must be positive")
        match self.position:
            case "learned":
                pass
            case "sinusoidal":
                if self.d_model % 2:
                    raise InputError(f"position=sinusoidal needs an even d_model; it is {self.d_model}")
            case "rope":
                if self.d_head % 2:
                    raise InputError(
                        f"position=rope needs an even head dimension, which is head_dim or, without it, d_model / n_head; it "
                        f"is {self.d_head}"
                    )
            case _:
                assert_never(self.position)
        if self.window is not None and self.window < 1:
            raise InputError(f"window={self.window} must be at least 1: a token attends to itself")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be in [0, 1)")

    @property
    def d_head(self) -> int:
        """Return D, the dimension of a head."""
        return self.head_dim or self.d_model // self.n_head

    @property
    def kv_heads(self) -> int:
        """Return K, the number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def ff_width(self) -> int:
        """Return F, the width of the MLP. A gated MLP has three matrices instead of two, so its default is 2/3 as wide."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.is_gated else 4 * self.d_model

    @property
    def has_learned_positions(self) -> bool:
        """Tell whether the position embeddings are trained weights, `wpe` of shape (context_length, d_model)."""
        match self.position:
            case "learned":
                return True
            case "sinusoidal" | "rope":
                return False
            case _:
                assert_never(self.position)

    @property
    def has_rope(self) -> bool:
        """Tell whether queries and keys are rotated by an angle that depends on the position."""
        match self.position:
            case "rope":
                return True
            case "learned" | "sinusoidal":
                return False
            case _:
                assert_never(self.position)

    @property
    def is_gated(self) -> bool:
        """Tell whether the MLP has a third matrix, `gate`; swish of its output multiplies the output of the matrix `up`."""
        match self.activation:
            case "swiglu":
                return True
            case "gelu" | "relu" | "swish" | "relu2":
                return False
            case _:
                assert_never(self.activation)

    @property
    def has_norm_bias(self) -> bool:
        """Tell whether norms have a bias beside their weight."""
        match self.norm:
            case "layernorm":
                return self.bias
            case "rmsnorm":
                return False
            case _:
                assert_never(self.norm)
