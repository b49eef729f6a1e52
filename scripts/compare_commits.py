"""Check that two commits train the same models: losses and weights must be equal bit for bit.

    python scripts/compare_commits.py 9adde6f HEAD
    python scripts/compare_commits.py main --only muon --only sft      # against the working tree

Each commit is checked out into a temporary folder and runs a table of short recipes: pretraining with every optimizer,
schedule and option that changes the mathematics, four kinds of fine-tuning, a run that is stopped and continued, and a run
that the first commit starts and the second commit continues. The script compares all numbers of `metrics.jsonl` except
speeds, times and memory, and the SHA-256 of the final weights. These results (traces) are kept in outputs/traces/, so that
the traces of an old commit are computed only once. Without a second commit, the working tree is compared.

The exit code is 1 if two traces differ. A recipe takes about 8 seconds per commit on two CPU cores. The bits depend on the
processor and the number of threads (2 here), so only traces from the same machine are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

PROJECT = Path(__file__).resolve().parents[1]
TRACES = PROJECT / "outputs" / "traces"
WORKING_TREE = "working tree"
NOT_COMPARED = ("time_s", "speed/", "memory/")  # prefixes of the keys in metrics.jsonl that differ in every run

# settings that all recipes of one command share
SHARED = {
    "train": "model=debug model.d_model=32 model.context_length=32 tokenizer=char data=stories data.size_mb=0.2 "
    "device=cpu precision=fp32 train.batch_tokens=512 train.micro_batch_size=16 train.max_steps=12 train.log_every=1 "
    "train.val_every=6 train.val_tokens=1000 train.save_every=4 train.sample_every=6 train.sample_tokens=8 "
    "schedule.warmup_steps=3 optimizer.lr=3e-3",
    "sft": "init_from=base data=instruct data.val_fraction=0.2 device=cpu precision=fp32 train.batch_tokens=2048 "
    "train.micro_batch_size=8 train.max_steps=12 train.log_every=1 train.val_every=6 train.val_tokens=1000 "
    "train.save_every=4 train.sample_every=6 train.sample_tokens=8 schedule.warmup_steps=3 optimizer.lr=1e-3 "
    "sft.replay_ratio=0",
}
MODERN = (
    "model.position=rope model.norm=rmsnorm model.activation=swiglu model.qk_norm=true model.smear=true "
    "model.n_kv_head=2 model.tie_embeddings=false model.bias=true"
)


@dataclass(frozen=True)
class Recipe:
    """Describe a run: the command that trains it, and its settings in addition to the common settings.

    With `stop_at`, the run is stopped at this step and continued with the same command. `needs` names the recipes that must
    have been run before this one.
    """

    command: str
    settings: str
    stop_at: int | None = None
    needs: tuple[str, ...] = ()

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of the command that trains the run `name`."""
        return [*SHARED[self.command].split(), *self.settings.split(), f"name={name}"]


RECIPES = {
    "plain": Recipe("train", ""),
    "dropout": Recipe("train", "model.dropout=0.1 train.micro_batch_size=4"),
    "document_mask": Recipe("train", "data.document_mask=true train.micro_batch_size=4"),
    "long_windows": Recipe("train", "data.document_mask=true data.window_tokens=256 train.micro_batch_size=1"),
    "windows": Recipe("train", "data.packing=windows"),
    "sliding_window": Recipe("train", "model.window=8"),
    "modern": Recipe("train", MODERN),
    "sinusoidal": Recipe("train", "model.position=sinusoidal model.activation=relu2 model.d_ff=96"),
    "swish": Recipe("train", "model.activation=swish model.norm=rmsnorm train.grad_clip=0.1"),
    "linear": Recipe("train", "schedule=linear optimizer.weight_decay=0.3 seed=1"),
    "constant": Recipe("train", "schedule=constant optimizer.betas=[0.8,0.99]"),
    "trapezoid": Recipe("train", "schedule=trapezoid optimizer=muon"),
    "mean": Recipe("train", "schedule=linear schedule.average_share=0.15", stop_at=6),
    "muon_embeddings": Recipe("train", "optimizer=muon_embeddings model.tie_embeddings=false"),
    "bf16": Recipe("train", "precision=bf16 model.context_length=64 model.position=rope model.norm=rmsnorm"),
    "monitors": Recipe("train", "monitor=all"),
    "continued": Recipe("train", "model.dropout=0.1 train.micro_batch_size=4 optimizer=muon", stop_at=6),
    "base": Recipe(
        "train",
        "tokenizer=spm_2k tokenizer.vocab_size=600 model.context_length=256 train.batch_tokens=2048 model.dropout=0.1",
    ),
    "sft": Recipe("sft", "", needs=("base",)),
    "sft_lora": Recipe("sft", "sft.lora.rank=4 train.micro_batch_size=2", needs=("base",)),
    "sft_packing": Recipe("sft", "sft.packing=true", needs=("base",)),
    "sft_replay": Recipe("sft", "sft.replay_ratio=0.25", stop_at=6, needs=("base",)),
}
HANDED_OVER = ("continued", "sft_replay")  # started by the first commit, continued by the second


def git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=PROJECT, check=True, capture_output=True, encoding="utf-8")
    return result.stdout.strip()


def fingerprint() -> str:
    """Return a hash of everything that the bits depend on besides the code: processor, version of torch, recipes."""
    import torch

    cpu = next((line for line in _cpu_lines() if line.startswith("model name")), platform.processor())
    table = repr(sorted(RECIPES.items())) + repr(SHARED)
    return hashlib.sha256(f"{cpu} {torch.__version__} {table}".encode()).hexdigest()[:12]


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []


