"""Divide weights, gradients and moments among several devices (`device.strategy=fsdp`) by torch's `fully_shard`, FSDP2.

Each block is a unit: its weights are gathered before it is computed and freed after it, while the next block's travel. The
embeddings, the last norm and the head are one more unit. Every parameter becomes a `DTensor`, which has the shape of the whole
parameter and holds this process's rows of it (Zhao et al. 2023, arXiv:2304.11277; the successor with one DTensor for each
parameter: torch.distributed.fsdp.fully_shard).

Checkpoints contain whole tensors, so that any number of processes can continue from them.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from positron.model.gpt import GPT
from positron.run.load import bare_names
from positron.training.sharded_tensors import shard_like, whole_state


def shard(model: GPT, device_type: str, world_size: int) -> None:
    """Divide the parameters of a model among all processes, in place. All processes must hold the same weights."""
    mesh = init_device_mesh(device_type, (world_size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_model(model: GPT) -> GPT:
    """Return the model itself, or if it is sharded, a copy with whole weights on the CPU, into which LoRA is merged.

    All processes must call it.
    """
    if not isinstance(model, FSDPModule):
        return model
    copied = GPT(model.config)
    copied.load_state_dict(bare_names(whole_state(model.state_dict())))
    return copied


class FullyShardedStrategy(DDPStrategy):
    """Start the processes as DDP does, and train a sharded model in them."""

    def _setup_model(self, model: nn.Module) -> Any:
        """Shard the GPT of a TrainingModule instead of wrapping the module in DistributedDataParallel."""
        gpt = model.model
        assert isinstance(gpt, GPT)
        for tensor in (*gpt.parameters(), *gpt.buffers()):  # the weights of rank 0 count, as with DDP
            torch.distributed.broadcast(tensor.detach(), 0)
        shard(gpt, self.root_device.type, self.world_size)
        return model

    def _register_ddp_hooks(self) -> None:
        """Register nothing, because there is no DistributedDataParallel."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights, as one process has them."""
        state: dict[str, Any] = whole_state(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer, as one process has it."""
        state: dict[str, Any] = whole_state(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Give each process its part of the moments of a checkpoint. The weights are loaded before they are sharded."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            for number, parameter in zip(numbers, parameters, strict=True):
                values = state["state"].get(number, {})
                for name, value in values.items():
                    if value.shape == parameter.shape:  # not the step count
                        values[name] = shard_like(value, parameter)
            optimizer.load_state_dict(state)
