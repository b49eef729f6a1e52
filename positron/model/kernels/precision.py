"""Choose the dtypes of matrix products and of sums."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which x is multiplied: the dtype of autocast if autocast is on, else the dtype of x.

    float64 stays float64 even with autocast.
    """
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype for long sums on a device: float64, or float32 on Apple's GPU, which has no float64."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to compute sums and functions of numbers of type `dtype`: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)