def start(tree: Path, folder: Path, command: str, arguments: list[str]) -> None:
    """Run a command of the code in `tree` with `folder` as working directory.

    Raises SystemExit, with the output of the command, if the command fails.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-m", f"positron.{command}", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        sys.exit(
            f"positron.{command} {' '.join(arguments)} in {tree} ended with exit code {result.returncode}:\n{output}"
        )


def trace(run: Path) -> dict[str, Any]:
    """Return the trace of a run: the numbers of metrics.jsonl that are compared, and a hash of the weights."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {key: value for key, value in json.loads(line).items() if not key.startswith(NOT_COMPARED)} for line in lines
    ]
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run / "model" / "weights.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return {"rows": rows, "weights": digest.hexdigest()}


def run_recipe(name: str, trees: tuple[Path, Path], folder: Path) -> dict[str, Any]:
    """Run recipe `name` and return its trace.

    If the recipe has `stop_at`, the first tree trains until then, and the second tree continues; otherwise the second tree
    trains the whole run.
    """
    recipe = RECIPES[name]
    for needed in recipe.needs:
        if not (folder / "outputs" / needed / "run.json").exists():
            run_recipe(needed, (trees[0], trees[0]), folder)
    arguments = recipe.arguments(name)
    if recipe.stop_at is not None:
        start(trees[0], folder, recipe.command, [*arguments, f"train.stop_at={recipe.stop_at}"])
    start(trees[1], folder, recipe.command, arguments)
    return trace(folder / "outputs" / name)


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe the first difference between two traces; return "" if they are equal."""
    for a, b in zip(old["rows"], new["rows"], strict=False):
        for key in [*a, *(key for key in b if key not in a)]:
            x, y = a.get(key), b.get(key)
            both_nan = isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y)
            if x != y and not both_nan:
                return f"step {a.get('step')}: {key} is {x} and {y}"
    if len(old["rows"]) != len(new["rows"]):
        return f"{len(old['rows'])} and {len(new['rows'])} rows"
    return "" if old["weights"] == new["weights"] else "the final weights"


class Checkout:
    """Check out the commit `name` into a folder below `places`, or use the working tree, and compute the traces of its code.

    Each trace is computed only once.
    """

    def __init__(self, name: str, places: Path) -> None:
        self.sha = None if name == WORKING_TREE else git("rev-parse", "--verify", f"{name}^{{commit}}")
        self.label = WORKING_TREE if self.sha is None else self.sha[:9]
        self.tree = PROJECT
        self.folder = places / f"runs-{self.label.replace(' ', '-')}"
        self.folder.mkdir()
        if self.sha is not None:
            self.tree = places / f"tree-{self.label}"
            git("worktree", "add", "--quiet", "--detach", str(self.tree), self.sha)
        self._stored = TRACES / f"{self.sha}-{fingerprint()}.json"
        self._traces: dict[str, dict[str, Any]] = {}
        if self.sha is not None and self._stored.exists():
            self._traces = json.loads(self._stored.read_text(encoding="utf-8"))

    def trace(self, name: str) -> dict[str, Any]:
        if name not in self._traces:
            self._traces[name] = run_recipe(name, (self.tree, self.tree), self.folder)
            if self.sha is not None:
                TRACES.mkdir(parents=True, exist_ok=True)
                self._stored.write_text(json.dumps(self._traces), encoding="utf-8", newline="\n")
        return self._traces[name]

    def close(self) -> None:
        if self.sha is not None:
            git("worktree", "remove", "--force", str(self.tree))


def compare(old: Checkout, new: Checkout, names: list[str], folder: Path) -> int:
    """Print one line per recipe; return the number of traces that differ."""
    width = max(len(name) for name in RECIPES) + len(" (handed over)")
    differing = 0
    for name in names:
        reference = old.trace(name)
        results = [(name, new.trace(name))]
        if name in HANDED_OVER:
            results.append((f"{name} (handed over)", run_recipe(name, (old.tree, new.tree), folder)))
        for label, result in results:
            deviation = difference(reference, result)
            differing += bool(deviation)
            same = f"identical, last loss {reference['rows'][-1]['train/loss']:.6f}"
            print(f"{label:<{width}}  {f'DIFFERENT: {deviation}' if deviation else same}", flush=True)
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("old", help="first commit, branch or tag")
    parser.add_argument(
        "new", nargs="?", default=WORKING_TREE, help="second commit, branch or tag (default: the working tree)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(RECIPES),
        metavar="RECIPE",
        help=f"run only this recipe; may be repeated. Recipes: {', '.join(RECIPES)}",
    )
    options = parser.parse_args()
    places = Path(tempfile.mkdtemp(prefix="compare_commits."))
    sides: list[Checkout] = []
    try:
        sides += [Checkout(options.old, places)]
        sides += [Checkout(options.new, places)]
        handed_over = places / "handed-over"
        handed_over.mkdir()
        print(f"{sides[0].label} and {sides[1].label}")
        differing = compare(sides[0], sides[1], options.only or list(RECIPES), handed_over)
    except subprocess.CalledProcessError as error:
        sys.exit(f"compare_commits: {' '.join(map(str, error.cmd))}: {error.stderr.strip()}")
    finally:
        for side in sides:
            side.close()
        shutil.rmtree(places, ignore_errors=True)
    if differing:
        sys.exit(f"{differing} traces differ")


if __name__ == "__main__":
    main()
