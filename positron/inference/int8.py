"""Weights of one byte: each row of a matrix is whole numbers from -127 to 127 times a scale of its own.

Only the matrices of products are: what a token reads is these, and of norms, biases and positions there is little to
save. `rounded` gives the same numbers to a plain model, so that what is measured is what writes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, Elementwise, activate
from positron.model.kernels.torch_private import int8_linear

FEW_ROWS = 8  # the operator's time grows with the rows; from here on a product of whole tiles in bf16 takes less
WIDTH = 32  # it reads beyond the end of rows that are no multiple of its vectors: noise, or a crash


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W (out, in) -> q (out, in) int8 and scale (out,) bf16, with |W - scale q| <= scale / 2.

    The scale is rounded before the division. It is then too small by 1 part in 256 at most, and the largest number of a
    row becomes 127 (1 + 1/256) = 127.496, which is rounded to 127: nothing is cut off.
    """
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale.float()[:, None]).round().to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """(out, in) in fp32, exact."""
    return q.float() * scale.float()[:, None]


@torch.no_grad()
def rounded(model: GPT, dtype: torch.dtype | None) -> GPT:
    """The model with the numbers that a Decoder of this dtype multiplies by; its activations stay as wide as they are."""
    if dtype is None:
        return model
    made = copy.deepcopy(model)
    products = [part.weight for part in made.modules() if isinstance(part, nn.Linear)] + [made.head_weight]
    bytewise = [dequantise(*quantise(weight)) for weight in products] if dtype == torch.int8 else []
    for parameter in made.parameters():
        parameter.copy_(parameter.to(torch.bfloat16 if dtype == torch.int8 else dtype))
    for weight, value in zip(products, bytewise, strict=False):
        weight.copy_(value)
    return made


class Int8Linear:
    """x -> activation(x W^T + b) like `Linear`, with the weight in int8. x is bf16 where the operator is to be used."""

    packed = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "") -> None:
        self.q, self.scale = quantise(weight)
        self.bias, self.activation = bias, activation
        self.direct = weight.device.type == "cpu" and weight.shape[1] % WIDTH == 0

    def product(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). Whole numbers up to 127 are exact in bf16, so both ways multiply by the same."""
        if self.direct and x.ndim == 2 and len(x) <= FEW_ROWS and x.dtype == torch.bfloat16:
            y = int8_linear(x, self.q, self.scale)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        return activate(self.product(x), self.activation)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + x W^T + b."""
        return residual + self.product(x)
