"""Measure how the time and memory of a training step grow along five axes, and compare them with computed values.

The axes are parameters (1M to 124M), context (128 to 8,192 tokens, also with device.checkpoint_activations), vocabulary (256
to 100k), data (1 MB to 10 GB of token files) and processes (1 and 2, gloo). On the first three axes, a step of forward pass,
backward pass and AdamW in bf16 is measured; on the axis data, opening the files and reading a batch; on the axis processes, a
step on a batch that DDP divides among the processes. The result is a table for each axis and one figure.

Each point is measured in a new process, so that its peak memory is its own. With one thread, time is the CPU time of the
process, which other programs on the same core hardly change; with more threads, time is wall time. A line is fitted to the
three smallest points. A point leaves the line if its value is more than 1.5 times the line's value, or less than 1 / 1.5 times.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from positron.config import GPTConfig, OptimizerConfig, TokenizerConfig
from positron.data.shards import TokenFiles
from positron.data.windows import Windows
from positron.model.gpt import GPT
from positron.model.kernels.loss import CHUNK_VALUES, SOFTMAX_VALUES
from positron.system.children import PipeEnd
from positron.system.disk import make_folder, write_json
from positron.text.factory import train_tokenizer
from positron.training.allocator import tune_allocator
from positron.training.device import Machine, free_memory, micro_batch_bytes, peak_memory
from positron.training.optim.groups import build_optimizer, clip_gradients
from scripts.bench import load_average
from scripts.bench.scale_report import picture, table, verdict_lines

AXES = ["parameters", "context", "vocabulary", "data", "processes"]
SECONDS, STEPS = 1.5, 3  # a point is measured for at least this time and this number of steps
FIXED = 12  # number of steps if there are several processes, which must all make the same number
DATA_BATCH, DATA_CONTEXT, SHARD = 32, 512, 500_000_000  # rows, tokens; tokens per file
# With forkserver, torch is imported once; the peak memory of a child begins at the memory that it inherits.
if sys.platform == "win32":
    PROCESS = multiprocessing.get_context("spawn")
else:
    PROCESS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Point:
    axis: str
    x: float  # parameters, tokens, ids, bytes or processes
    gpt: GPTConfig
    rows: int = 1
    series: str = ""
    checkpoint: bool = False

    @property
    def processes(self) -> int:
        return int(self.x) if self.axis == "processes" else 1

    @property
    def tokens(self) -> int:
        """Return the number of tokens of a step in one process."""
        return self.rows * self.gpt.context_length // self.processes

    def computed_bytes(self) -> int:
        """Return the computed memory of a step in bytes.

        It is the sum of weights, gradients and two moments in fp32, copies of the matrices in bf16, activations, the chunks
        of the loss, and DDP's copy of the gradients if there are two processes. On the axis data, it is the size of a batch.
        """
        if self.axis == "data":
            return DATA_BATCH * (DATA_CONTEXT + 1) * 8
        machine = Machine("cpu", "bf16", "", checkpoint_activations=self.checkpoint)
        activations = micro_batch_bytes(self.gpt, self.rows // self.processes, machine)
        logits, head = self.tokens * self.gpt.vocab_size, self.gpt.vocab_size * self.gpt.d_model
        loss = 2 * min(logits, CHUNK_VALUES) + 8 * min(logits, SOFTMAX_VALUES) + 4 * head
        buckets = 4 * self.gpt.n_params() if self.processes > 1 else 0  # DDP's own copy of the gradients
        return 16 * self.gpt.n_params() + 2 * self.gpt.matmul_params() + activations + loss + buckets


def shape(width: int, layers: int, context: int = 256, vocabulary: int = 4096) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocabulary, context_length=context, d_model=width, n_layer=layers, n_head=max(1, width // 64)
    )


def points(axis: str, quick: bool) -> list[Point]:
    every = slice(None, 3) if quick else slice(None)
    if axis == "parameters":
        shapes = [shape(*s) for s in ((64, 15), (128, 15), (256, 10), (384, 16), (512, 22), (768, 17))][every]
        return [Point(axis, gpt.n_params(), gpt, rows=4) for gpt in shapes]
    if axis == "context":
        lengths = [128 << n for n in range(7)][every]
        both = [(False, "as it is"), (True, "checkpointed")]
        tokens = lengths[-1]  # the same in every step
        return [Point(axis, t, shape(192, 4, t, 1000), tokens // t, name, flag) for flag, name in both for t in lengths]
    if axis == "vocabulary":
        sizes = [256, 1024, 4096, 16_384, 50_257, 100_277][every]
        return [Point(axis, v, shape(192, 4, 256, v), rows=8) for v in sizes]
    if axis == "data":
        return [Point(axis, 10**n, shape(64, 1, DATA_CONTEXT, 256)) for n in range(6, 11)][every]
    gpts = [shape(64, 15), shape(256, 10)][: 1 if quick else 2]
    return [Point(axis, n, gpt, 8, f"{gpt.n_params() / 1e6:.1f}M") for gpt in gpts for n in (1, 2)]


def measure(point: Point, threads: int) -> dict[str, Any]:
    """Measure a point in new processes. Raises SystemExit if they end without a result."""
    ours, theirs = PROCESS.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        target = serve if point.axis == "data" else train
        ranks = [
            PROCESS.Process(target=target, args=(point, threads, Path(folder), r, theirs))
            for r in range(point.processes)
        ]
        for process in ranks:
            process.start()
        theirs.close()
        try:
            result: dict[str, Any] = ours.recv()
        except EOFError:
            raise SystemExit(
                f"the measurement of {point.axis} {label(point)} ended without a result: the error is above or, if there is "
                "none, the system killed the process, for example because the memory was full"
            ) from None
        finally:
            for process in ranks:
                process.join()
    return result


def timed(action: Callable[[], object], threads: int, *, steps: int | None = None) -> float:
    """Call `action` at least STEPS times and for SECONDS, or `steps` times; return the median seconds of a call."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: list[float] = []
    while len(seconds) < (steps or STEPS) or (steps is None and sum(seconds) < SECONDS):
        began = clock()
        action()
        seconds.append(clock() - began)
    return statistics.median(seconds)


