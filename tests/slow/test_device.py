"""A device against the CPU: `make test-device DEVICE=cuda`, or mps.

tests/stand_in.py shows on any machine that an accelerator refuses nothing; wrong numbers of a device are seen only here.
DEVICE=cpu compares the CPU with itself, which tries the tests. Without `--device` they run on a GPU, if there is one.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import lightning as L
import pytest
import torch
from conftest import tiny
from interop.saved_runs import char
from model_variants import MODELS, OPTIMIZERS, PLAIN, decisive_model
from traces import same
from tuning import chat_base, pairs_of, tuned

from positron.config import (
    Accelerator,
    DeviceConfig,
    DistillConfig,
    LoraConfig,
    MonitorConfig,
    PrecisionConfig,
    PreferenceConfig,
    ReinforceConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
)
from positron.distill import distill
from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.model.gpt import GPT, document_numbers
from positron.prefer import prefer
from positron.reinforce import reinforce
from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.sft import sft
from positron.train import train

pytestmark = pytest.mark.slow


def chosen_device(asked: str | None) -> str:
    """Return the device to compare with the CPU; `asked` is that of the command line. Without one, skip the test."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert set(present) == set(get_args(Accelerator))
    chosen = asked or next(name for name, is_present in present.items() if is_present)
    if asked is None and chosen == "cpu":
        pytest.skip("this machine has no device to compare with the CPU")
    if not present[chosen]:
        there = " or ".join(f"DEVICE={name}" for name, is_present in present.items() if is_present)
        pytest.exit(f"nothing was tested: PyTorch finds no {chosen.upper()} device; give {there}", returncode=1)
    return chosen


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Any:
    return chosen_device(request.config.getoption("--device"))


def test_a_device_that_is_asked_for_and_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        pytest.exit.Exception, match="nothing was tested: PyTorch finds no CUDA device; give DEVICE=cpu"
    ):
        chosen_device("cuda")
    with pytest.raises(pytest.skip.Exception):
        chosen_device(None)
    assert chosen_device("cpu") == "cpu"


