"""Record in `provenance.json` the code, versions, hardware and command of each start of a run.

The record holds the commit and diff of Positron's checkout, versions, hardware, threads, devices, seed and command. It never
holds environment variables, the name of the machine or the name of its user. What several starts have in common, such as code
and hardware, is stored once in the list `environments`. Each entry of the list `starts` contains an index into `environments`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from positron.config import DeviceConfig
from positron.run.facts import Resolved, read_record, warn_of_damage, write_record
from positron.run.paths import RunPaths
from positron.settings import flat
from positron.system.errors import UserError
from positron.system.memory import physical_memory
from positron.system.paths import without_home

MAX_DIFF_BYTES = 200_000  # maximum size of the recorded diff
MAX_OUTPUT_BYTES = (
    10_000_000  # maximum output that is read from git; longer diffs with the same beginning get the same hash
)
MAX_UNTRACKED_FILES = 100  # maximum number of untracked files whose names are recorded
QUERY_TIMEOUT_S = 5.0  # maximum time of all queries to git together
CHECKOUT = Path(__file__).parents[2]
# fields of a start that do not change the losses; the diff is compared by its checksum
_IGNORED_FIELDS = ("time", "step", "command", "environment", "weights.path", "git.diff")
_PROCESSES = ("devices", "num_nodes", "strategy")  # the settings of device.* that older versions did not record
PACKAGES = ("positron", "torch", "lightning", "hydra-core", "numpy", "sentencepiece", "tiktoken", "datasets")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the content of provenance.json in the run `folder`: a dict with the lists `starts` and `environments`.

    `starts` has a dict for each start of the training, with its time, step, seed and command, and with the index of its
    environment. `environments` has a dict for each different environment of a start, such as its commit, versions and machine.
    Both lists are empty if the file does not exist, as in a run of an older version. Raises UserError if it is damaged.
    """
    path = RunPaths(folder).provenance_path
    if not path.exists():
        return {"starts": [], "environments": []}
    record, is_whole = read_record(path)
    fault = _fault(record)
    if fault:
        raise UserError(
            f"{path} is damaged ({fault}): restore it from a copy, or delete it (then the run cannot be reproduced)"
        )
    if not is_whole:
        warn_of_damage(path)
    return record


def _fault(record: dict[str, Any]) -> str | None:
    starts, environments = record.get("starts"), record.get("environments")
    if not isinstance(starts, list) or not isinstance(environments, list):
        return "starts and environments are not both lists"
    for number, surroundings in enumerate(environments):
        if not isinstance(surroundings, dict):
            return f"environments[{number}] is not an object"
        for key in ("resolved", "versions", "hardware"):
            if not isinstance(surroundings.get(key), dict):
                return f"environments[{number}].{key} is not an object"
        git = surroundings.get("git")
        if git is not None and not (isinstance(git, dict) and isinstance(git.get("commit"), str)):
            return f"environments[{number}].git has no commit"
    for number, start in enumerate(starts):
        if not isinstance(start, dict) or not isinstance(start.get("step"), int):
            return f"starts[{number}].step is not a whole number"
        index = start.get("environment")
        if not isinstance(index, int) or not 0 <= index < len(environments):
            return f"starts[{number}].environment is not an index of the {len(environments)} environments"
        weights = start.get("weights")
        if weights is not None and not (isinstance(weights, dict) and isinstance(weights.get("path"), str)):
            return f"starts[{number}].weights has no path"
    return None


def record_start(
    folder: Path,
    *,
    step: int,
    seed: int,
    device: DeviceConfig,
    resolved: Resolved,
    weights: Path | None,
    **facts: str,
) -> None:
    """Record in the run's provenance that this process starts to train the run at `step`.

    `device` says how many processes train the run together: each number of processes adds the gradients in another order.
    `resolved` holds the values that the training uses for the settings that can be `auto`. `weights` is the checkpoint of
    another run whose weights this run starts from (None: the weights are random, or from this run's own checkpoint). `facts`
    are further values that the run depends on, such as the tokenizer's hash.
    """
    known = read_provenance(folder)
    surroundings = {"resolved": dataclasses.asdict(resolved), **facts, **environment(str(resolved.accelerator))}
    if surroundings not in known["environments"]:
        known["environments"].append(surroundings)
    start = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "step": step,
        "seed": seed,
        "command": command(),
        "device": {key: getattr(device, key) for key in _PROCESSES},
        "environment": known["environments"].index(surroundings),
    }
    if weights is not None:
        start["weights"] = {"path": without_home(str(weights))}
        # a run that still trains may delete the file
        with contextlib.suppress(FileNotFoundError), weights.open("rb") as file:
            start["weights"]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    write_record(RunPaths(folder).provenance_path, {**known, "starts": [*known["starts"], start]}, mask_home=False)


