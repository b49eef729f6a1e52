"""Where a run comes from: `provenance.json` in its folder tells of each start what made its bits what they are.

Commit and diff of Positron's checkout, versions, hardware, threads, seed, command. Never the environment's variables,
nor the names of the machine or its user. `environments` holds each surrounding once, `starts` point into it.
"""

from __future__ import annotations

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

from positron.run.facts import Resolved, read_record, warn_of_damage, write_record
from positron.run.paths import RunPaths
from positron.system.errors import UserError
from positron.system.paths import without_home

LARGEST_DIFF = 200_000  # bytes
LARGEST_ANSWER = 10_000_000  # bytes of a program that are read, and of a diff that are told apart
MOST_FILES = 100  # untracked ones that are named
PATIENCE = 5.0  # seconds for git, all its answers together
CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("positron", "torch", "lightning", "hydra-core", "numpy", "sentencepiece", "tiktoken", "datasets")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what the run in `folder` recorded; no starts for one that is older than this file.

    Raises UserError where the file is damaged.
    """
    path = RunPaths(folder).provenance_path
    if not path.exists():
        return {"starts": [], "environments": []}
    known, is_whole = read_record(path)
    fault = _fault(known)
    if fault:
        raise UserError(f"{path} is damaged ({fault}): restore it from a copy, or delete it")
    if not is_whole:
        warn_of_damage(path)
    return known


def _fault(known: dict[str, Any]) -> str | None:
    starts, environments = known.get("starts"), known.get("environments")
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
            return f"starts[{number}].environment is none of the {len(environments)} environments"
        weights = start.get("weights")
        if weights is not None and not (isinstance(weights, dict) and isinstance(weights.get("path"), str)):
            return f"starts[{number}].weights has no path"
    return None


def record_start(folder: Path, *, step: int, seed: int, resolved: Resolved, weights: Path | None, **facts: str) -> None:
    """Add this process's start at `step` to the run's provenance. `weights`: the file of another run that it begins with.

    `facts`: what the run reads, such as the tokenizer's hash.
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
        "environment": known["environments"].index(surroundings),
    }
    if weights is not None:
        with weights.open("rb") as file:
            start["weights"] = {
                "path": without_home(str(weights)),
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    write_record(RunPaths(folder).provenance_path, {**known, "starts": [*known["starts"], start]}, mask_home=False)


def start_of(provenance: dict[str, Any], step: int) -> dict[str, Any]:
    """The start that made `step`, with its environment: a later start cuts what earlier ones wrote after its step.

    Empty for a run that is older than its provenance.
    """
    starts = [start for start in provenance["starts"] if start["step"] < step]
    return {**starts[-1], **provenance["environments"][starts[-1]["environment"]]} if starts else {}


def command() -> str:
    """Return what the user typed, without the path of their home folder."""
    script = Path(sys.argv[0])
    program = ["-m", f"positron.{script.stem}"] if script.parent.name == "positron" else [str(script)]
    return str(without_home(shlex.join(["python", *program, *sys.argv[1:]])))


@functools.cache  # what was imported stays what it was, whatever is edited meanwhile
def environment(accelerator: str) -> dict[str, Any]:
    """Code, versions and hardware of this process."""
    return {"git": checkout(CHECKOUT), "versions": versions(), "hardware": hardware(accelerator)}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a vendored copy without metadata, or a checkout that is not installed
            found[package] = "?"
    return found


def hardware(accelerator: str) -> dict[str, Any]:
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
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that names itself otherwise
        name = _answer(["sysctl", "-n", "machdep.cpu.brand_string"], PATIENCE) if sys.platform == "darwin" else None
        return (name or "").strip() or platform.processor() or platform.machine()


def memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def checkout(folder: Path) -> dict[str, Any] | None:
    """Commit, diff (at most LARGEST_DIFF bytes) and untracked files of the git checkout in `folder`.

    None where it is no checkout of its own (an installed package may lie in somebody else's), or git is absent.
    """
    if not (folder / ".git").exists():
        return None
    end = time.monotonic() + PATIENCE

    def ask(*question: str) -> str | None:
        return _answer(["git", "--no-optional-locks", "-C", str(folder), *question], end - time.monotonic())

    commit = ask("rev-parse", "HEAD")
    diff = ask("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--submodule=short")
    others = ask("ls-files", "--others", "--exclude-standard")
    if commit is None or diff is None or others is None:
        return None
    files = others.splitlines()
    return {
        "commit": commit.strip(),
        "diff": _bounded(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "untracked": files[:MOST_FILES] + ([f"... and {len(files) - MOST_FILES} more"] if files[MOST_FILES:] else []),
    }


def _bounded(diff: str) -> str:
    size = len(diff.encode())
    if size <= LARGEST_DIFF:
        return diff
    return diff.encode()[:LARGEST_DIFF].decode(errors="ignore") + f"\n[cut here: it has {size:,} bytes or more]\n"


def _answer(question: list[str], patience: float) -> str | None:
    """What a program prints, None where it is absent, fails or takes longer. No run waits for more."""
    try:
        with tempfile.TemporaryFile() as out:
            subprocess.run(
                question, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, timeout=patience, check=True
            )
            out.seek(0)
            return out.read(LARGEST_ANSWER).decode("utf-8", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
