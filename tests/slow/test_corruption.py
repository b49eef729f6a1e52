"""Random damage to run folders: no command fails with a traceback, hangs, or gives another result without a word.

150 seeded corruptions of one byte over all files of a pretraining run and of an SFT run, and 30 over their records, five
commands each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, CommandProcess, Result

from positron.dashboard.table import Outputs

CORRUPTIONS = int(os.environ.get("POSITRON_CORRUPTIONS", "150"))
PATIENCE_S = 240  # a guard against hanging: a command takes a few seconds
COMMON = (
    "train.val_every=6",
    "train.save_every=6",
    "train.log_every=2",
    "schedule.warmup_steps=2",
    "train.sample_every=6",
    "device=cpu",
)
TRAIN = (*FAST, *COMMON, "name=base", "train.max_steps=18")
SFT = (
    *COMMON,
    "name=talk",
    "init_from=base",
    "data=instruct",
    "train.max_steps=12",
    "train.batch_tokens=512",
    "train.val_tokens=1000",
    "train.sample_tokens=8",
    "precision=fp32",
)


SAMPLES = {"base": 2, "talk": 1}  # that they have written when they are stopped


def call(folder: Path, name: str, *arguments: str) -> Result:
    return CommandProcess(name, arguments, folder, "", {}).wait(PATIENCE_S)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretraining run and an SFT run, each stopped before its end, and a text to measure on."""
    folder = tmp_path_factory.mktemp("intact")
    (folder / "text.txt").write_text("Once upon a time there was a cat.\nThe cat sat.\n" * 30)
    for name, settings in (("train", (*TRAIN, "train.stop_at=12")), ("sft", (*SFT, "train.stop_at=6"))):
        result = call(folder, name, *settings)
        assert result.code == 0, result.err
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*.ckpt"))[-1]
    return torch.load(newest, weights_only=True)["state_dict"]


def continue_run(folder: Path, run: str) -> tuple[Result, Any]:
    result = call(folder, *(("train", *TRAIN) if run == "base" else ("sft", *SFT)))
    if result.code:
        return result, None
    return result, {name: tensor.tolist() for name, tensor in weights(folder / "outputs" / run).items()}


def evaluate(folder: Path, run: str) -> tuple[Result, Any]:
    result = call(folder, "evaluate", "--run", run, "--text", "text.txt", "--json")
    return result, json.loads(result.out)["bpb"] if result.code == 0 else None


def compare(folder: Path, run: str) -> tuple[Result, Any]:
    result = call(folder, "compare", run, "--text", "text.txt", "--json", "--max-tokens", "8")
    return result, result.out


def write(folder: Path, run: str) -> tuple[Result, Any]:
    if run == "base":
        result = call(folder, "generate", "Once", "--run", run, "--max-tokens", "8", "--seed", "1")
    else:
        result = call(folder, "chat", "Who are you?", "--run", run, "--max-tokens", "8", "--seed", "1")
    return result, result.out


def table(folder: Path, run: str) -> tuple[Result, Any]:
    """The rows must be there; what history they show is not protected by a checksum."""
    outputs = Outputs(folder / "outputs")
    rows, samples = outputs.rows(), outputs.samples(run)
    json.dumps([rows, samples], allow_nan=False)
    said = [note for row in rows for note in row["notes"]]
    if len(samples) != SAMPLES[run]:
        said += [sample["text"] for sample in samples]
    return Result(0, "", " ".join(said)), (sorted(row["id"] for row in rows), len(samples))


COMMANDS: tuple[Callable[[Path, str], tuple[Result, Any]], ...] = (evaluate, compare, write, table, continue_run)


@pytest.fixture(scope="module")
def undamaged(intact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    results = {}
    for run in ("base", "talk"):
        folder = tmp_path_factory.mktemp(f"undamaged-{run}") / "copy"
        shutil.copytree(intact, folder)
        for command in COMMANDS:
            result, value = command(folder, run)
            assert result.code == 0, result.err
            results[run, command.__name__] = value
    return results


def corrupt(folder: Path, rng: random.Random, pattern: str) -> tuple[Path, int]:
    """Change one byte of a file drawn from all of this name that are not empty."""
    path = rng.choice(sorted(p for p in folder.rglob(pattern) if p.is_file() and p.stat().st_size))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    return path, place


def faults_of(result: Result, value: Any, expected: Any, path: Path) -> list[str]:
    faults = []
    if "Traceback" in result.err + result.out:
        faults.append("traceback")
    if result.code not in (0, 2):
        faults.append(f"exit code {result.code}")
    if result.code == 2 and result.err.count("positron: ") != 1:
        faults.append("not one line")
    if result.code == 0 and value != expected and path.name not in result.err:
        faults.append("another result without a word")
    return faults


RECORDS = ("samples.jsonl", "metrics.jsonl", "run.json")  # small beside weights and pictures, and read the most
CASES = [(seed, "*") for seed in range(CORRUPTIONS)]
CASES += [(2000 + seed, RECORDS[seed % len(RECORDS)]) for seed in range(CORRUPTIONS // 5)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "pattern"), CASES)
def test_one_damaged_byte_is_named_or_changes_nothing(
    seed: int, pattern: str, intact: Path, undamaged: dict[tuple[str, str], Any], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    run = "base" if seed % 2 else "talk"
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    path, place = corrupt(folder / "outputs" / run, rng, pattern)
    found = []
    for command in COMMANDS:
        result, value = command(folder, run)
        for fault in faults_of(result, value, undamaged[run, command.__name__], path):
            found.append(f"{command.__name__}: {fault}: {result.err[-600:]}")
    shutil.rmtree(folder)
    assert not found, f"{path.relative_to(folder)} byte {place}: " + "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(max(1, CORRUPTIONS // 10)))
def test_a_file_that_is_cut_off_or_zeroed_is_named_or_changes_nothing(
    seed: int, intact: Path, undamaged: dict[tuple[str, str], Any], tmp_path: Path
) -> None:
    """What a power cut leaves on a file system without a journal of data."""
    rng = random.Random(1000 + seed)
    run = "base" if seed % 2 else "talk"
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    path = rng.choice(sorted(p for p in (folder / "outputs" / run).rglob("*") if p.is_file() and p.stat().st_size))
    content = path.read_bytes()
    cut = rng.randrange(len(content))
    how = rng.choice(("cut off", "zeroed"))
    path.write_bytes(content[:cut] + (b"\0" * (len(content) - cut) if how == "zeroed" else b""))
    found = []
    for command in COMMANDS:
        result, value = command(folder, run)
        for fault in faults_of(result, value, undamaged[run, command.__name__], path):
            found.append(f"{command.__name__}: {fault}: {result.err[-600:]}")
    shutil.rmtree(folder)
    assert not found, f"{path.relative_to(folder)} {how} at {cut}: " + "\n".join(found)
