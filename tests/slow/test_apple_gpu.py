"""Apple's GPU itself, where there is one: CI runs this on a virtual Mac, whose GPU has about 1 GB.

tests/stand_in.py shows on any machine that nothing is refused; wrong numbers of a device are seen only here.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from model_variants import MODELS, PLAIN

from positron.config import DeviceConfig, PrecisionConfig
from positron.model.gpt import GPT, document_numbers
from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.backends.mps.is_available(), reason="this machine has no Apple GPU"),
]


def losses(folder: Path, device: str, precision: str) -> list[float]:
    settings = tiny(folder, train__max_steps=20, train__val_every=20)
    config = dataclasses.replace(settings, device=DeviceConfig(device), precision=PrecisionConfig(precision))
    train(config, folder / f"{device}-{precision}")
    return [row["train/loss"] for row in read_metrics(Run(folder / f"{device}-{precision}").metrics_path)]


def test_20_steps_have_the_losses_of_the_cpu(tmp_path: Path) -> None:
    exact = losses(tmp_path, "cpu", "fp32")
    assert len(exact) == 20
    assert losses(tmp_path, "mps", "fp32") == pytest.approx(exact, rel=2e-3)
    assert losses(tmp_path, "mps", "bf16") == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_every_option_is_that_of_the_cpu(name: str) -> None:
    here = GPT(MODELS[name]).eval()
    there = copy.deepcopy(here).to("mps")
    rows = torch.randint(PLAIN.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    for model in (here, there):
        x, y = (part.to(model.wte.weight.device) for part in (rows[:, :-1], rows[:, 1:]))
        (model(x, y) + model(x, y, document_numbers(x, 3))).backward()
    largest = max(float(p.grad.abs().max()) for p in here.parameters())
    for (path, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert float((q.grad.cpu() - p.grad).abs().max()) <= 1e-4 * largest, path


def test_50_steps_of_the_quickstart_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    settings = ("experiment=quickstart", "device=mps", "train.max_steps=50", "schedule.warmup_steps=5")
    command = [sys.executable, "-m", "positron.train", *settings, f"data.dir={tmp_path / 'data'}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1200)
    rows = read_metrics(Run(tmp_path / "outputs" / "quickstart").metrics_path)
    assert rows[-1]["step"] == 50
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert max(row["memory/peak_gb"] for row in rows) < 1
