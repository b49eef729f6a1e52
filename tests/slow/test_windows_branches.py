"""The code for Windows, with imitated system calls, trains, continues and writes what the code for this system does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST, PATIENCE, PROJECT
from traces import same

LIBRARIES = (  # what positron imports only when it is needed
    *("lightning.pytorch.strategies", "torch.utils.tensorboard", "torch._dynamo", "sentencepiece", "tiktoken", "tqdm"),
    *("hydra.main", "hydra._internal.hydra", "hydra._internal.core_plugins.basic_launcher", "omegaconf.grammar_parser"),
    *("hydra._internal.core_plugins.basic_sweeper", "hydra.core.override_parser.overrides_parser", "safetensors.torch"),
    *("matplotlib.pyplot", "pyarrow.parquet", "scipy.stats", "jinja2", "numba", "llvmlite.binding", "prompt_toolkit"),
)
PROGRAM = f"""
import importlib, sys
from windows import become_windows
become_windows({LIBRARIES})
name = sys.argv[1]
sys.argv = ["positron/" + name + ".py", *sys.argv[2:]]
importlib.import_module("positron." + name).main()
"""


def as_windows(folder: Path, *words: str) -> str:
    """Run a command in a process that becomes Windows; return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PROJECT, PROJECT / "tests")))}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_code_for_windows_trains_the_same_weights(tmp_path, run_command):
    words = (
        "model=debug",
        *FAST,
        "train.max_steps=12",
        "train.val_every=6",
        "device=cpu",
        "precision=fp32",
        "name=run",
    )
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    for more in (["train.stop_at=6"], []):
        assert run_command("train", *words, *more, folder=here).code == 0
        as_windows(there, "train", *words, *more)
    assert same(there / "outputs" / "run", here / "outputs" / "run")
    answer = ("generate", "Once upon a time", "--run", "run", "--max-tokens", "20", "--temperature", "0")
    assert as_windows(there, *answer).splitlines() == run_command(*answer, folder=here).out.splitlines()
    assert "bits per byte" in as_windows(there, "evaluate", "--run", "run")
