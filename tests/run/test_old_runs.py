"""A run folder written by commit 9adde6f: this version loads it, chats with it, evaluates it and continues it.

`tests/old_runs/written_by_9adde6f` was stopped at step 8 of 16 (Muon, dropout, character tokenizer, float32, two
threads). `written_by_9adde6f.metrics.jsonl` are the rows that commit wrote when it continued the run to its end.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from traces import trace, weights

import positron
from positron.run.paths import RunPaths
from positron.run.provenance import read_provenance
from positron.run.samples import read_samples

NAME = "written_by_9adde6f"
STORED = PROJECT / "tests" / "old_runs"
COMMAND = (
    "model=debug model.d_model=16 model.n_layer=1 model.n_head=2 model.context_length=32 model.dropout=0.1 "
    "tokenizer=char data.size_mb=0.2 device=cpu precision=fp32 train.max_steps=16 train.batch_tokens=512 "
    "train.micro_batch_size=16 train.log_every=1 train.val_every=4 train.save_every=4 train.keep_last=1 "
    "train.val_tokens=1000 train.sample_every=8 train.sample_tokens=8 schedule.warmup_steps=3 optimizer=muon "
    "optimizer.lr=3e-3"
)


@pytest.fixture
def old_run(tmp_path) -> Path:
    folder = tmp_path / "outputs" / NAME
    shutil.copytree(STORED / NAME, folder)
    return folder


def expected_trace(folder: Path) -> list[tuple]:
    """The rows of the old commit, read as a run folder is."""
    folder.mkdir()
    shutil.copy(STORED / f"{NAME}.metrics.jsonl", folder / "metrics.jsonl")
    return trace(folder)


def test_the_old_run_is_small_enough_to_keep():
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) <= 300_000


def test_the_old_run_loads_and_writes(old_run):
    writer = positron.load(str(old_run))
    text = writer.generate("Once", max_tokens=5, temperature=0)
    assert text == writer.generate("Once", max_tokens=5, temperature=0)
    assert len(text) > len("Once")


def test_the_old_run_chats(old_run, run_command):
    result = run_command("chat", "Once upon a time", "--run", NAME, "--max-tokens", "5", "--temperature", "0")
    assert result.code == 0, result.err
    assert result.out.strip()


def test_the_old_run_evaluates_to_the_score_that_it_stored(old_run, run_command):
    result = run_command("evaluate", "--run", NAME)
    assert result.code == 0, result.err
    assert "5.7" in result.out  # bits per byte on all of its validation text; 5.7495 on the 1,000 tokens of training


@pytest.mark.slow
def test_evaluating_a_run_loads_neither_lightning_nor_hydra(old_run, tmp_path):
    code = (
        f"import sys; sys.argv = ['evaluate', '--run', {NAME!r}]\nfrom positron import evaluate\nevaluate.main()\n"
        "heavy = {'lightning', 'hydra'} & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# since 2026-11-29, dropout draws other masks from the same seed
OLD_DROPOUT = """
import sys
from torch.nn import functional as F
from positron.model.kernels import attention, dropout
faster = attention.blocked_is_faster
attention.blocked_is_faster = lambda q, visible, p=0.0: p == 0 and faster(q, visible)
dropout.Dropout.forward = lambda self, x: F.dropout(x, self.p, self.training)
from positron import train
train.main()
"""


def train_with_old_dropout(folder: Path, name: str) -> None:
    command = [sys.executable, "-c", OLD_DROPOUT, *COMMAND.split(), f"name={name}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_old_run_continues_with_the_bits_of_the_commit_that_began_it(old_run, tmp_path):
    expected = expected_trace(tmp_path / "expected")
    train_with_old_dropout(tmp_path, NAME)
    assert [start["step"] for start in read_provenance(old_run)["starts"]] == [0, 8]
    samples = read_samples(RunPaths(old_run))
    assert [sample.step for sample in samples] == [8, 16]
    assert samples[0] == read_samples(RunPaths(STORED / NAME))[0]  # from Markdown, which is all that version wrote
    continued = trace(old_run)
    train_with_old_dropout(tmp_path, "fresh")
    if trace(tmp_path / "outputs" / "fresh") == expected:
        # a processor that rounds like the one of the old commit: the continuation must not differ in one bit
        assert continued == expected
        theirs, ours = weights(tmp_path / "outputs" / "fresh"), weights(old_run)
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    for row, wanted in zip(continued, expected, strict=True):
        numbers = [(a, b) for a, b in zip(row, wanted, strict=True) if b is not None]
        assert [a for a, _ in numbers] == pytest.approx([b for _, b in numbers], rel=1e-4)
