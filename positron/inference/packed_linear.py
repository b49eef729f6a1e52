"""Compute linear layers for one token at a time, with the weight in oneDNN's blocked layout.

The time of a product with a single row is the time to read the weights. On a CPU, oneDNN reads its own blocked layout up to
three times as fast as `F.linear` reads a plain matrix: all products of TinyGPT (15M parameters) take 1.1 ms instead of 3.7 ms
on two AVX512 cores, and 0.7 ms instead of 1.4 ms in bf16. torch.compile uses the same oneDNN operators; this module calls them
directly, so that no compiler is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from positron.model.gpt import Elementwise, activate
from positron.model.kernels import torch_private

FUSED = {"gelu": ("gelu", "tanh"), "relu": ("relu", ""), "swish": ("swish", "")}


def can_pack(weight: Tensor) -> bool:
    """Tell whether oneDNN can pack this weight and computes products with the packed weight faster.

    To pack a weight is to copy it to oneDNN's blocked layout. On the three processors that were measured, packed bf16 is
    faster. On the two of them without AMX (Intel's matrix unit), packed fp32 is faster, too. On the one with AMX, packed fp32
    is slower: 1.9 instead of 1.2 ms for the matrices of a small model.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.float32:
        return not torch_private.has_amx()
    return weight.dtype == torch.bfloat16 and torch_private.packs_bf16()


class Linear:
    """Compute activation(x W^T + b), with the weight W (out, in) in oneDNN's blocked layout if that is faster."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "", *, widen: bool = False
    ) -> None:
        """Copy the weight to oneDNN's blocked layout if that is faster (see `can_pack`) and `widen` is false.

        `widen`: true if the inputs have a wider dtype than the weight. The weight is then converted to that dtype at each call.
        """
        self.bias, self.activation = bias, activation
        self.packed = can_pack(weight) and not widen
        self.weight = torch_private.packed(weight) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., in) -> (..., out)."""
        if not self.packed:
            return activate(F.linear(x, self.weight.to(x.dtype), self.bias), self.activation)
        attribute, algorithm = FUSED.get(self.activation, ("none", ""))
        y = torch_private.packed_linear(x, self.weight, self.bias, attribute, algorithm)
        return activate(y, self.activation) if attribute == "none" else y

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute residual + x W^T + b, without the activation: x (N, in), residual (N, out) -> (N, out)."""
        if self.packed:
            return torch_private.packed_linear_plus(x, residual, self.weight, self.bias)
        return residual + F.linear(x, self.weight.to(x.dtype), self.bias)
