"""int8 weights: each row of a matrix is integers from -127 to 127 times its own scale.

Only linear weights are quantised; norms, biases and positions are too small to matter. `round_weights` gives the same
numbers to a plain model, so that the evaluated weights are those that generate.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, Elementwise, activate
from positron.model.kernels.torch_private import int8_linear

MAX_DIRECT_ROWS = 8  # the time of the int8 operator grows with the rows; with more, a bf16 product is faster
ROW_MULTIPLE = 32  # the int8 operator reads beyond the end of rows that are not a multiple of its vectors


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise W (out, in) to q (out, in) int8 and scale (out,) bf16, with |W - scale q| <= scale / 2.

    The scale is rounded before the division. It is then too small by 1 part in 256 at most, and the largest number of a
    row becomes 127 (1 + 1/256) = 127.496, which is rounded to 127, so that no number is clipped.
    """
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale.float()[:, None]).round().to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """Compute scale q, exactly, in fp32: (out, in)."""
    return q.float() * scale.float()[:, None]


@torch.no_grad()
def round_weights(model: GPT, dtype: torch.dtype | None) -> GPT:
    """Copy the model, with its weights rounded as a Decoder with this dtype rounds them; activations keep their precision.

    If dtype is None, returns the model itself.
    """
    if dtype is None:
        return model
    copied = copy.deepcopy(model)
    matrices = [part.weight for part in copied.modules() if isinstance(part, nn.Linear)] + [copied.head_weight]
    quantised = [dequantise(*quantise(weight)) for weight in matrices] if dtype == torch.int8 else []
    for parameter in copied.parameters():
        parameter.copy_(parameter.to(torch.bfloat16 if dtype == torch.int8 else dtype))
    for weight, value in zip(matrices, quantised, strict=False):
        weight.copy_(value)
    return copied


class Int8Linear:
    """Compute activation(x W^T + b) as `Linear` does, with W in int8; the int8 operator is used for x in bf16."""

    packed = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "") -> None:
        self.q, self.scale = quantise(weight)
        self.bias, self.activation = bias, activation
        self.direct = weight.device.type == "cpu" and weight.shape[1] % ROW_MULTIPLE == 0

    def product(self, x: Tensor) -> Tensor:
        """Compute x W^T + b: (..., in) -> (..., out).

        The int8 operator and the bf16 product agree, because integers up to 127 are exact in bf16.
        """
        if self.direct and x.ndim == 2 and len(x) <= MAX_DIRECT_ROWS and x.dtype == torch.bfloat16:
            y = int8_linear(x, self.q, self.scale)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., in) -> (..., out)."""
        return activate(self.product(x), self.activation)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute residual + x W^T + b, without the activation: x (N, in), residual (N, out) -> (N, out)."""
        return residual + self.product(x)
