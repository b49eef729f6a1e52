"""Store weights in int8: each row of a matrix as integers from -127 to 127 and one scale by which they are multiplied.

Only the matrices of linear layers are quantised, because norms, biases and positions are small. `round_weights` rounds the
weights of a model in the same way, so that an evaluation uses the same weights as generation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, Elementwise, activate
from positron.model.kernels.torch_private import int8_linear

MAX_DIRECT_ROWS = 8  # for more rows of x, a bf16 product is faster than the int8 operator
ROW_MULTIPLE = 32  # the int8 operator reads beyond the end of rows whose length is not a multiple of this number


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise W (out, in) to q (out, in) in int8 and scale (out,) in bf16, with |W - scale q| <= scale / 2.

    The scale of a row is the largest |W| of the row divided by 127, rounded to bf16. This rounding makes W / scale larger by at
    most 1 part in 256. So |W / scale| is at most 127 (1 + 1/256) = 127.496, which is rounded to 127, and no number of q exceeds
    the range.
    """
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale.float()[:, None]).round().to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """Return scale * q in fp32, (out, in), for the q (out, in) and scale (out,) that `quantise` returns.

    The products are exact, because their significands have at most 15 bits, and fp32 has 24.
    """
    return q.float() * scale.float()[:, None]


@torch.no_grad()
def round_weights(model: GPT, dtype: torch.dtype | None) -> GPT:
    """Return a copy of the model whose weights are rounded in the same way as in a Decoder with this dtype.

    The copy computes in the precision of the model. If dtype is None, the model itself is returned.
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
    """Compute activation(x W^T + b) with W in int8.

    The int8 operator of torch is used on a CPU if x is a bf16 matrix (rows, in) with at most MAX_DIRECT_ROWS rows (8), and `in`
    is a multiple of ROW_MULTIPLE (32). Otherwise, the int8 weights are converted to the dtype of x for each product.
    """

    packed = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "") -> None:
        self.q, self.scale = quantise(weight)
        self.bias, self.activation = bias, activation
        self.direct = weight.device.type == "cpu" and weight.shape[1] % ROW_MULTIPLE == 0

    def product(self, x: Tensor) -> Tensor:
        """Compute x W^T + b: x (..., in) -> (..., out).

        If x is a bf16 matrix of few rows on a CPU, torch's int8 operator computes the product (see the class). Otherwise, W is
        converted to the dtype of x. With x in bf16, the results of the two ways differ only by rounding, because bf16
        represents all integers up to 127 exactly.
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
