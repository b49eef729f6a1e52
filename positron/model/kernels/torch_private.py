"""Wrap every undocumented symbol of torch that Positron uses, and describe the behaviour that Positron relies on.

A new version of torch may change or remove any of these symbols without notice. tests/model/test_torch_private.py checks the
signature of each symbol and its result for a small input. All symbols were checked with torch 2.13.0. Positron uses no
private symbol of NumPy, and only two of Lightning: training/sharding.py overrides two private methods of DDPStrategy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPILED_MARK = "_orig_mod."  # torch.compile(module) puts this before the names of the module's parameters


def softmax_gradient(grad: Tensor, softmax: Tensor) -> Tensor:
    """Return softmax * (grad - sum(grad * softmax)) over the last axis, by torch's kernel for the gradient of softmax.

    `torch._softmax_backward_data(grad, output, dim, input_dtype)` needs one pass, with sums in fp32 for bf16. Public
    operators would need three passes over the largest tensors of attention.
    """
    gradient: Tensor = torch._softmax_backward_data(grad, softmax, -1, softmax.dtype)
    return gradient


def packs_bf16() -> bool:
    """Tell whether oneDNN can multiply bf16 matrices on this processor (`mkldnn._is_mkldnn_bf16_supported`)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_amx() -> bool:
    """Tell whether this processor has matrix tiles, as Intel's Xeons have since 2023 (`torch.cpu._is_amx_tile_supported`)."""
    return bool(torch.cpu._is_amx_tile_supported())


def packed(weight: Tensor) -> Tensor:
    """Copy a matrix (out, in) into oneDNN's blocked layout (`mkldnn._reorder_linear_weight`), for `packed_linear`.

    The result is an opaque tensor of the layout `torch._mkldnn`, which only `packed_linear` and `packed_linear_plus` can read.
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

    `in` must be a multiple of 32. `aten._weight_int8pack_mm` does not check this; for another size it reads beyond the end
    of the rows, which gives wrong results or a crash.
    """
    y: Tensor = torch.ops.aten._weight_int8pack_mm(x, q, scale)
    return y


def has_forward_hooks(module: nn.Module) -> bool:
    """Tell whether the module has hooks of `register_forward_hook` (`Module._forward_hooks`, a dictionary).

    Code that uses the weights of the module without calling the module does not run these hooks.
    """
    return bool(module._forward_hooks)


def undo_compile(module: nn.Module) -> None:
    """Undo `module.compile()`: set the attribute `_compiled_call_impl`, which holds the compiled forward pass, to None."""
    module._compiled_call_impl = None


def skip_step_if(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Set `optimizer.found_inf` to the scalar `flag`: while it is 1.0, the steps of a fused optimizer change nothing.

    torch has the attribute `found_inf` for its gradient scaler. A fused optimizer reads it by `getattr(self, "found_inf",
    None)`. The optimizer's kernels test the value on the device, so the CPU does not wait. If the value is 1.0, weights,
    moments and the step count stay unchanged.
    """
    optimizer.found_inf = flag  # type: ignore[attr-defined]


def loss_scale(scaler: torch.amp.GradScaler) -> Tensor:
    """Return the loss scale as a scalar on the device (`GradScaler._scale`), after the scaler has scaled a loss.

    The public method `get_scale` returns a number, for which the CPU waits for the device.
    """
    scale: Tensor | None = scaler._scale
    assert scale is not None
    return scale


def divides_by_loss_scale(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the step of an optimizer divides the gradients by the loss scale (`_step_supports_amp_scaling`).

    The fused optimizers of torch do. torch's gradient scaler then does not divide them before the step.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
