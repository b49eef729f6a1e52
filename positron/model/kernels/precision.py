"""In which dtype matrices are multiplied: autocast's, where it is on."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """float64 stays what it is: autocast, too, leaves it alone."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or float64 for float64: for sums and functions of numbers that are kept in `dtype`."""
    return torch.promote_types(dtype, torch.float32)
