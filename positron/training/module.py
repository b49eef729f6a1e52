"""The training loop's step: one Lightning batch is one optimizer step, cut into micro-batches here.

Lightning's own accumulation counts micro-batches and takes means of means; with a whole step in `training_step`, its
step counter is ours, every interval means optimizer steps, and the gradient is exactly that of the big batch.
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
from torch import Tensor

from positron.config import IGNORE, OptimizerConfig, ScheduleConfig
from positron.model.gpt import GPT, documents_of
from positron.training.optim.groups import build_optimizer, clip_gradients, set_lr
from positron.training.optim.schedule import lr_at


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """All randomness of a step (dropout) is a pure function of (seed, step, rank), like its data (law 3).

    So there is no generator state to save: a run resumed on another number of devices or after any kind of stop draws
    what the uninterrupted run drew.
    """
    value = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    # torch.manual_seed takes half a millisecond: it writes down a traceback for each kind of device that is not there
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


class PretrainModule(L.LightningModule):
    """GPT, its loss, its optimizer. `metrics` holds what is known of the step just done; callbacks add and read."""

    token_bytes: Tensor

    def __init__(
        self,
        model: GPT,
        token_bytes: np.ndarray,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        horizon: int,
        grad_clip: float,
        micro_batch_size: int,
        max_bad_steps: int,
        seed: int,
        document_start: int | None,
        identity: dict[str, Any],
    ) -> None:
        """`identity` goes into every checkpoint: the tokenizer's hash and the architecture.

        `document_start`: the id that begins documents, where they are not to see each other; None where they may.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.register_buffer("token_bytes", torch.from_numpy(token_bytes).float(), persistent=False)
        self.optimizer_config, self.schedule, self.horizon = optimizer, schedule, horizon
        self.grad_clip, self.micro_batch_size, self.max_bad_steps = grad_clip, micro_batch_size, max_bad_steps
        self.seed, self.document_start, self.identity = seed, document_start, identity
        self.metrics: dict[str, float] = {}
        self.before_micro_batch: Callable[[], None] = lambda: None  # may raise to leave a step that has not counted
        self.updating = False  # True while weights are half old, half new: not a moment to save them
        self.loss = torch.zeros(())  # nats per token of the last step, on this rank's device
        self.grad_norm = torch.zeros(())
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64)
        self.bad_steps = torch.zeros((), dtype=torch.int64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # fp16's gradient scaler unscales before clipping, which a fused step would do after it
        fused = self.trainer.precision != "16-mixed" and self.device.type in ("cpu", "cuda", "mps")
        return build_optimizer(self.model.named_parameters(), self.optimizer_config, fused=fused)

    def on_train_start(self) -> None:
        """Move the counters to the device."""
        self.bad_in_a_row = self.bad_in_a_row.to(self.device)
        self.bad_steps = self.bad_steps.to(self.device)

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def lr(self, step: int) -> float:
        return lr_at(step, self.horizon, peak=self.optimizer_config.lr, schedule=self.schedule)

    def micro_batches(self, batch: Any) -> list[tuple[Tensor, Tensor]]:
        """x, y (B, T), this rank's rows of the batch, cut into what fits at a time."""
        x, y = batch
        return list(zip(x.split(self.micro_batch_size), y.split(self.micro_batch_size), strict=True))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the batch."""
        self.metrics = {}
        step = self.global_step + 1
        seed_step(self.seed, step, self.global_rank, self.device)
        optimizer = self._optimizer()
        set_lr(optimizer.param_groups, self.lr(step))
        self.loss = self._accumulate(self.micro_batches(batch))
        self.updating = True
        optimizer.step()
        self.updating = False
        optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Backward through all micro-batches: gradients of (sum of losses) / (targets on all ranks). Returns the loss.

        DDP and FSDP average gradients over ranks, which the factor `world` undoes.
        """
        world = self.trainer.world_size
        targets = torch.stack([(y != IGNORE).sum() for _, y in parts]).sum()
        if world > 1:
            targets = self.trainer.strategy.reduce(targets, reduce_op="sum")
        total = torch.zeros((), device=self.device)
        for i, (part_x, part_y) in enumerate(parts):
            self.before_micro_batch()
            with self._synchronise(i == len(parts) - 1):
                loss = self.model(part_x, part_y, self.documents(part_x)) * (world / targets)
                self.manual_backward(loss)
            total += loss.detach()
        return total

    def documents(self, x: Tensor) -> Tensor | None:
        """(B, T) the number of each token's document in its window, where documents are kept apart."""
        return documents_of(x, self.document_start)

    def _synchronise(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients travel between ranks once a step, with its last micro-batch."""
        wrapped: Any = self.trainer.strategy.model
        return contextlib.nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip, and turn a step with a NaN or infinite gradient into one that changes nothing.

        Called by Lightning when gradients are complete and unscaled. On fused optimizers no value is brought to the
        host: `found_inf` makes their kernels leave weights and moments alone.
        """
        scaled = self.trainer.precision == "16-mixed"
        wrapped: Any = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP: the norm spans all ranks' shards
            self.grad_norm = wrapped.clip_grad_norm_(self.grad_clip or float("inf"))
        else:
            self.grad_norm = clip_gradients(list(self.model.parameters()), self.grad_clip)
        # fp16's scaler meets infinite gradients by design, skips those steps itself and lowers its scale
        bad = ~torch.isfinite(self.loss if scaled else self.grad_norm)
        self.bad_in_a_row = (self.bad_in_a_row + 1) * bad
        self.bad_steps = self.bad_steps + bad
        if not scaled and optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        elif bad.item():
            optimizer.zero_grad(set_to_none=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """(nats, bytes, tokens) summed over the targets of x, y (B, T), as float64."""
        x, y = batch
        scored = y != IGNORE
        nats = self.model(x, y, self.documents(x))
        nats = nats.double() if y.device.type != "mps" else nats
        count = self.token_bytes[y.clamp(min=0)].to(nats.dtype).mul(scored).sum()
        return torch.stack([nats, count, scored.sum().to(nats.dtype)])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counters = {"bad_steps": int(self.bad_steps), "bad_in_a_row": int(self.bad_in_a_row)}
        checkpoint |= {**counters, **self.identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The streak of bad steps is counted across stops: a run cannot escape divergence by being started again."""
        self.bad_steps = torch.tensor(checkpoint["bad_steps"])
        self.bad_in_a_row = torch.tensor(checkpoint.get("bad_in_a_row", 0))  # runs of before 2026-11 lack it


class SFTModule(PretrainModule):
    """The same step on conversations: a batch is a list of micro-batches of unequal widths, cut where they were read."""

    def micro_batches(self, batch: Any) -> list[tuple[Tensor, Tensor]]:
        """[(x, y), ...], each (rows, T) with T of its own."""
        return list(batch)
