"""Define the optimizer step: a Lightning batch is a list of micro-batches whose gradients are added up.

Lightning's own gradient accumulation counts micro-batches as steps, and averages the means of micro-batches, which is wrong
if they have different numbers of targets. Here a call of `training_step` is a whole optimizer step. Therefore Lightning's step
counter and all intervals count optimizer steps, and the gradient equals the gradient of the whole batch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule

from positron.config import OptimizerConfig, ScheduleConfig
from positron.model.gpt import GPT
from positron.model.kernels.torch_private import loss_scale, skip_step_if
from positron.run.checkpoint import WITHOUT_MEAN
from positron.training.averaging import WeightAverage
from positron.training.objective.base import Objective, Part
from positron.training.optim.groups import build_optimizer, clip_gradients, set_lr
from positron.training.optim.schedule import lr_at


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed all random generators, so that the random numbers of a step (dropout) depend only on seed, step and rank.

    A run that continues from a checkpoint therefore draws the same numbers as an uninterrupted run, without a saved state of
    the generators. The choice of a step's data follows the same rule (invariant 3 of docs/ARCHITECTURE.md).
    """
    value = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    # torch.manual_seed would take half a millisecond, because it records a traceback for each kind of device that is missing
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


class TrainingModule(L.LightningModule):
    """Train a GPT on an objective, with one optimizer step per Lightning batch.

    `metrics` contains the measured values of the last step; callbacks add values to it and read it.
    """

    token_bytes: Tensor  # (V,) number of bytes of each token's text, on the device of the model

    def __init__(
        self,
        model: GPT,
        objective: Objective,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        horizon: int,
        grad_clip: float,
        max_bad_steps: int,
        seed: int,
        identity: dict[str, Any],
    ) -> None:
        """Store the model, the objective (data and loss) and the settings.

        `horizon`: the planned number of optimizer steps, for the schedule of the learning rate. `grad_clip`: the largest norm
        of the gradient; 0: no clipping. `max_bad_steps`: the run has diverged after this number of steps in a row whose loss or
        gradient is NaN or infinite. `identity` (tokenizer hash and architecture) is written into every checkpoint.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model, self.objective = model, objective
        self.register_buffer("token_bytes", torch.from_numpy(objective.token_bytes).float(), persistent=False)
        self.optimizer_config, self.schedule, self.horizon = optimizer, schedule, horizon
        self.average = WeightAverage(self, share=schedule.average_share, horizon=horizon)
        self.grad_clip, self.max_bad_steps = grad_clip, max_bad_steps
        self.seed, self.identity = seed, identity
        self.metrics: dict[str, float] = {}
        self.before_micro_batch: Callable[[], None] = lambda: None  # may raise an error to give up the step in progress
        self.updating = False  # True while the optimizer changes the weights, which must not be saved then
        # input positions of the last step's micro-batches on all ranks, with padding; on several ranks a tensor on the device
        self.tokens: int | Tensor = 0
        self.loss = torch.zeros(())  # loss of the last step on all ranks (see `_accumulate`), on the device
        self.grad_norm = torch.zeros(())
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64)
        self.longest_bad_streak = torch.zeros((), dtype=torch.int64)  # largest value of bad_in_a_row in this process
        self.bad_steps = torch.zeros((), dtype=torch.int64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer; except in fp16, AdamW is fused, so that one kernel updates all parameters."""
        precision = self.trainer.precision
        # in fp16, gradients must be unscaled before they are clipped, but a fused step would unscale them afterwards
        fused = precision != "16-mixed"
        is_bf16 = precision == "bf16-mixed"
        return build_optimizer(self.model.named_parameters(), self.optimizer_config, fused=fused, bf16=is_bf16)

    def on_train_start(self) -> None:
        """Move the mean of the weights and the counters of bad steps (loss or gradient NaN or infinite) to the device."""
        self.average.place()
        self.bad_in_a_row = self.longest_bad_streak = self.bad_in_a_row.to(self.device)
        self.bad_steps = self.bad_steps.to(self.device)

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def lr(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 1."""
        return lr_at(step, self.horizon, peak=self.optimizer_config.lr, schedule=self.schedule)

    def training_step(self, batch: list[Part], batch_idx: int) -> None:
        """Take one optimizer step on this rank's share of the batch."""
        step = self.global_step + 1
        seed_step(self.seed, step, self.global_rank, self.device)
        optimizer = self._optimizer()
        set_lr(optimizer.param_groups, self.lr(step))
        parts = self.objective.examples(
            self.model, batch, step, self.global_rank, self.trainer.world_size, self.before_micro_batch
        )
        self.loss = self._accumulate(parts)
        self.metrics = self.objective.step_metrics()
        self.updating = True
        optimizer.step()
        self.average.update(step)
        self.updating = False
        optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, parts: list[Part]) -> Tensor:
        """Add up the gradients of all micro-batches, count the tokens of all ranks, and return the loss of the whole batch.

        A rank's loss is (sum of the losses on this rank) / (number of losses on all ranks) x (number of ranks). The last factor
        is necessary because DDP and FSDP average the gradients over the ranks. The mean of the ranks' losses is the batch's
        loss.
        """
        world = self.trainer.world_size
        self.tokens = sum(part[0].numel() for part in parts)
        count = torch.stack([self.objective.count(part) for part in parts]).sum()
        if world > 1:
            sums = torch.stack([count, count.new_tensor(self.tokens)])
            distributed.all_reduce(sums)
            count, self.tokens = sums.unbind()
        total = torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            self.before_micro_batch()
            with self._synchronise(i == len(parts) - 1):
                loss = self.objective.loss(self.model, part) * (world / count)
                self.manual_backward(loss)
            total += loss.detach()
        if world > 1:
            distributed.all_reduce(total)  # Lightning's `reduce` would wait until a GPU has computed the gradients
            total /= world
        return total

    def _synchronise(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the backward pass of a micro-batch; in it, ranks exchange gradients only if `last` is True."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        wrapped: Any = self.trainer.strategy.model
        return contextlib.nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients. If the gradient (in fp16: or the loss) is NaN or infinite, let the step change no weights.

        Lightning calls this method when the gradients are complete and, in fp16, divided by the loss scale. In fp16 an
        infinite gradient is normal while the loss scale is above 1: the gradient scaler then skips the step and lowers the
        scale, and the step does not count as bad. A fused optimizer decides on the device whether to change the weights (see
        `skip_step_if`), so that the CPU does not wait for the device.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # only in fp16
        self.grad_norm = clip_gradients(list(self.model.parameters()), self.grad_clip)
        is_bad = ~torch.isfinite(self.grad_norm)
        if scaler is not None:
            is_bad = (is_bad & (loss_scale(scaler) <= 1)) | ~torch.isfinite(self.loss)
        self.bad_in_a_row = (self.bad_in_a_row + 1) * is_bad
        self.longest_bad_streak = torch.maximum(self.longest_bad_streak, self.bad_in_a_row)
        self.bad_steps = self.bad_steps + is_bad
        if scaler is None and optimizer.defaults.get("fused"):
            skip_step_if(optimizer, is_bad.float())
        elif is_bad.item():
            optimizer.zero_grad(set_to_none=True)

    def validation_step(self, batch: Part, batch_idx: int) -> Tensor:
        """Return a tensor (3,) for a micro-batch: the summed losses in nats, and the numbers of target bytes and of targets."""
        return self.objective.score(self.model, batch, self.token_bytes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counts of bad steps, the tokenizer's hash, the architecture and the objective's state to the checkpoint.

        A bad step is one whose loss or gradient is not finite. If there is a mean of the weights, it becomes the `state_dict`,
        which all programs read, and the weights with which the training continues are added.
        """
        if weights := self.average.in_checkpoint(checkpoint["state_dict"]):
            checkpoint[WITHOUT_MEAN] = weights
        counters = {"bad_steps": int(self.bad_steps), "bad_in_a_row": int(self.bad_in_a_row)}
        checkpoint |= {**counters, **self.identity}
        if state := self.objective.state(checkpoint["global_step"]):
            checkpoint["objective"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the objective's state, the mean of the weights, and the counts of bad steps.

        A bad step is one whose loss or gradient is not finite. Because they are restored, restarts do not hide a divergence.
        """
        self.average.restore(checkpoint["state_dict"], checkpoint.get(WITHOUT_MEAN, {}), checkpoint["global_step"])
        self.objective.restore(checkpoint.get("objective", {}))
        self.bad_steps = torch.tensor(checkpoint["bad_steps"])
        self.bad_in_a_row = torch.tensor(checkpoint.get("bad_in_a_row", 0))  # missing in runs from before 2026-11
