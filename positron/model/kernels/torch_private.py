"""Every undocumented symbol of torch that Positron uses, with the behaviour that it relies on.

A version of torch may change or remove any of them without notice; tests/model/test_torch_private.py checks the signature
of each and its result for a small input. Checked with torch 2.13.0. NumPy and Lightning are used through their public
interfaces only, and numpy_ref needs none of this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPILED_MARK = "_orig_mod."  # torch.compile(module) puts this before the names of the module's parameters


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

    `aten._weight_int8pack_mm` checks no bounds: if `in` is not a multiple of 32, it reads beyond the end of the rows, which
    gives noise or a crash. The caller must make sure that it is.
    """
    y: Tensor = torch.ops.aten._weight_int8pack_mm(x, q, scale)
    return y


def has_forward_hooks(module: nn.Module) -> bool:
    """Tell whether the module has hooks of `register_forward_hook` (`Module._forward_hooks`, a dictionary).

    They are not called if the module is bypassed, that is, if its weights are multiplied elsewhere.
    """
    return bool(module._forward_hooks)


def undo_compile(module: nn.Module) -> None:
    """Undo `module.compile()`, which keeps its compiled call in `_compiled_call_impl`; None means eager."""
    module._compiled_call_impl = None


def skip_step_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next steps of a fused optimizer change nothing if `bad` () is 1.0, without waiting for the device.

    The attribute `found_inf` is meant for the gradient scaler: fused kernels read it with `getattr(self, "found_inf",
    None)` and then leave weights, moments and the step count unchanged.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]
