"""Check that this machine is ready and computes correctly.

positron doctor prints one line per check. A line that begins with NOTE or FAIL says what to do. After a FAIL, the exit code
is 1.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted
from positron.system.threads import OtherPrograms, describe_others, usable_cores

if TYPE_CHECKING:
    import torch

    from positron.config import Accelerator

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "sentencepiece", "datasets", "tiktoken", "numpy", "wandb")
NETWORK_SECONDS = 3.0
ODD_LENGTHS = (1, 31, 33, 129)  # not multiples of the block sizes of attention kernels, some of which were wrong there
HEAD_WIDTHS = (32, 64, 128)  # devices have kernels of their own for some widths
# A prime number, because faulty kernels have let the tokens of a group, such as four tokens, see each other
# (pytorch/pytorch#195910). If the first changed token began a group, no unchanged token would see it.
FIRST_CHANGED = 101


class Finding(NamedTuple):
    """Hold the result of one check.

    If `good` is False and `fatal` is True, runs fail or compute wrong results.
    """

    what: str  # what was checked
    good: bool
    says: str  # the measured value, or what to do
    fatal: bool = False


def versions() -> Iterator[Finding]:
    """Check the versions of Python and of the packages."""
    yield Finding(
        "Python",
        (3, 11) <= sys.version_info[:2] <= (3, 13),
        f"{platform.python_version()} on {platform.system()} {platform.machine()} (needs 3.11 to 3.13)",
        fatal=True,
    )
    for package in PACKAGES:
        try:
            yield Finding(package, True, version(package))
        except PackageNotFoundError:
            yield Finding(package, False, f"not installed: pip install {package}", fatal=True)


def disk() -> Iterator[Finding]:
    """Check the free space and the write access in the folder where runs are saved."""
    folder = Path("outputs") if Path("outputs").is_dir() else Path()
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding(
        "disk", free > 2, f"{free:.0f} GB free" + ("" if free > 2 else ": a run of 15M parameters needs 1 GB")
    )
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            yield Finding("write access", True, str(folder.resolve()))
    except OSError as error:
        yield Finding(
            "write access",
            False,
            f"{folder.resolve()}: {error.strerror}; change to a folder that you may write to",
            fatal=True,
        )


def network() -> Iterator[Finding]:
    """Check whether the Hugging Face hub and Weights & Biases are reachable, and whether a wandb key is stored.

    Waits at most 3 seconds (NETWORK_SECONDS) for each server. Training on the built-in stories or on the user's own text needs
    neither server.
    """
    from positron.training.trackers.wandb import WANDB_HOSTS, has_wandb_key

    for name, host, use in (
        ("Hugging Face hub", "huggingface.co", "data from the hub (data=stories and data=text work without it)"),
        ("wandb", WANDB_HOSTS[0], "logger=wandb, which logs offline without it"),
    ):
        try:
            socket.create_connection((host, 443), timeout=NETWORK_SECONDS).close()
            yield Finding(name, True, "reachable")
        except OSError:
            yield Finding(name, False, f"not reachable: only needed for {use}")
    key = has_wandb_key()
    yield Finding(
        "wandb key", key, "found" if key else "none: logger=wandb logs offline; the command wandb login stores a key"
    )


def other_programs() -> Iterator[Finding]:
    """Measure for one second how many CPU cores other programs use."""
    others = OtherPrograms()
    time.sleep(1.0)
    cores = others.cores()
    busy = describe_others(cores)
    unknown = "this system does not show how busy other programs are"
    yield Finding(
        "other programs",
        not busy,
        f"{busy}: training is slower until they end" if busy else unknown if cores is None else "the cores are free",
    )


def devices() -> Iterator[Finding]:
    """Check memory, speed and correctness of each accelerator, and of the CPU."""
    import torch

    from positron.training.device import accelerators, mps_fallback, unusable_gpu

    if remark := unusable_gpu():
        yield Finding("device=cuda", False, remark)
    for name in (name for name, is_there in accelerators().items() if is_there):
        count = torch.cuda.device_count() if name == "cuda" else 1
        for device in [torch.device(name)] if count == 1 else [torch.device(name, gpu) for gpu in range(count)]:
            yield _guarded(f"device={device}", partial(memory, device))
            if name == "mps":
                slow = mps_fallback()
                yield Finding("mps fallback", not slow, slow or "off: no operator is computed on the CPU instead")
            yield _guarded(f"{device} matmul", partial(matmul, name, device))
            for dtype in (torch.float32, torch.bfloat16):
                yield _guarded(f"{device} {str(dtype)[6:]} causality", partial(causality, device, dtype))
                yield _guarded(f"{device} {str(dtype)[6:]} attention", partial(attention, device, dtype))


def memory(device: torch.device) -> Finding:
    """Name the device, and tell how much of its memory is free."""
    import torch

    from positron.training.device import free_memory

    title = {"cuda": lambda: torch.cuda.get_device_name(device), "cpu": lambda: counted(usable_cores(), "core")}
    free = free_memory(device)
    says = f"{free / 1e9:.1f} GB of memory free" if free else "memory unknown"
    return Finding(f"device={device}", True, f"{title.get(device.type, str)()}, {says}")


def matmul(name: Accelerator, device: torch.device) -> Finding:
    """Measure how fast a device of the kind `name` multiplies matrices in both precisions that precision=auto may choose."""
    import torch

    from positron.training.device import MIN_GAIN, bf16_is_fast, flops_on_cpu, matmul_flops

    if name == "cpu":  # the measurement that decides
        bf16, fp32 = flops_on_cpu("bf16")
        is_fast = bf16 > MIN_GAIN * fp32
    else:
        bf16, fp32 = (matmul_flops(device, dtype) for dtype in (torch.bfloat16, torch.float32))
        is_fast = bf16_is_fast(name)
    choice = "bf16" if is_fast else "fp32"
    says = f"fp32 {fp32 / 1e9:,.0f} GFLOP/s, bf16 {bf16 / 1e9:,.0f}: precision=auto takes {choice}"
    return Finding(f"{device} matmul", True, says)


def _guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    """Return the finding of `probe`, or one that it failed, for example because other programs fill the memory of a GPU."""
    try:
        return probe()
    except RuntimeError as error:
        return Finding(name, False, f"failed: {' '.join(str(error).split())[:150]}", fatal=True)


def causality(device: torch.device, dtype: torch.dtype) -> Finding:
    """Check that the logits of a token do not depend on later tokens, as they do with some faulty attention kernels.

    The model has random weights; its matrix products are in `dtype`.
    """
    import torch

    from positron.config import GPTConfig
    from positron.model.gpt import GPT

    idx = torch.randint(64, (2, 160), generator=torch.Generator().manual_seed(0)).to(device)
    changed = idx.clone()
    changed[:, FIRST_CHANGED:] = (changed[:, FIRST_CHANGED:] + 1) % 64
    leak = 0.0
    for width, grad in itertools.product(HEAD_WIDTHS, (False, True)):  # training may take other kernels than inference
        config = GPTConfig(
            vocab_size=64, context_length=160, d_model=64, n_layer=2, n_head=4, head_dim=width, position="rope"
        )
        model = GPT(config).to(device)
        with torch.set_grad_enabled(grad), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            difference = (model(idx) - model(changed))[:, :FIRST_CHANGED]
        leak = max(leak, difference.abs().max().item())
    name = f"{device} {str(dtype)[6:]} causality"
    if leak == 0:
        return Finding(name, True, "no token is influenced by later tokens")
    return Finding(
        name,
        False,
        f"tokens are influenced by later tokens (logits differ by {leak:.1e}): use precision=fp32",
        fatal=True,
    )


def attention(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare the output of causal attention on `device` with softmax(q k^T / sqrt(D)) v, computed in fp64 on the CPU.

    D is the width of a head. The check is repeated for several widths (HEAD_WIDTHS) and for several numbers of tokens that are
    not multiples of the block sizes of attention kernels (ODD_LENGTHS). Gradients are not compared.
    """
    import math

    import torch

    from positron.model.kernels.attention import causal_attention

    max_error = 0.0
    generator = torch.Generator().manual_seed(0)
    for T, D in itertools.product(ODD_LENGTHS, HEAD_WIDTHS):
        q, k, v = (torch.randn(2, 4, T, D, generator=generator).to(device, dtype) for _ in range(3))
        q.requires_grad_(T > 64)
        exact_q, exact_k, exact_v = (x.detach().cpu().double() for x in (q, k, v))
        scores = exact_q @ exact_k.mT / math.sqrt(D)
        mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        exact = scores.masked_fill(mask, float("-inf")).softmax(-1) @ exact_v
        out = causal_attention(q, k, v).detach().cpu().double()
        max_error = max(max_error, ((out - exact).norm() / exact.norm()).item())
    # rounding of inputs, probabilities and outputs: a few units in the last place, averaged over many numbers
    is_good = max_error < 4 * torch.finfo(dtype).eps
    name = f"{device} {str(dtype)[6:]} attention"
    description = f"relative error {max_error:.1e} at lengths {', '.join(map(str, ODD_LENGTHS))}"
    return Finding(name, is_good, description if is_good else f"{description}: use another precision=", fatal=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    return CommandParser("doctor", __doc__)


def main() -> None:
    """Run `positron doctor` with the options in `sys.argv`."""
    with errors_as_one_line():
        arguments().parse_args()
        failed = False
        for check in (versions, disk, network, other_programs, devices):
            for finding in check():
                failed |= finding.fatal and not finding.good
                print(
                    f"{'OK  ' if finding.good else 'NOTE' if not finding.fatal else 'FAIL'}  {finding.what:<24} {finding.says}",
                    flush=True,
                )
        print(
            f"\nready: {command('train', 'experiment=quickstart')}"
            if not failed
            else "\nnot ready: fix the lines marked FAIL first"
        )
        if failed:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
