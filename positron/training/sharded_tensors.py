"""Convert between whole tensors and the sharded tensors of `device.strategy=fsdp`, of which each process holds some rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes, and return the whole tensor. Return any other tensor as it is.

    All processes must call this function together.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Any) -> Any:
    """Copy nested dicts and lists, and replace each sharded tensor in them by a whole tensor on the CPU.

    All processes must call this function together.
    """
    match state:
        case DTensor():
            return whole(state).cpu()
        case dict():
            return {key: whole_state(value) for key, value in state.items()}
        case list():
            return [whole_state(value) for value in state]
        case _:
            return state


def own_part(tensor: Tensor) -> Tensor:
    """Return the rows of a sharded tensor that this process holds; any other tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard `tensor` in the same way as `other`; if `other` is not sharded, return `tensor` as it is.

    All processes must hold the same whole `tensor`.
    """
    if not isinstance(other, DTensor):
        return tensor
    # src_data_rank=None: each process takes its rows from its own copy, and nothing is sent
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
