"""Keep a running mean of the weights in the last part of a training. Validation, samples and checkpoints use this mean.

While the learning rate is above 0, the weights move around a good place in random directions. A mean over the last steps
removes most of this movement, as a learning rate that falls to 0 does. But the rate can then stay higher, so that the weights
still move on. If the rate falls in a straight line and the training ends before it reaches 0, a mean over as many steps as
would be left until 0 replaces these steps. (modded-nanogpt, track 3, "tail EMA", 2026; Izmailov et al. 2018,
arXiv:1803.05407, introduced averages of weights.)

With the time constant tau, in optimizer steps, the mean m begins to follow the weights w at step S - 4 tau of S:

    m <- m + max(1 / tau, 1 / n) (w - m)        n = 1, 2, ... counts the steps of the mean

For n <= tau this is the plain mean of n weights, and afterwards an exponential one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from positron.training.sharded_tensors import shard_like, whole

logger = logging.getLogger(__name__)

SPAN = 4  # the mean begins this number of time constants before the end; older weights would count for e^-4, 2 %


class WeightAverage:
    """Keep the running mean of the trained parameters of a module, by name. Before it begins, there is no mean.

    `share`: the time constant as a share of the `horizon`, the planned number of optimizer steps; 0: there is never a mean.
    """

    def __init__(self, module: nn.Module, *, share: float, horizon: int) -> None:
        self.time_constant = share * horizon  # optimizer steps
        self.begin = max(1, horizon - round(SPAN * self.time_constant)) if share else horizon + 1
        self.means: dict[str, Tensor] = {}
        self._module = module

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, counted from 1, to the mean, if it has begun."""
        if step < self.begin:
            return
        weights = self._weights()
        if not self.means:
            self.means = {name: weight.detach().clone() for name, weight in weights.items()}
            logger.info(f"from step {step:,} on, validation, samples and checkpoints use a mean of the last weights")
            return
        share = min(1.0, max(1 / self.time_constant, 1 / (step - self.begin + 1)))
        for name, mean in self.means.items():
            mean.lerp_(weights[name].detach(), share)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Give the module the mean as its weights during a `with` block. Without a mean, do nothing."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def in_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the mean into the `state_dict` of a checkpoint, and return the weights that it replaces.

        All processes must call this function together, because a checkpoint contains whole tensors.
        """
        means = {name: whole(mean) for name, mean in self.means.items()}
        weights = {name: state[name] for name in means}
        for name, mean in means.items():
            state[name] = mean.to(weights[name].device)
        return weights

    def restore(self, state: dict[str, Tensor], weights: dict[str, Tensor], step: int) -> None:
        """Undo `in_checkpoint` before the `state_dict` of a checkpoint of `step` is loaded, and continue with its mean.

        If the training is now longer, so that the mean begins after `step`, the mean is dropped.
        """
        means = {name: state[name] for name in weights}
        state.update(weights)
        self.means = means if step >= self.begin else {}

    def place(self) -> None:
        """Move a restored mean to the devices of the weights, and divide it among the processes as the weights are."""
        weights = self._weights()
        self.means = {
            name: shard_like(mean.to(weights[name].device, copy=True), weights[name])
            for name, mean in self.means.items()
        }

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _exchange(self) -> None:
        if not self.means:
            return
        for part in self._module.modules():
            if isinstance(part, FSDPModule):  # it keeps whole weights after a forward pass without a backward pass
                part.reshard()
        weights = self._weights()
        for name, mean in self.means.items():
            weight = weights[name].detach().clone()
            weights[name].copy_(mean)
            mean.copy_(weight)