def on(device: Any, config: RunConfig, precision: Any = "fp32") -> RunConfig:
    return dataclasses.replace(config, device=DeviceConfig(device), precision=PrecisionConfig(precision))


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(Run(folder).metrics_path) if row["step"]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_20_steps_have_the_losses_of_the_cpu(device: Any, optimizer: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=20, train__val_every=20, optimizer=OPTIMIZERS[optimizer])
    for name, precision, share in (("cpu", "fp32", None), (device, "fp32", 2e-3), (device, "bf16", 2e-2)):
        folder = tmp_path / f"{name}-{precision}-{share}"
        train(on(name, config, precision), folder)
        if share is None:
            exact = losses(folder)
            assert len(exact) == 20
        else:
            assert losses(folder) == pytest.approx(exact, rel=share)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_every_option_is_that_of_the_cpu(device: Any, name: str) -> None:
    here = GPT(MODELS[name]).eval()
    there = copy.deepcopy(here).to(device)
    rows = torch.randint(PLAIN.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    for model in (here, there):
        x, y = (part.to(model.wte.weight.device) for part in (rows[:, :-1], rows[:, 1:]))
        (model(x, y) + model(x, y, document_numbers(x, 3))).backward()
    largest = max(float(p.grad.abs().max()) for p in here.parameters())
    for (path, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert float((q.grad.cpu() - p.grad).abs().max()) <= 1e-4 * largest, path


@pytest.mark.parametrize("name", MODELS)
def test_no_token_sees_a_later_one(device: Any, name: str) -> None:
    model = GPT(MODELS[name]).eval().to(device)
    x = torch.randint(PLAIN.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0)).to(device)
    changed = x.clone()
    changed[0, 9:] = (x[0, 9:] + 1) % PLAIN.vocab_size
    with torch.no_grad():
        a, b = (torch.nn.functional.linear(model.hidden(ids), model.head_weight).cpu() for ids in (x, changed))
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=0, atol=1e-5)
    assert not torch.allclose(a[:, 9:], b[:, 9:], rtol=0, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_pieces_is_bit_identical_to_one_in_one_piece(device: Any, precision: str, tmp_path: Path) -> None:
    config = on(
        device, tiny(tmp_path, train__max_steps=20, train__val_every=5, optimizer=OPTIMIZERS["muon"]), precision
    )
    train(config, tmp_path / "whole")
    for stop in (5, 15, None):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop))
        train(part, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that chats without having learned it, conversations, and pairs of answers."""
    return chat_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("rank", [0, 2])
def test_fine_tuning_has_the_losses_of_the_cpu(device: Any, rank: int, base: Path, tmp_path: Path) -> None:
    settings = SFTConfig(replay_ratio=0.2, patience=0, lora=LoraConfig(rank=rank))
    for name in ("cpu", device):
        sft(on(name, tuned(base, sft=settings)), tmp_path / name)
    assert losses(tmp_path / device) == pytest.approx(losses(tmp_path / "cpu"), rel=2e-3)


@pytest.mark.parametrize(("precision", "share"), [("fp32", 2e-3), ("bf16", 2e-2)])
def test_learning_from_teachers_has_the_losses_of_the_cpu(
    device: Any, precision: str, share: float, base: Path, tmp_path: Path
) -> None:
    teacher = str(base / "base")
    settings = DistillConfig((teacher, teacher), temperature=2.0)
    config = tiny(base, train__max_steps=20, model__context_length=64, distill=settings)
    for name, dtype in (("cpu", "fp32"), (device, precision)):
        distill(on(name, config, dtype), tmp_path / f"{name}-{dtype}")
    exact, found = (losses(tmp_path / f"{name}-{dtype}") for name, dtype in (("cpu", "fp32"), (device, precision)))
    assert found == pytest.approx(exact, rel=share)


def test_learning_from_pairs_has_the_losses_of_the_cpu(device: Any, base: Path, tmp_path: Path) -> None:
    config = tuned(base, sft=None, preference=PreferenceConfig(), data=pairs_of(base))
    for name in ("cpu", device):
        prefer(on(name, config), tmp_path / name)
    assert losses(tmp_path / device) == pytest.approx(losses(tmp_path / "cpu"), rel=5e-3)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_answers_are_sampled_with_the_probabilities_of_the_training(
    device: Any, weights: str, base: Path, tmp_path: Path
) -> None:
    sizes = {"prompts": 4, "samples": 4, "max_tokens": 8, "val_prompts": 4, "val_samples": 4}
    reward = RewardConfig("custom", function="own_rewards.short")
    config = on(
        device, tuned(base, sft=None, reinforce=ReinforceConfig(**sizes, weights=weights), reward=reward), "bf16"
    )
    reinforce(
        dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=16 * 64)), tmp_path / "run"
    )
    gaps = [row["train/ratio_gap"] for row in read_metrics(Run(tmp_path / "run").metrics_path) if row["step"]]
    assert gaps
    assert max(gaps) < 0.05


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, top_p=None), Sampling(top_k=5, repetition_penalty=1.3)])
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_the_cpu(device: Any, name: str, sampling: Sampling) -> None:
    here = decisive_model(name, char().vocab_size)
    there = copy.deepcopy(here).to(device)
    texts = [
        list(Engine(model, char()).ids([[1, 5, 9], [2, 7]], sampling, max_tokens=8, stop_ids=[], seed=1))
        for model in (here, there)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_smaller_weights_give_nearly_the_same_probabilities(device: Any, dtype: torch.dtype) -> None:
    config = dataclasses.replace(PLAIN, d_model=64, position="rope", norm="rmsnorm", activation="swiglu")
    model = GPT(config).eval()
    exact, coarse = Decoder(model), Decoder(copy.deepcopy(model).to(device), dtype=dtype)
    a, b = (decoder.prefill([0], [[1, 2, 3, 4, 5]]).float().softmax(-1).cpu() for decoder in (exact, coarse))
    assert float((a - b).abs().sum()) < 0.02


def test_a_budget_is_kept(device: Any, tmp_path: Path) -> None:
    config = on(device, dataclasses.replace(tiny(tmp_path, train__max_steps="auto"), budget="20s"))
    began = time.monotonic()
    assert train(config, tmp_path / "run").status == "finished"
    assert time.monotonic() - began < 60


def test_all_monitors_measure_numbers(device: Any, tmp_path: Path) -> None:
    every = MonitorConfig(5, gradients=True, weights=True, attention=True, activations=True, tokens=True)
    train(on(device, tiny(tmp_path, monitor=every, train__max_steps=10), "bf16"), tmp_path / "run")
    row = read_metrics(Run(tmp_path / "run").metrics_path)[-1]
    measured = {name: value for name, value in row.items() if isinstance(value, float)}
    assert len(measured) > 20
    assert all(value == value and abs(value) < 1e6 for value in measured.values()), measured


def test_the_host_waits_at_most_once_in_a_step_of_training(device: Any, tmp_path: Path) -> None:
    if device != "cuda":
        pytest.skip("only CUDA reports what the host waits for")

    class Strict(L.Callback):
        """Let CUDA refuse every wait of the second step, which is not logged."""

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step == 1 else "default")

    config = on(device, tiny(tmp_path, train__max_steps=4, train__log_every=4, optimizer=OPTIMIZERS["muon"]), "bf16")
    assert train(config, tmp_path / "run", [Strict()]).status == "finished"


def test_50_steps_of_the_quickstart_take_less_than_a_gigabyte(device: Any, tmp_path: Path) -> None:
    """Hosted Macs have that much. On a CPU, the memory is that of the whole process, with all libraries."""
    settings = ("experiment=quickstart", f"device={device}", "train.max_steps=50", "schedule.warmup_steps=5")
    command = [sys.executable, "-m", "positron.train", *settings, f"data.dir={tmp_path / 'data'}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1200)
    rows = read_metrics(Run(tmp_path / "outputs" / "quickstart").metrics_path)
    assert rows[-1]["step"] == 50
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert max(row["memory/peak_gb"] for row in rows) < (2 if device == "cpu" else 1)
