"""Choose the accelerator, the precision and a micro-batch that fits the memory, and measure the speed of matrix products."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import distributed

from positron.config import Accelerator, DeviceConfig, GPTConfig, Precision, PrecisionConfig
from positron.model.kernels.attention import BLOCK_QUERIES, MAX_BLOCKED_KEYS
from positron.system import memory
from positron.system.errors import Occupied, UserError
from positron.system.formatting import counted
from positron.system.ranks import local_rank, precision_of_starter, started_together
from positron.system.threads import usable_cores

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TURNS = 5  # largest number of times that `speed_on_cpu` measures each precision, for 0.07 s each time
# For matrix products on a CPU, compared with fp32: precision=auto chooses bf16 if it is more than MIN_GAIN times as fast, and a
# precision is slow if it takes more than SLOWDOWN times as long.
MIN_GAIN, SLOWDOWN = 1.5, 2.0
CPU_MICRO_TOKENS = 4096  # with about this number of tokens, the activations of a layer fit the cache of a desktop CPU


@dataclass(frozen=True)
class Machine:
    """Hold how a run uses this machine: on which accelerator, in which precision, and with which share of the memory."""

    accelerator: Accelerator
    precision: Precision
    why: str  # describes the choice and its reason for the user
    share: float = 1.0  # the share of the free memory that this run may use
    checkpoint_activations: bool = False  # the backward pass computes most activations again, instead of storing them
    local_rank: int = 0  # number of this process on its machine
    shards_weights: bool = False  # the weights are divided among the processes

    @property
    def device(self) -> torch.device:
        """Return the torch device of this process. On CUDA, each process of a machine has its own GPU."""
        return torch.device("cuda", self.local_rank) if self.accelerator == "cuda" else torch.device(self.accelerator)

    def autocast(self) -> torch.autocast:
        """Return a context in which a forward pass computes in the precision of the machine."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)


