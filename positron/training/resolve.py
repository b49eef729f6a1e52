"""Replace `auto` by values for a model and a machine: batch size, micro-batch, number of steps and precision.

The values are chosen once per run. A run that continues keeps them, with one exception: it continues in fp32 if its precision
is slow on the CPU of its new machine.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from positron.config import BATCH_TOKENS, GPTConfig, Precision, RunConfig
from positron.model.gpt import GPT, document_numbers
from positron.run.facts import Resolved
from positron.system.errors import UserError
from positron.system.formatting import USUAL_TOKENS_PER_PARAMETER, counted, parameter_count, tokens_per_parameter
from positron.training.device import (
    SLOWDOWN,
    Machine,
    choose_micro_batch,
    precision_named,
    release_memory,
    speed_on_cpu,
)
from positron.training.resume import Start
from positron.training.timing import faster_precision

logger = logging.getLogger(__name__)

# Returns the loss of a model for token ids (B, T); an example is `next_token_loss`.
TrialLoss = Callable[[GPT, Tensor], Tensor]

MIN_STEPS, MIN_BATCH_TOKENS = (
    2_000,
    1_024,
)  # small models get smaller batches, because a run needs enough optimizer steps


@dataclass(frozen=True)
class Plan:
    """Hold how a run is trained on this machine: its sizes and numbers of steps, in which values have replaced `auto`."""

    machine: Machine
    gpt: GPTConfig
    world_size: int  # number of processes that train the run
    batch_size: int  # sequences per optimizer step, on all devices together
    batch_tokens: int  # tokens per optimizer step, on all devices together
    micro_batch_size: int  # sequences per forward pass of one device
    horizon: int  # optimizer steps of the whole run
    last_step: int  # the step at which this process stops; less than `horizon` if train.stop_at= says so

    @property
    def micro_tokens(self) -> int:
        """Return the number of tokens per forward pass of one device."""
        return self.micro_batch_size * self.batch_tokens // self.batch_size

    def resolved(self) -> Resolved:
        """Return the values of the settings that can be `auto`, such as the batch size, for the record in run.json."""
        return Resolved(
            batch_tokens=self.batch_tokens,
            micro_batch_size=self.micro_batch_size,
            max_steps=self.horizon,
            accelerator=self.machine.accelerator,
            precision=self.machine.precision,
            threads=torch.get_num_threads(),
        )


def make_plan(
    config: RunConfig,
    model: GPT,
    machine: Machine,
    start: Start,
    auto_steps: Callable[[int], int] | None = None,
    trial_loss: TrialLoss | None = None,
) -> Plan:
    """Return the plan of a run, in which numbers replace the settings that are `auto`.

    A setting with a value keeps it. For a setting that is `auto`, a run that continues keeps the value with which it was
    started (`start.resolved`), and a new run gets a default. `auto_steps` computes the default number of steps from the batch
    size in sequences. Without it, the default is the number of steps that read 20 tokens per parameter.

    On a GPU, steps are tried to find a micro-batch that fits the memory. `trial_loss` is their loss, which must need as much
    memory as the loss of the training. Without it, it is the loss of pretraining with the settings `config.data`.

    Raises UserError if the batch cannot be divided among the devices, if a micro-batch does not fit into the memory, or if
    activation checkpointing and dropout are used together on MPS.
    """
    gpt, train, known = model.config, config.train, start.resolved
    machine = _with_usable_precision(config.precision.dtype, machine, None if known is None else known.precision)

    def settle(asked: int | str, at_start: int | None, otherwise: int) -> int:
        return int(asked) if asked != "auto" else otherwise if at_start is None else at_start

    if machine.checkpoint_activations and machine.accelerator == "mps" and gpt.dropout:
        # for the second forward pass, torch restores the state of the random generators of CPU and CUDA, but not of MPS
        raise UserError(
            "device.checkpoint_activations=true computes wrong gradients with dropout on MPS: give model.dropout=0, or leave "
            "device.checkpoint_activations out"
        )
    target_tokens = settle(
        train.batch_tokens, None if known is None else known.batch_tokens, default_batch_tokens(gpt, machine)
    )
    world = config.device.processes
    window = config.window_tokens
    batch_size = max(1, target_tokens // window)
    if batch_size % world:
        remedy = f"give train.batch_tokens={-(-batch_size // world) * world * window}"
        if start.is_own:  # a run keeps its batch
            remedy = (
                f"continue this run on a number of devices that divides {batch_size}, or {remedy} and another name="
            )
        raise UserError(
            f"a batch of {counted(batch_size, 'sequence')} cannot be divided equally among {world} devices: {remedy}"
        )
    batch_tokens = batch_size * window
    if train.batch_tokens != "auto" and target_tokens < batch_tokens:
        key = config.data.window_key(gpt.context_length)
        logger.warning(
            f"train.batch_tokens={target_tokens} is less than a sequence of {window} tokens ({key}=): each step trains on one "
            "sequence"
        )
    enough = auto_steps(batch_size) if auto_steps else -(-USUAL_TOKENS_PER_PARAMETER * gpt.n_params() // batch_tokens)
    horizon = settle(train.max_steps, None if known is None else known.max_steps, enough)
    trial_loss = trial_loss or functools.partial(next_token_loss, is_masked=config.data.document_mask)
    rows = batch_size // world
    try_step = functools.partial(
        _try_step, model=model, machine=machine, trial_loss=trial_loss, world_size=world, window=window
    )
    shape = dataclasses.replace(gpt, context_length=window, window=gpt.window or gpt.context_length)
    if known is None or train.micro_batch_size != "auto":
        micro = choose_micro_batch(shape, machine, rows, train.micro_batch_size, try_step)
    elif known.accelerator != machine.accelerator:
        micro = choose_micro_batch(shape, machine, rows, known.micro_batch_size, try_step)
    else:
        micro = min(known.micro_batch_size, rows)  # it has fitted before; the estimate of its memory may be too high
    last_step = min(horizon, train.stop_at or horizon)
    if config.precision.dtype == "auto" and known is None and world == 1:
        machine, reason = faster_precision(model, machine, micro * (window // gpt.context_length))
        if reason:
            logger.info(reason)
    return Plan(machine, gpt, world, batch_size, batch_tokens, micro, horizon, last_step)


def log_plan(plan: Plan, batch: str | None = None) -> None:
    """Log the size of the model, the number of steps and the batch of a step.

    `batch`: a text that describes the batch and the micro-batches, for example "14 pairs of answers (7 pairs at a time)". If it
    is None, `plan.batch_tokens` is logged as the number of tokens of a batch. This number is correct for full windows of text,
    but too large for padded rows; therefore a caller with padded rows must give `batch`.
    """
    gpt, size = plan.gpt, plan.gpt.n_params()
    if batch is None:
        batch = (
            f"{counted(plan.batch_tokens, 'token')} ({counted(plan.micro_batch_size, 'sequence')} at a time), "
            f"{tokens_per_parameter(plan.horizon * plan.batch_tokens, size)}"
        )
    logger.info(
        f"{parameter_count(size)}, vocabulary {gpt.vocab_size:,}, context {gpt.context_length}; "
        f"{counted(plan.horizon, 'step')} of {batch}"
        + (f"; stopping at step {plan.last_step:,}" if plan.last_step < plan.horizon else "")
    )


def _with_usable_precision(asked: Precision | Literal["auto"], machine: Machine, at_start: str | None) -> Machine:
    """Return `machine` with the precision of the training.

    `at_start` is the precision in which the run started, or None for a new run.

    If `asked` is auto, a new run keeps the precision of `machine`, and a run that continues gets `at_start`. If `at_start` is
    slow on this CPU, the run gets fp32 instead: a run that started in bf16 on another machine may continue on a CPU whose
    matrix products take ten times as long in bf16 as in fp32. If `asked` is a slow precision, it is kept, and a warning is
    logged.
    """
    chosen = machine.precision  # if `asked` is auto, a precision that is fast on this machine
    if asked == "auto" and at_start is not None:
        machine = dataclasses.replace(machine, precision=precision_named(at_start))
    if machine.accelerator != "cpu" or machine.precision == "fp32" or (asked == "auto" and machine.precision == chosen):
        return machine
    slower = 1 / speed_on_cpu(machine.precision)
    comparison = f"matrix products in {machine.precision} take {slower:.0f} times as long as in fp32 on this machine"
    if slower < SLOWDOWN:
        if asked == "auto":
            logger.info(f"continuing in {machine.precision}, in which the run started")
    elif asked == "auto":
        logger.warning(f"{comparison}: the run, which started in {machine.precision}, continues in fp32")
        machine = dataclasses.replace(machine, precision="fp32")
    else:
        logger.warning(
            f"{comparison}: " + ("give precision=fp32" if at_start is None else "a new run would be faster in fp32")
        )
    return machine


def too_long_warmup(warmup_steps: int, horizon: int, *, is_own: bool) -> str:
    """Return the warning for a run whose warmup is not shorter than the run.

    For a new run it suggests a warmup of a tenth of the steps. `is_own` tells whether an existing run continues; its
    warmup cannot change, so the warning suggests more steps.
    """
    if is_own:
        remedy = "give train.extend=true and a larger train.max_steps="
    else:
        remedy = (
            f"start again under another name= with schedule.warmup_steps={horizon // 10}, or a larger train.max_steps="
        )
    length, rise = (
        ("longer than", "never reaches its peak") if warmup_steps > horizon else ("as long as", "never falls")
    )
    return (
        f"the warmup (schedule.warmup_steps={warmup_steps}) is {length} the run ({counted(horizon, 'step')}): the learning "
        f"rate {rise}; {remedy}"
    )


def default_batch_tokens(gpt: GPTConfig, machine: Machine) -> int:
    """Return the default number of tokens per optimizer step.

    It is the number that BATCH_TOKENS gives for the accelerator. For a small model this number is halved until a run that reads
    20 tokens per parameter has at least 2,000 steps (MIN_STEPS), but not below 1,024 tokens (MIN_BATCH_TOKENS).
    """
    batch = BATCH_TOKENS[machine.accelerator]
    while batch // 2 >= MIN_BATCH_TOKENS and batch * MIN_STEPS > USUAL_TOKENS_PER_PARAMETER * gpt.n_params():
        batch //= 2
    return batch


def next_token_loss(model: GPT, idx: Tensor, *, is_masked: bool) -> Tensor:
    """Return the summed loss of token ids (B, T) as targets of themselves, which needs as much memory as that of a text.

    `is_masked`: attention stays inside documents, which needs a mask (B, 1, T, T).
    """
    total: Tensor = model(idx, idx, document_numbers(idx, 0 if is_masked else None))
    return total


def _try_step(rows: int, *, model: GPT, machine: Machine, trial_loss: TrialLoss, world_size: int, window: int) -> None:
    """Run the forward and backward pass of `rows` rows of `window` tokens. Raises torch's error if they do not fit the memory.

    The memory also holds two numbers in fp32 for each weight that is trained, as large as the moments of AdamW, which do not
    exist yet, and with several processes (`world_size`) a third one, as large as DDP's copy of the gradients. The gradients
    exist from the beginning, as in each micro-batch of a step but the first.
    """
    model.to(machine.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = (2 if world_size == 1 else 3) * sum(parameter.numel() for parameter in trained)
    reserved = torch.empty(numbers, dtype=torch.float32, device=machine.device)
    idx = torch.zeros(rows, window, dtype=torch.int64, device=machine.device)
    try:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        with machine.autocast():
            loss = trial_loss(model, idx)
        loss.backward()
    finally:
        del reserved
        model.zero_grad(set_to_none=True)
        release_memory(machine.accelerator)
