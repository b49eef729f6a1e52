"""Divide weights, gradients and optimizer moments among devices (`device.strategy=fsdp`) by torch's `fully_shard`, FSDP2.

The weights of a block are gathered before the block is computed, and freed afterwards; the weights of the next block are
gathered in the meantime. The embeddings, the last norm and the head are treated together, like one more block. Every parameter
becomes a `DTensor`, which has the shape of the whole parameter and holds this process's rows of it. Zhao et al. 2023
(arXiv:2304.11277) describe the method, FSDP; `fully_shard` is its successor, which has one DTensor for each parameter.

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
    """Return a model with whole weights: a sharded model is copied to the CPU, and any other model is returned as it is.

    In the copy, LoRA is merged into the weights. All processes must call this function together.
    """
    if not isinstance(model, FSDPModule):
        return model
    copied = GPT(model.config)
    copied.load_state_dict(bare_names(whole_state(model.state_dict())))
    return copied


class FullyShardedStrategy(DDPStrategy):
    """Start the processes as Lightning's strategy for DDP does, but divide the weights of the model among the processes."""

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
        """Return the state dict of the module with whole weights, as if there were a single process."""
        state: dict[str, Any] = whole_state(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state dict with whole tensors, as if there were a single process."""
        state: dict[str, Any] = whole_state(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load the optimizer's moments from a checkpoint; each process keeps its shards of them.

        The weights need no such method, because they are loaded before they are sharded.
        """
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            for number, parameter in zip(numbers, parameters, strict=True):
                values = state["state"].get(number, {})
                for name, value in values.items():
                    if torch.is_tensor(value) and value.shape == parameter.shape:  # not the step count
                        values[name] = shard_like(value, parameter)
            optimizer.load_state_dict(state)
