"""Measure the peak rate of matrix products on this machine, and find the faster precision for a model."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch

from positron.config import GPTConfig
from positron.model.gpt import GPT
from positron.model.kernels.loss import CHUNK_VALUES
from positron.system.formatting import counted
from positron.training.device import DTYPES, Machine, Shape, matmul_flops

MAX_TIMED_STEP = 0.6  # seconds of a micro-batch in fp32; for slower models the speed of matrix products alone decides
TIMING_SECONDS = 0.6  # seconds for which the two precisions are compared
# fp32 is chosen if a step in bf16 takes more than MIN_RATIO times as long. If the two times are closer, another measurement may
# give the opposite order. So without this margin, runs with the same settings would often differ in their precision.
MIN_RATIO = 1.1


class MatmulPeak:
    """Measure and keep the peak rate of matrix products, in FLOP/s of all devices of a run together.

    The rate is kept as the attribute `flops`. Another program may slow down a measurement. Therefore `look` measures again,
    for 0.05 s, and the highest rate is kept.
    """

    def __init__(self, gpt: GPTConfig, machine: Machine, micro_tokens: int, world_size: int) -> None:
        self.machine, self.world_size = machine, world_size
        self.flops = 0.0
        logits = max(1, min(micro_tokens, CHUNK_VALUES // gpt.vocab_size))
        width, ff = gpt.d_model, gpt.ff_width
        self._shapes: list[Shape] = [
            (micro_tokens, width, ff),
            (micro_tokens, ff, width),
            (logits, width, gpt.vocab_size),
            (1024, 1024, 1024),
        ]
        for _ in range(3):
            self.look()

    def look(self) -> None:
        """Measure the rate of matrix products in FLOP/s, and keep it in `flops` if it is the highest so far.

        On a GPU, only the first call measures, because the training fills the memory of the GPU later.
        """
        if self.machine.accelerator != "cpu" and self.flops:
            return
        dtype = DTYPES[self.machine.precision]
        shapes = self._shapes if self.machine.accelerator == "cpu" else None
        flops = matmul_flops(self.machine.device, dtype, seconds=0.05, shapes=shapes)
        self.flops = max(self.flops, flops * self.world_size)

    def share(self, flops: float) -> float:
        """Return `flops` (the FLOP/s of a training step) divided by the peak, after raising the peak to at least `flops`."""
        self.flops = max(self.flops, flops)
        return flops / self.flops


def faster_precision(model: GPT, machine: Machine, rows: int) -> tuple[Machine, str]:
    """Return `machine` with the precision that suits this model, bf16 or fp32, and a message with the times of both.

    bf16 makes large matrix products faster. A step of a small model takes most of its time for conversions and other
    operators, so it can be slower in bf16 than in fp32. The two precisions take turns on one micro-batch of `rows` sequences,
    and their fastest steps are compared. fp32 is chosen if it is more than 10 % faster (MIN_RATIO).

    The times are measured only if `machine` is a CPU with the precision bf16, and if a step of `rows` sequences in fp32 takes
    at most 0.6 seconds by an estimate (MAX_TIMED_STEP). Otherwise the result is `machine` itself and an empty message.
    """
    flops = model.config.flops_per_token() * rows * model.config.context_length
    if machine.accelerator != "cpu" or machine.precision != "bf16":
        return machine, ""
    if flops > MAX_TIMED_STEP * matmul_flops(machine.device, torch.float32, seconds=0.05):
        return machine, ""
    idx = torch.zeros(rows, model.config.context_length, dtype=torch.int64)
    machines = {name: dataclasses.replace(machine, precision=name) for name in ("bf16", "fp32")}
    fastest = dict.fromkeys(machines, float("inf"))
    started, rounds = time.perf_counter(), 0
    while rounds < 3 or (time.perf_counter() - started < TIMING_SECONDS and rounds < 50):
        for name, candidate in machines.items():
            start = time.perf_counter()
            with candidate.autocast():
                loss = model(idx, idx)
            loss.backward()
            model.zero_grad(set_to_none=True)
            if rounds:  # the first round also creates kernels and buffers
                fastest[name] = min(fastest[name], time.perf_counter() - start)
        rounds += 1
    chosen = "fp32" if fastest["bf16"] > MIN_RATIO * fastest["fp32"] else "bf16"
    times = ", ".join(f"{1000 * seconds:.1f} ms in {name}" for name, seconds in fastest.items())
    return machines[chosen], f"this run computes in {chosen}: a step of {counted(rows, 'sequence')} takes {times}"


@dataclass(frozen=True)
class SpeedFacts:
    """Hold what is needed to compute the model FLOPs utilisation (MFU) of a run from its tokens per second."""

    flops_per_token: float
    peak: MatmulPeak

    def mfu(self, tokens_per_s: float) -> float:
        """Return the model FLOPs utilisation (MFU): the training's FLOP/s divided by the peak FLOP/s of its devices."""
        return self.peak.share(tokens_per_s * self.flops_per_token)