def train(point: Point, threads: int, folder: Path, rank: int, pipe: PipeEnd) -> None:
    """Measure the median seconds of a step on this process's part of the batch, and the peak memory of this process.

    The first process sends both to `pipe`. With several processes, it also sends the seconds without exchanging gradients.
    """
    tune_allocator()
    torch.set_num_threads(threads)
    inherited = peak_memory(torch.device("cpu"))
    model = GPT(point.gpt)
    model.checkpoint_activations = point.checkpoint
    wrapped: Any = model
    if point.processes > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=point.processes)
        wrapped = DistributedDataParallel(model)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(), fused=True)
    x, y = torch.randint(point.gpt.vocab_size, (2, point.rows // point.processes, point.gpt.context_length))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = wrapped(x, y) / x.numel()
            loss.backward()
        clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the first step also loads kernels and allocates buffers
    if point.processes == 1:
        result = {"seconds": timed(step, threads)}
    else:  # first without exchanging gradients, then with it; all processes make the same number of steps
        with wrapped.no_sync():
            alone = timed(step, threads, steps=FIXED)
        result = {"alone": alone, "seconds": timed(step, threads, steps=FIXED)}
    if rank == 0:
        pipe.send(result | {"bytes": peak_memory(torch.device("cpu")) - inherited})
    if point.processes > 1:
        torch.distributed.destroy_process_group()


def serve(point: Point, threads: int, folder: Path, rank: int, pipe: PipeEnd) -> None:
    """Measure the seconds to open `point.x` bytes of token files and to read a batch, and the memory; send them to `pipe`.

    The files are sparse: they occupy no space on the disk, and the time does not include the time of the disk.
    """
    n = int(point.x) // 2
    sizes = [min(SHARD, n - start) for start in range(0, n, SHARD)]
    shards, digests = [], {}
    for i, size in enumerate(sizes):
        path = folder / f"train-{i:05d}.bin"
        with path.open("wb+") as file:
            file.truncate(2 * size)
            if size not in digests:
                digests[size] = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append({"file": path.name, "tokens": size, "sha256": digests[size]})
    tokenizer = train_tokenizer(TokenizerConfig("char"), ["abc"])
    split = {"tokens": n, "documents": 1, "bytes": 4 * n, "bits": None, "shards": shards}
    head = {"tokenizer_hash": tokenizer.hash, "dtype": "uint16", "fingerprint": ""}
    write_json(folder / "tokens.json", {**head, "splits": {"train": split}})

    def opened() -> Windows:
        files = TokenFiles(folder, "train", tokenizer)
        return Windows(files, window=DATA_CONTEXT, batch_size=DATA_BATCH, seed=0)

    steps = iter(np.random.default_rng(0).integers(1, 10**6, size=10**6).tolist())
    opened().batch(1)  # the first call also loads code and allocates buffers
    inherited, windows = own_memory(), opened()
    fetch = timed(lambda: windows.batch(next(steps)), threads)
    result = {"opening": timed(opened, threads), "seconds": fetch}
    pipe.send(result | {"bytes": own_memory() - inherited})


def own_memory() -> int:
    """Return the memory of this process in bytes, without mapped files, which the system can remove from memory."""
    if sys.platform != "linux":
        return peak_memory(torch.device("cpu"))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def row_of(point: Point, threads: int) -> dict[str, Any]:
    """Return the row of a point: computed values and, if the point fits into the free memory, measured values."""
    tokens = DATA_BATCH * DATA_CONTEXT if point.axis == "data" else point.tokens
    flops = 0.0 if point.axis == "data" else point.gpt.flops_per_token()
    row = {"axis": point.axis, "series": point.series, "x": point.x, "label": label(point), "tokens": tokens}
    row |= {"parameters": point.gpt.n_params()}
    row |= {"flops_per_token": flops, "computed_bytes": point.computed_bytes()}
    free = free_memory(torch.device("cpu"))
    needed = point.processes * point.computed_bytes()
    if free is not None and needed > 0.9 * free:
        return row | {"skipped": f"needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free"}
    return row | measure(point, threads)


def label(point: Point) -> str:
    if point.axis == "data":
        return f"{point.x / 1e6:,.0f} MB" if point.x < 1e9 else f"{point.x / 1e9:.0f} GB"
    return f"{point.x / 1e6:.1f}M" if point.axis == "parameters" else f"{point.x:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=AXES, nargs="+", default=AXES, help="measure only these axes")
    parser.add_argument("--quick", action="store_true", help="measure only the three smallest points of each axis")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_scale"))
    options = parser.parse_args()
    clock = "CPU time of one thread" if options.threads == 1 else f"time of {options.threads} threads"
    print(f"bf16, {clock} per process; load average {load_average()}", flush=True)
    rows: list[dict[str, Any]] = []
    for axis in options.axis:
        axis_rows = []
        for point in points(axis, options.quick):
            axis_rows.append(row_of(point, options.threads))
            print(f"  {axis} {label(point)} {point.series}", flush=True)
        verdicts = verdict_lines(axis, axis_rows)
        print("\n".join(["", table(axis, axis_rows), "", *verdicts, ""]), flush=True)
        rows += axis_rows
    make_folder(options.out)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (options.out / "scale.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    (options.out / "scale.png").write_bytes(picture(rows, f"One training step in bf16, {clock}"))
    print(f"{options.out}/scale.png, scale.csv")


if __name__ == "__main__":
    main()