def start_of(provenance: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the record of the process that trained `step`: how it was started, and its environment.

    `provenance`: the result of `read_provenance`. If several processes trained the step, the last of them counts, because its
    results replaced those of the earlier ones. The result is empty if no such process is recorded, as in runs of older
    versions.
    """
    starts = [start for start in provenance["starts"] if start["step"] < step]
    return {**starts[-1], **provenance["environments"][starts[-1]["environment"]]} if starts else {}


def recorded_changes(first_start: dict[str, Any], second_start: dict[str, Any]) -> list[str]:
    """Return the differences between two starts of a training, as lines `key: value in the first -> value in the second`.

    `first_start` and `second_start` describe one start each: its commit, versions and machine (see `start_of`). Values that
    cannot change the losses, such as time and step, are left out. So is a value that an older version did not record.
    """
    a, b = flat(first_start), flat(second_start)
    unknown = {f"device.{key}" for key in _PROCESSES} - (a.keys() & b.keys())
    keys = [key for key in {**a, **b} if key not in _IGNORED_FIELDS and key not in unknown]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def command() -> str:
    """Return a command line that starts this program again with the same arguments, with `~` for the home folder."""
    script = Path(sys.argv[0])
    program = ["-m", f"positron.{script.stem}"] if script.parent.name == "positron" else [str(script)]
    return str(without_home(shlex.join(["python", *program, *sys.argv[1:]])))


@functools.cache  # describes the code as imported, even if it is edited while the process runs
def environment(accelerator: str) -> dict[str, Any]:
    """Return the git commit, the package versions and the hardware of this process, which trains on `accelerator`.

    The keys are `git` (see `checkout`), `versions` and `hardware`. `accelerator` is cpu, cuda or mps.
    """
    return {"git": checkout(CHECKOUT), "versions": versions(), "hardware": hardware(accelerator)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on; `?` for a package without metadata."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:  # a vendored copy without metadata, or a checkout that is not installed
            by_package[package] = "?"
    return by_package


def hardware(accelerator: str) -> dict[str, Any]:
    """Return the system, processor, memory (GiB) and accelerator of this machine."""
    import torch

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions that torch uses
        "memory_gb": memory_gb(),
        "accelerator": torch.cuda.get_device_name() if accelerator == "cuda" else accelerator,
    }


def cpu_name() -> str:
    """Return the name of the processor, such as `AMD Ryzen 9 7950X 16-Core Processor`."""
    name: str | None = None
    if sys.platform == "darwin":
        name = _output_of(["sysctl", "-n", "machdep.cpu.brand_string"], QUERY_TIMEOUT_S)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1] for line in file if line.startswith("model name"))
    return (name or "").strip() or platform.processor() or platform.machine()


def memory_gb() -> float | None:
    """Return the physical memory in GiB, or None if the system does not report it."""
    memory = physical_memory()
    return None if memory is None else round(memory / 2**30, 1)


def checkout(folder: Path) -> dict[str, Any] | None:
    """Return the commit, the diff and the names of untracked files of the git checkout in `folder`.

    The diff is cut after MAX_DIFF_BYTES bytes. Returns None if `folder` is not the root of a checkout: an installed package may
    be inside the checkout of another project. Also returns None if git is not installed, fails, or takes longer than
    QUERY_TIMEOUT_S seconds.
    """
    if not (folder / ".git").exists():
        return None
    end = time.monotonic() + QUERY_TIMEOUT_S

    def git(*arguments: str) -> str | None:
        return _output_of(["git", "--no-optional-locks", "-C", str(folder), *arguments], end - time.monotonic())

    commit = git("rev-parse", "HEAD")
    diff = git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--submodule=short")
    others = git("ls-files", "--others", "--exclude-standard")
    if commit is None or diff is None or others is None:
        return None
    files = others.splitlines()
    unnamed = len(files) - MAX_UNTRACKED_FILES
    return {
        "commit": commit.strip(),
        "diff": _bounded(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "untracked": files[:MAX_UNTRACKED_FILES] + ([f"... and {unnamed} more"] if unnamed > 0 else []),
    }


def _bounded(diff: str) -> str:
    size = len(diff.encode())
    if size <= MAX_DIFF_BYTES:
        return diff
    return (
        diff.encode()[:MAX_DIFF_BYTES].decode(errors="ignore") + f"\n[cut here: the diff has {size:,} bytes or more]\n"
    )


def _output_of(arguments: list[str], timeout_s: float) -> str | None:
    """Return what a program prints, or None if it is not installed, fails or takes longer than `timeout_s`."""
    try:
        with tempfile.TemporaryFile() as out:
            subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=timeout_s,
                check=True,
            )
            out.seek(0)
            return out.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
