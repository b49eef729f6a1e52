"""Measure the memory of a process that trains a model alone or with others by FSDP2, and compare it with computed values.

Each process trains on its own sequences, two micro-batches of one sequence of 256 tokens in a step, so that the activations are
the same for any number of processes. The processes exchange by gloo. Three sizes are measured in process 0:

- *held*: its weights and moments between two steps
- *tensors*: the largest sum of all tensors during a step, from torch's record of every allocation
- *process*: the peak memory of the process minus what it had before it built the model, which includes the buffers of gloo
  and what the allocator cannot use again
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.profiler import ProfilerActivity, profile

from positron.config import GPTConfig, OptimizerConfig
from positron.model.gpt import GPT
from positron.system.children import PipeEnd
from positron.training.allocator import tune_allocator
from positron.training.device import peak_memory
from positron.training.optim.groups import build_optimizer, clip_gradients
from positron.training.sharded_tensors import own_part
from positron.training.sharding import shard
from scripts.bench import load_average
from scripts.bench.scale import PROCESS, Point, shape
from scripts.bench.scale_on_paper import Setup
from scripts.bench.scale_report import markdown

SHAPES = [shape(256, 10), shape(384, 16)]
PROCESSES = [1, 2, 8]
MICRO_BATCHES = 2


def step(model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Take a step on random tokens, in bf16."""
    for i in range(MICRO_BATCHES):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(i == MICRO_BATCHES - 1)
        x, y = torch.randint(model.config.vocab_size, (2, 1, model.config.context_length))
        with torch.autocast("cpu", torch.bfloat16):
            (model(x, y) / x.numel()).backward()
    clip_gradients(list(model.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def build(gpt: GPTConfig, processes: int) -> tuple[GPT, torch.optim.Optimizer]:
    """Return a model, which is sharded if there are several processes, and its optimizer."""
    model = GPT(gpt)
    if processes > 1:
        shard(model, "cpu", processes)
    return model, build_optimizer(model.named_parameters(), OptimizerConfig(), fused=True)


def train(gpt: GPTConfig, processes: int, folder: str, rank: int, pipe: PipeEnd) -> None:
    """Take three steps; process 0 sends the bytes held, the largest sum of tensors and the peak of the process to `pipe`."""
    tune_allocator()
    torch.set_num_threads(1)
    if processes > 1:
        torch.distributed.init_process_group("gloo", f"{folder}/meet", rank=rank, world_size=processes)
    inherited = peak_memory(torch.device("cpu"))
    model, optimizer = build(gpt, processes)
    for _ in range(2):
        step(model, optimizer)
    process = peak_memory(torch.device("cpu")) - inherited  # before the profiler takes memory
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    held = sum(own_part(tensor).nbytes for tensor in itertools.chain(model.parameters(), moments))
    largest = largest_sum_of_step(model, optimizer)
    if rank == 0:
        pipe.send((held, held + largest, process))
    if processes > 1:
        torch.distributed.destroy_process_group()


def largest_sum_of_step(model: GPT, optimizer: torch.optim.Optimizer) -> int:
    """Take a step; return the largest number of bytes that it allocated and that were not yet freed at any time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(model, optimizer)
    return largest_sum(record)


def largest_sum(record: profile) -> int:
    """Return the largest number of bytes that were allocated and not yet freed at any time of the record."""
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events: list[Any] = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(int(event.nbytes()) for event in events))  # bytes that are freed are negative


def measure(gpt: GPTConfig, processes: int) -> tuple[int, int, int]:
    """Run `train` in new processes; return the three numbers of bytes that process 0 sends.

    Raises SystemExit if the processes end without a result.
    """
    ours, theirs = PROCESS.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).as_uri()
        ranks = [PROCESS.Process(target=train, args=(gpt, processes, place, r, theirs)) for r in range(processes)]
        for process in ranks:
            process.start()
        theirs.close()
        try:
            result: tuple[int, int, int] = ours.recv()
        except EOFError:
            raise SystemExit(
                f"the measurement with {processes} processes ended without a result: the error is above or, if there is "
                "none, the system killed a process, for example because the memory was full"
            ) from None
        finally:
            for process in ranks:
                process.join()
    return result


def computed(gpt: GPTConfig, processes: int) -> tuple[float, float]:
    """Return the computed bytes that a process holds between two steps, and the largest sum of its tensors during a step.

    It holds its share of the weights and two moments in fp32. docs/SCALE.md explains the formulas of the sum.
    """
    n, strategy = gpt.n_params(), "fsdp" if processes > 1 else "none"
    state = Setup(gpt, gpt.context_length * processes, processes, strategy, False).state_bytes()
    activations_and_loss = Point("parameters", n, gpt).computed_bytes() - 16 * n - 2 * gpt.matmul_params()
    return 12 * n / processes, state + activations_and_loss


def main() -> None:
    print(f"load average {load_average()}", flush=True)
    lines = []
    for gpt in SHAPES:
        for processes in PROCESSES:
            (held, tensors), measured_bytes = computed(gpt, processes), measure(gpt, processes)
            values = [f"{value / 1e6:,.1f}" for value in (held, measured_bytes[0], tensors, *measured_bytes[1:])]
            lines.append([f"{gpt.n_params() / 1e6:.1f}M", str(processes), *values])
            print(f"  {lines[-1]}", flush=True)
    head = [
        "parameters",
        "processes",
        "held, computed MB",
        "held, MB",
        "tensors, computed MB",
        "tensors, MB",
        "process, MB",
    ]
    print(markdown(head, lines))


if __name__ == "__main__":
    main()
