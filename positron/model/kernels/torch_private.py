"""Everything that Positron uses of torch and that torch does not document, each with what is relied on.

A version of torch may change or drop any of these without a notice; tests/model/test_torch_private.py asks each for its
signature and for its answer to a small input. Checked with torch 2.13.0. NumPy and Lightning are used by their public
interfaces alone, and numpy_ref needs none of this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPILED_MARK = "_orig_mod."  # what torch.compile(module) puts before the names of the module's parameters


def softmax_gradient(grad: Tensor, softmax: Tensor) -> Tensor:
    """Return softmax * (grad - sum(grad * softmax)) over the last axis, by the kernel of softmax's own backward.

    `torch._softmax_backward_data(grad, output, dim, input_dtype)`: one pass, with sums in fp32 for bf16. Written with
    public operators it takes three passes over the largest tensors of attention.
    """
    gradient: Tensor = torch._softmax_backward_data(grad, softmax, -1, softmax.dtype)
    return gradient


def packs_bf16() -> bool:
    """Tell whether this processor multiplies bf16 by oneDNN (`mkldnn._is_mkldnn_bf16_supported`)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: Tensor) -> Tensor:
    """Copy a matrix (out, in) into oneDNN's blocked layout (`mkldnn._reorder_linear_weight`), for `packed_linear`.

    The result is an opaque tensor of the layout `torch._mkldnn`: nothing but the two functions below can read it.
    """
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return reordered


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    """Return f(x W^T + b) for a packed W, with f fused into the product (`mkldnn._linear_pointwise`).

    `attribute` and `algorithm` name f as oneDNN does: ("none", ""), ("relu", ""), ("swish", ""), ("gelu", "tanh").
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    return y


def packed_linear_plus(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return other + x W^T + b for a packed W, in one pass (`mkldnn._linear_pointwise.binary`)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
    return y


def int8_linear(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """Return (x q^T) * scale for x (n, in) in bf16, q (out, in) in int8, scale (out,) in bf16, on a CPU.

    `aten._weight_int8pack_mm`. It checks no bounds: where `in` is no multiple of 32 it reads beyond the end of the rows,
    which gives noise or a crash. The caller answers for that.
    """
    y: Tensor = torch.ops.aten._weight_int8pack_mm(x, q, scale)
    return y


def has_forward_hooks(module: nn.Module) -> bool:
    """Tell whether someone watches the module by `register_forward_hook` (`Module._forward_hooks`, a dictionary).

    A module that is bypassed, since its weights are multiplied elsewhere, would call none of them.
    """
    return bool(module._forward_hooks)


def undo_compile(module: nn.Module) -> None:
    """Take `module.compile()` back: it keeps its compiled call in `_compiled_call_impl`, where None means eager."""
    module._compiled_call_impl = None


def skip_step_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Let the next steps of a fused optimizer change nothing where `bad` () is 1.0, without asking the device.

    The attribute `found_inf` is meant for the gradient scaler: fused kernels read it with `getattr(self, "found_inf",
    None)` and leave weights, moments and the step count alone.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]
