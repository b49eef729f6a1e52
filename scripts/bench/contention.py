"""Measure how training, generation, data preparation and numpy_ref slow down while other programs use the cores.

Each measurement is a separate process that runs a workload with a policy, while 0, 1, 2 or 4 other processes keep a core busy
each. A policy is a set of environment variables that determine the number of threads, or how threads wait and are scheduled.
In each round, the policies are measured in turns, so that a change in the speed of the machine affects all of them. The table
shows the median speed over the rounds in tokens or bytes per second, and the ratio of this speed to the fair speed. With n
cores and k other processes, the fair speed is n / (n + k) times the speed on an idle machine.

    python -m scripts.bench.contention
    python -m scripts.bench.contention --workloads train --policies "default" chosen --competitors 0 2 --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SHORT_SLICES = "POSITRON_BENCH_SHORT_SLICES"  # all threads of the process ask for short time slices
# "default" is the behaviour of libgomp and OpenBLAS if no variable is set; "chosen" is the behaviour of Positron.
POLICIES: dict[str, dict[str, str]] = {
    "default": {"GOMP_SPINCOUNT": "300000", "OPENBLAS_NUM_THREADS": str(os.cpu_count() or 1)},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 2000": {"GOMP_SPINCOUNT": "2000"},
    "spin 3000": {"GOMP_SPINCOUNT": "3000"},
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "short slices": {SHORT_SLICES: "1"},
    "chosen": {},
}
SECONDS = 5.0  # duration of a measurement, after one call for warm-up


def train() -> Callable[[], int]:
    """Return a function that takes a training step of a model like the quickstart's and returns the step's tokens (4,608)."""
    from positron.training.allocator import tune_allocator

    tune_allocator()
    import torch

    from positron.config import OptimizerConfig
    from positron.model.gpt import GPT
    from positron.training.device import Machine
    from positron.training.eager_step import add_gradient, update
    from positron.training.optim.groups import build_optimizer
    from scripts.bench.shapes import QUICKSTART

    model = GPT(QUICKSTART, seed=0)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(kind="muon", lr=7e-3), fused=True)
    rows = torch.randint(0, 4000, (16, 289), generator=torch.Generator().manual_seed(0))
    machine = Machine("cpu", "bf16", "")

    def step() -> int:
        add_gradient(model, rows, machine)
        update(model, optimizer, 1.0)
        return rows[:, 1:].numel()

    return step


def decode() -> Callable[[], int]:
    """Return a function that generates 60 tokens with a model like the quickstart's and returns their number."""
    from positron.system.threads import SPIN_WRITING, spin

    spin(SPIN_WRITING)
    from positron.config import GPTConfig, TokenizerConfig
    from positron.inference.text_model import Writer
    from positron.model.gpt import GPT
    from positron.text.factory import train_tokenizer

    tokenizer = train_tokenizer(TokenizerConfig("char"), ["abcdefgh Tom had a kite."])
    gpt = GPTConfig(
        context_length=288,
        d_model=256,
        n_layer=2,
        n_head=4,
        norm="rmsnorm",
        position="rope",
        activation="relu2",
        vocab_size=tokenizer.vocab_size,
    )
    writer = Writer(GPT(gpt, seed=0), tokenizer)

    def write() -> int:
        writer.generate("Tom had", max_tokens=60, seed=1)
        return 60

    return write


def decode_tinygpt(weights: str) -> Callable[[], int]:
    """Return a function that generates 50 tokens with a compiled decoder of TinyGPT's shape and returns their number."""
    from positron.system.threads import SPIN_WRITING, spin

    spin(SPIN_WRITING)
    from positron.inference.compiled import CompiledDecoder
    from positron.interop.llama2c import BEGIN
    from scripts.bench.decoding import DTYPES, GREEDY, SHAPES, engine_of, fresh_model

    engine = engine_of(fresh_model(SHAPES["tinygpt"]), CompiledDecoder, DTYPES[weights])

    def write() -> int:
        return sum(1 for _ in engine.ids([[BEGIN]], GREEDY, max_tokens=50, stop_ids=(), seed=0))

    return write


