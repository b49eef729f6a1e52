"""Training on the stand-in for Apple's GPU: it refuses nothing, and the host waits for it only where a step is logged.

A wait is named "file:line operator". Of the four steps of each run, the first one shows a line on the screen, the third one
is written to metrics.jsonl, and the last one is not looked at, because it also validates and saves.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import lightning as L
import pytest
import stand_in
from conftest import tiny
from model_variants import OPTIMIZERS
from stand_in import Waits
from tuning import chat_base, pairs_of, tuned

from positron.config import (
    DeviceConfig,
    DistillConfig,
    LoraConfig,
    MonitorConfig,
    PrecisionConfig,
    PreferenceConfig,
    PreferenceLoss,
    ReinforceConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
)
from positron.distill import distill
from positron.prefer import prefer
from positron.reinforce import reinforce
from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.sft import sft
from positron.train import train

STEPS, LOGGED = 4, 3
SHOWN_WAITS, LOGGED_WAITS = 1, 3  # the loss; the loss, the norm of the gradient, and the number of skipped steps
MONITOR_WAITS = 21  # of all monitors, for a model of two layers; they measure every 100 steps
RARELY = {f"{what}_every": 1000 for what in ("val", "save", "sample")} | {"val_tokens": 200, "sample_tokens": 2}


class Steps(L.Callback):
    """Collect the waits of each step, from its beginning to that of the next one."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.by_step = waits, {}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step:
            self.by_step[trainer.global_step] = dict(self.waits)
        self.waits.clear()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return stand_in.use(monkeypatch)


def waits_of(
    run: Callable[..., Any], config: RunConfig, precision: str, folder: Path, waits: Waits
) -> dict[int, dict[str, int]]:
    """Train on the stand-in, and return the waits of the first steps."""
    times = dataclasses.replace(config.train, max_steps=STEPS, log_every=LOGGED, **RARELY)
    config = dataclasses.replace(config, device=DeviceConfig("mps"), precision=PrecisionConfig(precision), train=times)
    steps = Steps(waits)
    assert run(config, folder, [steps]).status == "finished"
    assert list(steps.by_step) == list(range(1, STEPS))
    return steps.by_step


def expect(by_step: dict[int, dict[str, int]], each: dict[str, int], terms: int = 0) -> None:
    """Compare the waits of steps with those that each step has, and with those of showing and logging it.

    `terms`: number of the terms of the loss that are logged besides the loss.
    """
    assert by_step[2] == each
    assert sum(by_step[1].values()) == sum(each.values()) + SHOWN_WAITS, by_step[1]
    assert sum(by_step[LOGGED].values()) == sum(each.values()) + LOGGED_WAITS + terms, by_step[LOGGED]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), zip(OPTIMIZERS, ("bf16", "fp32", "bf16"), strict=True))
def test_only_an_optimizer_that_is_not_fused_waits(kind: str, precision: str, tmp_path: Path, waits: Waits) -> None:
    by_step = waits_of(train, tiny(tmp_path, optimizer=OPTIMIZERS[kind]), precision, tmp_path / "run", waits)
    line = next(iter(by_step[2]), "")
    assert line.startswith("training/module.py:") == (kind == "custom")  # it asks whether the gradient is finite
    expect(by_step, {line: 1} if line else {})


@pytest.mark.slow
def test_the_losses_are_those_of_the_cpu(tmp_path: Path, waits: Waits) -> None:
    settings = tiny(
        tmp_path, optimizer=OPTIMIZERS["muon"], train__log_every=1, train__max_steps=5, train__val_tokens=500
    )
    for name in ("cpu", "mps"):
        train(dataclasses.replace(settings, device=DeviceConfig(name)), tmp_path / name)
    here, there = (read_metrics(Run(tmp_path / name).metrics_path) for name in ("cpu", "mps"))
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        values = [[row[key] for row in rows if key in row] for rows in (here, there)]
        assert len(values[0]) >= 1
        assert values[1] == pytest.approx(values[0], rel=2e-3), key  # Muon's products are in bf16


@pytest.mark.slow
def test_monitors_wait_only_in_the_steps_that_they_measure(tmp_path: Path, waits: Waits) -> None:
    monitors = MonitorConfig(LOGGED, gradients=True, weights=True, attention=True, activations=True, tokens=True)
    by_step = waits_of(train, tiny(tmp_path, monitor=monitors), "bf16", tmp_path / "run", waits)
    assert by_step[2] == {}
    assert sum(by_step[LOGGED].values()) == MONITOR_WAITS + LOGGED_WAITS, by_step[LOGGED]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that chats without having learned it, conversations, and pairs of answers."""
    return chat_base(tmp_path_factory.mktemp("base"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learning_from_teachers_waits_for_nothing(precision: str, base: Path, tmp_path: Path, waits: Waits) -> None:
    teacher, other = base / "base", tmp_path / "other"
    shutil.copytree(teacher, other)
    config = tiny(base, model__context_length=64, distill=DistillConfig((str(teacher), str(other))))
    expect(waits_of(distill, config, precision, tmp_path / "run", waits), {}, terms=2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "precision"), [(0, "fp32"), (2, "bf16")])
def test_fine_tuning_waits_for_nothing(rank: int, precision: str, base: Path, tmp_path: Path, waits: Waits) -> None:
    settings = SFTConfig(replay_ratio=0.2, patience=0, packing=rank > 0, lora=LoraConfig(rank=rank))
    expect(waits_of(sft, tuned(base, sft=settings), precision, tmp_path / "run", waits), {})


@pytest.mark.slow
@pytest.mark.parametrize(("number", "loss"), enumerate(get_args(PreferenceLoss)))
def test_learning_from_pairs_waits_for_nothing(
    number: int, loss: str, base: Path, tmp_path: Path, waits: Waits
) -> None:
    config = tuned(base, sft=None, preference=PreferenceConfig(loss), data=pairs_of(base))
    expect(waits_of(prefer, config, ("fp32", "bf16")[number % 2], tmp_path / "run", waits), {})


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "precision", "kl"), [("fp32", "fp32", 0.1), ("int8", "bf16", 0.0)])
def test_learning_from_rewards_waits_once_a_token_and_for_the_ratio_of_two_precisions(
    weights: str, precision: str, kl: float, base: Path, tmp_path: Path, waits: Waits
) -> None:
    sizes = {"prompts": 2, "samples": 4, "max_tokens": 5, "val_prompts": 1, "val_samples": 2}
    config = tuned(
        base,
        sft=None,
        reinforce=ReinforceConfig(**sizes, weights=weights, kl=kl),
        reward=RewardConfig("custom", function="own_rewards.short"),
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=8 * 64))
    by_step = waits_of(reinforce, config, precision, tmp_path / "run", waits)
    of_tokens = [count for line, count in by_step[2].items() if line.startswith("inference/rollouts.py")]
    assert of_tokens == [sizes["max_tokens"]]
    assert sum(by_step[2].values()) == sizes["max_tokens"] + (weights != precision), by_step[2]