def accelerators() -> dict[Accelerator, bool]:
    """Return for each kind of accelerator whether torch can use it on this machine. The fastest kind comes first."""
    return {
        "cuda": torch.cuda.is_available() and has_code_for_gpu(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }


def choose_machine(config: DeviceConfig, precision: PrecisionConfig) -> Machine:
    """Choose the accelerator and the precision that a run uses on this machine.

    The accelerator `auto` means the fastest kind that the machine has. The precision `auto` means bf16 if the accelerator
    computes matrix products faster in bf16 than in fp32 (see `bf16_is_fast`), otherwise fp32. Raises UserError if the machine
    lacks the accelerator that `config` names, or has fewer devices of this kind than `config` asks for.
    """
    available = accelerators()
    asked = config.accelerator
    why = f"device={asked}"
    accelerator: Accelerator
    if asked == "auto":
        accelerator = next(name for name in available if available[name])
        absent = [name.upper() for name in ("cuda", "mps") if not available[name]]
        reason = unusable_gpu() or (f"this machine has no {' and no '.join(absent)}" if absent else "")
        why = f"{accelerator.upper()} (device=auto" + (f": {reason})" if reason else ")")
    elif available[asked]:
        accelerator = asked
    else:
        choices = " or ".join(f"device={name}" for name, is_available in available.items() if is_available)
        if asked == "cuda" and (remark := unusable_gpu()):
            raise UserError(f"device=cuda, but {remark}, or give {choices} or device=auto")
        remedy = f", or install a PyTorch with {asked.upper()}" if asked == "cuda" or sys.platform == "darwin" else ""
        raise UserError(
            f"device={asked}, but PyTorch finds no {asked.upper()} device: give {choices} or device=auto{remedy}"
        )
    match accelerator:
        case "cuda":
            count = torch.cuda.device_count()
        case "mps":
            count = 1
        case "cpu":
            count = config.devices  # a device of the CPU is a process
        case _:
            assert_never(accelerator)
    if config.devices > count:
        present, remedy = counted(count, f"{accelerator.upper()} device"), f"give device.devices={max(1, count)}"
        if started_together() > 1:
            raise UserError(
                f"device.devices={config.devices}: this process, which a launcher has started, sees only {present}, but must "
                "see all those of its machine: give srun --gpus-per-node= and neither --gpus-per-task= nor --gpu-bind=, or "
                f"{remedy}"
            )
        raise UserError(f"device.devices={config.devices}: this machine has only {present}: {remedy}")
    dtype = precision.dtype
    if dtype == "auto":
        # all processes must choose the same, and another measurement might give another result
        if chosen := precision_of_starter(config.processes):
            dtype = precision_named(chosen)
        else:
            dtype = "bf16" if bf16_is_fast(accelerator) else "fp32"
        # `faster_precision` may time steps of the model and log its choice
        if dtype == "bf16" and accelerator == "cpu" and config.processes == 1:
            why += ", bf16, or fp32 if steps of this model are faster in fp32 (precision=auto)"
        else:
            faster = "faster" if dtype == "bf16" else "no faster"
            why += f", {dtype} (precision=auto: matrix products in bf16 are {faster} on this machine)"
    else:
        why += f", {dtype}"
    if accelerator == "mps" and (remark := mps_fallback()):
        why += f", {remark}"
    local = local_rank(config.processes)
    if config.share < 1:
        device = torch.device("cuda", local) if accelerator == "cuda" else torch.device(accelerator)
        why += f", {config.share:.0%} of the machine: {torch.get_num_threads()} of {usable_cores()} cores"
        free = free_memory(device)
        why += f" and {free * config.share / 1e9:.1f} of {free / 1e9:.1f} GB of free memory" if free else ""
    return Machine(accelerator, dtype, why, config.share, config.checkpoint_activations, local, config.shards_weights)


def unusable_gpu() -> str:
    """Return a remark if this machine has an NVIDIA GPU, or its driver, that torch cannot use, otherwise an empty string.

    If CUDA_VISIBLE_DEVICES hides all GPUs, the user does not want them, and the result is empty.
    """
    if torch.cuda.is_available():
        if has_code_for_gpu():
            return ""
        capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
        return (
            f"the installed PyTorch has no code for the GPU {torch.cuda.get_device_name(0)} (compute capability {capability}): "
            "install a PyTorch for a version of CUDA that supports it"
        )
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if is_hidden or shutil.which("nvidia-smi") is None:
        return ""
    if torch.version.cuda is None:
        return "the installed PyTorch cannot use the NVIDIA GPU: install a PyTorch with CUDA"
    return f"PyTorch finds no NVIDIA GPU: install a driver that supports CUDA {torch.version.cuda}"


def has_code_for_gpu() -> bool:
    """Tell whether the installed torch has code for the first GPU. A torch for a new CUDA has none for old GPUs.

    The code sm_75 is for all GPUs of compute capability 7.5 to 7.9, and compute_75 for those of 7.5 or higher.
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", code) for code in torch.cuda.get_arch_list()]  # ROCm: gfx90a
    codes = [(found[1], int(found[2])) for found in known if found]
    major, minor = torch.cuda.get_device_capability(0) if codes else (0, 0)
    number = 10 * major + minor
    return not codes or any(code <= number and (kind == "compute" or code // 10 == major) for kind, code in codes)


def mps_fallback() -> str:
    """Return a remark if the environment variable PYTORCH_ENABLE_MPS_FALLBACK is set, otherwise an empty string.

    With this variable, operators that MPS lacks run on the CPU, which is slow. Without the variable, these operators raise an
    error.
    """
    if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") in ("", "0"):
        return ""
    return "PYTORCH_ENABLE_MPS_FALLBACK is set, so operators that MPS lacks run on the CPU, which is slow: unset it"


def use_device(machine: Machine) -> None:
    """Set the current CUDA device of torch, and limit the memory that torch takes for the GPU.

    On CUDA, the limit is `machine.share` of the free memory, if the share is less than 1.

    On a Mac, the GPU and all programs share one memory. By default, torch takes up to 1.7 times the memory that the system
    recommends for the GPU, which is more than a Mac with 16 GB has. All programs would then become slow, and the search for a
    micro-batch that fits the memory would find one that is too large. The limit is `machine.share` times the recommended
    memory. It is not set if the user has set the environment variable PYTORCH_MPS_HIGH_WATERMARK_RATIO.
    """
    match machine.accelerator:
        case "cuda":
            torch.cuda.set_device(machine.device)  # otherwise code that names no GPU would use GPU 0 in every process
            if machine.share < 1:
                free, total = torch.cuda.mem_get_info(machine.device)
                torch.cuda.set_per_process_memory_fraction(float(machine.share) * free / total, machine.device)
        case "mps":
            if "PYTORCH_MPS_HIGH_WATERMARK_RATIO" not in os.environ:
                torch.mps.set_per_process_memory_fraction(float(machine.share))
        case "cpu":
            pass
        case _:
            assert_never(machine.accelerator)


def precision_named(name: str) -> Precision:
    """Return the precision that is recorded as `name` in a run.json. Raises UserError for an unknown name."""
    for precision in DTYPES:
        if precision == name:
            return precision
    raise UserError(
        f"run.json of this run has precision={name}, which is not one of {', '.join(DTYPES)}: restore the file from a copy if "
        "it is damaged, or use the newer version of Positron that wrote it"
    )


def set_threads(config: DeviceConfig) -> None:
    """Set the number of CPU threads of this process to `device.threads`.

    If `device.threads` is auto, the processes of this machine divide `device.share` x its usable cores among themselves. One
    process with the whole machine keeps the number that torch has chosen, and several processes keep that of OMP_NUM_THREADS.
    """
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    elif config.share < 1:
        torch.set_num_threads(max(1, round(usable_cores() * config.share) // config.devices))
    elif config.devices > 1 and "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it
        torch.set_num_threads(max(1, usable_cores() // config.devices))


def bf16_is_fast(accelerator: Accelerator) -> bool:
    """Tell whether matrix products are faster in bf16 than in fp32, so that precision=auto prefers bf16.

    On CUDA, the result is True if the GPU computes in bf16 without emulation; on MPS, it is always True. On a CPU, the speed is
    measured, because the feature flags of a CPU are not reliable; the result is True if bf16 is more than 1.5 times (MIN_GAIN)
    as fast as fp32. A CPU without instructions for bf16, such as AVX512-BF16 or AMX, is slower in bf16.
    """
    match accelerator:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "mps":
            return True  # needs torch >= 2.13: with earlier versions, bf16 attention on MPS let tokens see later tokens
        case "cpu":
            return speed_on_cpu("bf16") > MIN_GAIN
        case _:
            assert_never(accelerator)


def speed_on_cpu(precision: Precision) -> float:
    """Return the speed of matrix products in `precision` on this CPU, divided by their speed in fp32."""
    speed, speed_of_fp32 = flops_on_cpu(precision)
    return speed / speed_of_fp32


def flops_on_cpu(precision: Precision) -> tuple[float, float]:
    """Return the FLOP/s of matrix products in `precision` on this CPU, and those of products in fp32.

    Another program can slow down a measurement. Therefore `precision` and fp32 are measured alternately, several times each,
    and the highest speed of each counts. Each is measured at least twice and at most 5 times (TURNS). The function stops
    measuring early if the ratio of the speeds is below 0.5 (1 / SLOWDOWN) or above 1.5 (MIN_GAIN).
    """
    cpu, best = torch.device("cpu"), {DTYPES[precision]: 0.0, torch.float32: 0.0}
    for turn in range(TURNS):
        for dtype in best:
            best[dtype] = max(best[dtype], matmul_flops(cpu, dtype, seconds=0.07))
        ratio = best[DTYPES[precision]] / best[torch.float32]
        if turn > 0 and not 1 / SLOWDOWN <= ratio <= MIN_GAIN:
            break
    return best[DTYPES[precision]], best[torch.float32]


Shape = tuple[int, int, int]  # (n, k, m): a product (n, k) x (k, m)


def matmul_flops(
    device: torch.device, dtype: torch.dtype, *, seconds: float = 0.15, shapes: Sequence[Shape] | None = None
) -> float:
    """Return the highest FLOP/s among matrix products of the given `shapes`; all measurements together take about `seconds`.

    The shape (n, k, m) stands for a product (n, k) x (k, m). Without `shapes`, one product of large square matrices is
    measured.
    """
    side = 1024 if device.type == "cpu" else 8192
    shapes = shapes or [(side, side, side)]
    return max(_product_flops(device, dtype, shape, seconds / len(shapes)) for shape in shapes)


def _product_flops(device: torch.device, dtype: torch.dtype, shape: Shape, seconds: float) -> float:
    n, k, m = shape
    # the weight has the layout of nn.Linear, (m, k); no random numbers are drawn, because training must get the same ones
    a, b = (torch.full(size, 0.5, device=device, dtype=dtype) for size in ((n, k), (m, k)))
    best, started = float("inf"), time.perf_counter()
    out = a @ b.t()
    while time.perf_counter() - started < seconds or best == float("inf"):
        wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b.t(), out=out)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n * k * m / best


def release_memory(accelerator: Accelerator) -> None:
    """Release the memory of the accelerator that torch has reserved but that no tensor uses."""
    match accelerator:
        case "cuda":
            torch.cuda.empty_cache()
        case "mps":
            torch.mps.empty_cache()
        case "cpu":
            pass  # the allocator of the CPU needs no request
        case _:
            assert_never(accelerator)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all work. On a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes; 0 if the system does not report it.

    On a CPU this is the largest memory that the process has had, on CUDA the peak of torch's allocator, and on MPS the memory
    that is allocated now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return memory.peak_memory() or 0


def total_memory(device: torch.device) -> int:
    """Return the total memory of a CUDA GPU in bytes.

    For the GPU of a Mac, return the largest amount that the system recommends to use.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory()


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device (for a CPU: of the machine) in bytes, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return memory.available_memory()


def micro_batch_bytes(config: GPTConfig, rows: int, machine: Machine) -> int:
    """Estimate the bytes of the activations that `rows` sequences keep for the backward pass; the estimate is rather high.

    For each token, each layer keeps about 8 vectors of width d_model for attention and norms, 3 vectors of the MLP's width (4
    with a gate), and the fp32 inputs of the norms. On a CPU, attention also keeps its probabilities, unless a token may attend
    to more than 2,048 keys (MAX_BLOCKED_KEYS). Dropout keeps a mask of one byte for each number that it may set to 0.

    With activation checkpointing (`machine.checkpoint_activations`), each layer keeps only its fp32 input. In the backward pass
    the other tensors are computed again, for one layer at a time.
    """
    width = DTYPES[machine.precision].itemsize
    mlp = (4 if config.is_gated else 3) * config.ff_width
    has_masks = config.dropout > 0
    block = (8 * config.d_model + mlp) * width + (8 + 2 * has_masks) * config.d_model
    T = config.context_length
    seen = min(T, config.window or T)
    if machine.accelerator == "cpu" and seen <= MAX_BLOCKED_KEYS:
        block += config.n_head * min((T + BLOCK_QUERIES) // 2, seen + BLOCK_QUERIES) * (width + has_masks)
    n = config.n_layer
    blocks = 4 * config.d_model * n + block if machine.checkpoint_activations else block * n
    return rows * T * (blocks + 16 * config.d_model)


def choose_micro_batch(
    config: GPTConfig, machine: Machine, rows: int, asked: int | str, try_step: Callable[[int], None]
) -> int:
    """Return the number of sequences per forward pass, which is the size of a micro-batch.

    `rows`: the number of sequences that this process reads per optimizer step; the result is at most `rows`.

    If `asked` is a number, it is used. If it is "auto", the number n depends on the device:

    - On a CPU, n sequences fit the CPU's cache, because this is fastest.
    - On another device, n is halved, beginning with `rows`, until `try_step(n)`, which runs the forward and backward pass of
      n sequences, does not run out of memory.
    - With sharded weights no step is tried, because one device may be too small for all weights. Instead, n is halved until
      the estimated activations fit half of the memory that the run may use on a device (`machine.share` of the total memory).
      Equal devices therefore get equal numbers.

    Raises UserError if `asked` is a number and, by an estimate, its sequences need more than the free memory. With "auto",
    raises UserError if `try_step(1)` runs out of memory.
    """
    if asked != "auto":
        _refuse_too_large(config, machine, min(int(asked), rows))
        return min(int(asked), rows)
    if machine.accelerator == "cpu":
        return min(rows, max(1, CPU_MICRO_TOKENS // config.context_length))
    size = rows
    if machine.shards_weights:
        limit = int(total_memory(machine.device) * machine.share) // 2
        while size > 1 and micro_batch_bytes(config, size, machine) > limit:
            size = -(-size // 2)
        return size
    while True:
        try:
            try_step(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                remedy = memory_remedy(machine.checkpoint_activations, batch_remedy(size, size))
                raise UserError(
                    f"out of memory: even a single sequence of {config.context_length} tokens does not fit the memory of this "
                    f"device: try {remedy}"
                ) from None
            size = -(-size // 2)
        else:
            return size


def _refuse_too_large(config: GPTConfig, machine: Machine, size: int) -> None:
    free = free_memory(machine.device)
    free = int(free * machine.share) if free is not None else None
    needed = micro_batch_bytes(config, size, machine)
    if free is None or needed <= free:
        return
    fits = size
    while fits > 1 and micro_batch_bytes(config, fits, machine) > free // 2:
        fits //= 2
    checkpointed = dataclasses.replace(machine, checkpoint_activations=True)
    remedy = memory_remedy(micro_batch_bytes(config, size, checkpointed) > free, batch_remedy(size, fits))
    raise Occupied(
        f"out of memory: train.micro_batch_size={size} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
        f"try {remedy}"
    )


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error says that this process has lost the connection to the other processes of its run."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    # gloo raises a RuntimeError that names the line of its source
    is_from_gloo = isinstance(error, RuntimeError) and re.search(r"gloo[/\\]transport", str(error)) is not None
    return is_from_gloo or isinstance(error, distributed.DistError)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, by its type (CUDA, Python) or its message (MPS and CPU)."""
    # MPS; a CPU; a CPU on Windows; cuBLAS and cuDNN, which get their memory from the driver
    texts = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
    is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_known or any(text in str(error) for text in texts)


def batch_remedy(size: int, fits: int) -> list[str]:
    """Return what a user can change if a micro-batch of `size` sequences does not fit the memory.

    `fits` is a number of sequences that may fit. If `fits` is less than `size`, for example 4, the result is
    ["train.micro_batch_size=4"]. Otherwise, the result is ["a smaller model", "a smaller model.context_length="].
    """
    return [f"train.micro_batch_size={fits}"] if fits < size else ["a smaller model", "a smaller model.context_length="]


def memory_remedy(checkpointed: bool, alternatives: list[str]) -> str:
    """Return, as one text, what a user can change if the memory is too small.

    `alternatives` are the possible changes. If `checkpointed` is False, device.checkpoint_activations=true is added as the last
    one. Pass True if activation checkpointing is on already or would not help. For example, ["a smaller model"] and False give
    "a smaller model, or device.checkpoint_activations=true".
    """
    *others, last = alternatives if checkpointed else [*alternatives, "device.checkpoint_activations=true"]
    return f"{', '.join(others)}, or {last}" if others else last