def prepare() -> Callable[[], int]:
    """Return a function that prepares 4 MB of stories (text, tokenizer and token files) and returns the bytes of the text."""
    from positron.config import DataConfig, TokenizerConfig
    from positron.data.corpus import prepare

    def make() -> int:
        with tempfile.TemporaryDirectory() as folder:
            config = DataConfig(source="stories", size_mb=4.0, dir=folder)
            prepare(config, TokenizerConfig("sentencepiece", 2000), None)
        return 4_000_000

    return make


def numpy_ref() -> Callable[[], int]:
    """Return a function that computes the loss and gradients of a numpy_ref model and returns the number of tokens.

    The model has 2 layers of width 128, and the batch has 8 x 128 tokens.
    """
    from numpy_ref import GPTConfig, init_params, loss_and_grads  # isort: skip  (before NumPy: it sets the threads)
    import numpy as np

    config = GPTConfig(context_length=128, d_model=128, n_layer=2, n_head=4, vocab_size=1000)
    params = init_params(config, seed=0)
    params = {name: value.astype(np.float32) for name, value in params.items()}
    idx = np.random.default_rng(0).integers(0, 1000, (8, 129))

    def step() -> int:
        loss_and_grads(params, config, idx[:, :-1], idx[:, 1:])
        return idx[:, 1:].size

    return step


WORKLOADS: dict[str, Callable[[], Callable[[], int]]] = {
    "train": train,
    "decode": decode,
    "decode_tinygpt_fp32": functools.partial(decode_tinygpt, "fp32"),
    "decode_tinygpt_int8": functools.partial(decode_tinygpt, "int8"),
    "prepare": prepare,
    "numpy_ref": numpy_ref,
}


def measure(workload: str) -> float:
    """Call the workload repeatedly for SECONDS, and return its tokens or bytes per second."""
    import positron  # noqa: F401  (sets the wait policy before torch or NumPy is loaded)
    from positron.system.time_slices import ask_for_short_slices

    if SHORT_SLICES in os.environ:
        ask_for_short_slices()  # the threads that torch starts inherit it
    call = WORKLOADS[workload]()
    call()
    amount, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        amount += call()
    return amount / elapsed


@contextlib.contextmanager
def competitors(count: int) -> Iterator[None]:
    """Run `count` processes that keep a core busy each, until the context ends."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2 * bool(count))
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def cell(workload: str, policy: str, count: int) -> float:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= POLICIES[policy] | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(PROJECT))}
    with competitors(count):
        process = subprocess.run(
            [sys.executable, __file__, "--measure", workload],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
    return float(process.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--competitors", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--measure", choices=WORKLOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure))
        return
    cores = os.cpu_count() or 1
    rows: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(options.rounds):
        for workload in options.workloads:
            for count in options.competitors:
                for policy in options.policies:
                    rows.setdefault((workload, policy, count), []).append(cell(workload, policy, count))
                    if options.json:
                        Path(options.json).write_text(
                            json.dumps([[*key, *v] for key, v in rows.items()]), encoding="utf-8", newline="\n"
                        )
    for workload in options.workloads:
        print(f"\n{workload}, units per second (share of the fair speed)")
        print("competitors".ljust(14) + "".join(policy.rjust(22) for policy in options.policies))
        idle = max(statistics.median(rows[workload, p, options.competitors[0]]) for p in options.policies)
        for count in options.competitors:
            fair = idle * cores / (cores + count)
            speeds = [statistics.median(rows[workload, policy, count]) for policy in options.policies]
            print(f"{count:<14}" + "".join(f"{speed:>12,.0f} ({speed / fair:4.0%})  " for speed in speeds))


if __name__ == "__main__":
    main()
