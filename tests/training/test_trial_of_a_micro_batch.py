"""The trial of a micro-batch needs as much memory as a step: it computes the loss of the training, with its mask.

The device is the stand-in for Apple's GPU. What only this loss computes runs out of memory with more than two sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in
import torch
from conftest import tiny
from tuning import chat_base, tuned

from positron.config import (
    DeviceConfig,
    DistillConfig,
    PrecisionConfig,
    ReinforceConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
)
from positron.distill import distill
from positron.model import gpt
from positron.reinforce import reinforce
from positron.run.folder import Run
from positron.sft import sft
from positron.train import train
from positron.training import tuning
from positron.training.objective import distill as distillation
from positron.training.objective import reinforce as policy

FITS = 2  # sequences
CONTEXT = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.use(monkeypatch)


def let_run_out(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, rows_of: Callable[..., int]) -> None:
    """Let a function run out of memory if `rows_of` its arguments is more than FITS and the gradient is computed."""
    original = getattr(module, name)

    def limited(*arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and rows_of(*arguments, **options) > FITS:
            raise torch.OutOfMemoryError
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, limited)


def micro_batch_of(run: Callable[..., Any], config: RunConfig, folder: Path) -> int:
    steps = dataclasses.replace(config.train, max_steps=1, micro_batch_size="auto", sample_tokens=2, val_tokens=200)
    assert run(
        dataclasses.replace(config, device=DeviceConfig("mps"), precision=PrecisionConfig("fp32"), train=steps), folder
    )
    return Run(folder).resolved().micro_batch_size


def test_with_the_mask_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_run_out(monkeypatch, gpt, "document_mask", lambda documents, window: len(documents))
    assert micro_batch_of(train, tiny(tmp_path, data__document_mask=True), tmp_path / "run") == FITS


def test_with_windows_longer_than_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_run_out(monkeypatch, gpt, "document_mask", lambda documents, window: documents.numel() // 64)
    config = tiny(tmp_path, data__document_mask=True, data__window_tokens=64)
    assert micro_batch_of(train, config, tmp_path / "run") == FITS


@pytest.mark.slow
def test_of_fine_tuning_with_the_mask_of_the_base_run(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "is_trained_inside_documents", lambda run: True)
    let_run_out(monkeypatch, gpt, "document_mask", lambda documents, window: len(documents))
    assert micro_batch_of(sft, tuned(base, sft=SFTConfig(replay_ratio=0.2, patience=0)), tmp_path / "run") == FITS


@pytest.mark.slow
def test_of_distillation_with_the_logits_of_the_teachers(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_run_out(monkeypatch, distillation, "linear_distillation", lambda x, *_: len(x) // CONTEXT)
    config = tiny(base, model__context_length=CONTEXT, distill=DistillConfig((str(base / "base"),)))
    assert micro_batch_of(distill, config, tmp_path / "run") == FITS


@pytest.mark.slow
def test_of_answers_with_their_logits(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_run_out(monkeypatch, policy, "_logits", lambda model, x, *_: len(x))
    sizes = ReinforceConfig(prompts=2, samples=4, max_tokens=5, val_prompts=1, val_samples=2, kl=0.1)
    config = tuned(base, sft=None, reinforce=sizes, reward=RewardConfig("custom", function="own_rewards.short"))
    batch = dataclasses.replace(config.train, batch_tokens=8 * CONTEXT)
    assert micro_batch_of(reinforce, dataclasses.replace(config, train=batch), tmp_path / "run") == FITS
