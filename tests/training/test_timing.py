"""The peak of matrix products, the precision that this model is faster in, and the time that is left."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from conftest import tiny

from positron.config import DeviceConfig, PrecisionConfig
from positron.model.gpt import GPT
from positron.train import train
from positron.training import device, resolve, timing
from positron.training.callbacks.clock import Clock
from positron.training.callbacks.progress import TimeLeft
from positron.training.device import Machine
from positron.training.timing import MatmulPeak, SpeedFacts, faster_precision

GPT_CONFIG = tiny(Path()).model.with_vocab(50)


def test_the_peak_is_the_best_of_several_looks_and_never_below_the_step_itself(monkeypatch) -> None:
    rates = iter([100.0, 30.0, 20.0, 170.0, 10.0])  # another program runs during most of them
    monkeypatch.setattr(timing, "matmul_flops", lambda *_, **__: next(rates))
    peak = MatmulPeak(GPT_CONFIG, Machine("cpu", "fp32", ""), 4 * GPT_CONFIG.context_length, world_size=2)
    assert peak.flops == 200.0
    peak.look()
    assert peak.flops == 340.0
    peak.look()
    assert peak.flops == 340.0
    facts = SpeedFacts(flops_per_token=2.0, peak=peak)
    assert facts.mfu(85.0) == 0.5
    assert facts.mfu(500.0) == 1.0  # a share above 1 would be nonsense: the step itself shows a higher peak
    assert facts.mfu(250.0) == 0.5


def test_a_checkpoint_without_a_number_of_tokens_is_that_of_full_steps() -> None:
    clock, new = Clock({1}, 9, batch_tokens=512), Clock({1}, 9, batch_tokens=512)
    clock.on_load_checkpoint(L.Trainer(), L.LightningModule(), {"global_step": 7})
    clock.load_state_dict({"time_s": 2.5})
    assert (clock.time_s, clock.tokens) == (2.5, 7 * 512)
    new.on_load_checkpoint(L.Trainer(), L.LightningModule(), {"global_step": 8})
    new.load_state_dict({**clock.state_dict(), "tokens": 3600})
    assert new.tokens == 3600


def test_a_gpu_is_measured_once_before_training_fills_its_memory(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(timing, "matmul_flops", lambda *_, **__: calls.append(1) or 5.0)
    peak = MatmulPeak(GPT_CONFIG, Machine("cuda", "bf16", ""), 4 * GPT_CONFIG.context_length, world_size=1)
    peak.look()
    assert len(calls) == 1


def test_the_peak_is_measured_with_the_models_own_shapes(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(timing, "matmul_flops", lambda *_, shapes, **__: asked.append(shapes) or 1.0)
    MatmulPeak(GPT_CONFIG, Machine("cpu", "fp32", ""), 4 * GPT_CONFIG.context_length, world_size=1)
    rows = 4 * GPT_CONFIG.context_length
    assert (rows, GPT_CONFIG.d_model, GPT_CONFIG.ff_width) in asked[0]
    assert (rows, GPT_CONFIG.d_model, GPT_CONFIG.vocab_size) in asked[0]


@pytest.mark.parametrize(
    ("rates", "is_fast", "turns"),
    [
        ([(300.0, 100.0)] * 2, True, 2),
        ([(90.0, 100.0), (300.0, 60.0)], True, 2),  # another program took a core during the first measurement of bf16
        ([(90.0, 100.0)] * 3 + [(300.0, 100.0)], True, 4),
        ([(90.0, 40.0), (90.0, 100.0), (90.0, 100.0), (90.0, 100.0), (90.0, 100.0)], False, 5),
        ([(12.0, 100.0)] * 2, False, 2),  # a CPU without instructions for bf16
    ],
)
def test_a_busy_moment_does_not_decide_against_bf16(monkeypatch, rates, is_fast: bool, turns: int) -> None:
    measured: list[torch.dtype] = []

    def matmul_flops(_, dtype: torch.dtype, **__: float) -> float:
        measured.append(dtype)
        return rates[(len(measured) - 1) // 2][dtype == torch.float32]

    monkeypatch.setattr(device, "matmul_flops", matmul_flops)
    assert device.bf16_is_fast("cpu") == is_fast
    assert measured == [torch.bfloat16, torch.float32] * turns


@pytest.mark.parametrize(
    ("is_fast", "processes", "said"),
    [
        (True, 1, "bf16, or fp32 if steps of this model are faster in fp32 (precision=auto)"),
        (True, 2, "bf16 (precision=auto: matrix products in bf16 are faster on this machine)"),
        (False, 1, "fp32 (precision=auto: matrix products in bf16 are no faster on this machine)"),
    ],
)
def test_the_first_line_leaves_open_which_precision_a_test_may_choose(
    monkeypatch, is_fast: bool, processes: int, said: str
) -> None:
    monkeypatch.setattr(device, "bf16_is_fast", lambda _: is_fast)
    config = DeviceConfig("cpu", devices=processes, strategy="ddp")
    assert device.choose_machine(config, PrecisionConfig("auto")).why == f"device=cpu, {said}"


@pytest.mark.parametrize(("speed", "precision"), [(0.1, "fp32"), (0.9, "bf16")])
def test_a_run_of_another_machine_continues_in_fp32_where_bf16_is_slow(
    tmp_path, monkeypatch, caplog, speed: float, precision: str
) -> None:
    config = tiny(tmp_path, train__max_steps=4, precision=PrecisionConfig("auto"))
    monkeypatch.setattr(device, "bf16_is_fast", lambda _: True)
    monkeypatch.setattr(resolve, "faster_precision", lambda _, machine, __: (machine, ""))
    first = train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=2)), tmp_path / "run")
    assert first.resolved.precision == "bf16"
    monkeypatch.setattr(device, "bf16_is_fast", lambda _: False)
    monkeypatch.setattr(resolve, "speed_on_cpu", lambda _: speed)
    assert train(config, tmp_path / "run").resolved.precision == precision
    assert ("10 times as long as in fp32" in caplog.text) == (precision == "fp32")


def test_a_slow_precision_that_the_user_asks_for_is_kept_with_a_warning(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(resolve, "speed_on_cpu", lambda _: 0.125)
    facts = train(tiny(tmp_path, train__max_steps=1, precision=PrecisionConfig("bf16")), tmp_path / "run")
    assert facts.resolved.precision == "bf16"
    assert "matrix products in bf16 take 8 times as long as in fp32 on this machine: give precision=fp32" in caplog.text


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ((10.0, 30.0), "bf16"),
        ((30.0, 10.0), "fp32"),
        ((40.4, 39.2), "bf16"),
        ((43.0, 39.2), "bf16"),
        ((43.4, 39.2), "fp32"),
    ],
)
def test_auto_takes_fp32_only_if_its_steps_are_clearly_faster(monkeypatch, milliseconds, chosen: str) -> None:
    """The clock is ours: a forward pass takes as many milliseconds as given for bf16 and fp32."""
    now = [0.0]
    model = GPT(GPT_CONFIG)
    forward = model.forward

    def timed(*arguments):
        now[0] += milliseconds[0 if torch.is_autocast_enabled("cpu") else 1] / 1000
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "matmul_flops", lambda *_, **__: 1e12)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.random.get_rng_state()
    machine, reason = faster_precision(model, Machine("cpu", "bf16", ""), 2)
    assert machine.precision == chosen
    bf16, fp32 = milliseconds
    assert reason == (
        f"this run computes in {chosen}: a step of 2 sequences takes {bf16} ms in bf16, {fp32} ms in fp32"
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("machine", "flops"),
    [(Machine("cpu", "fp32", ""), 1e12), (Machine("cuda", "bf16", ""), 1e12), (Machine("cpu", "bf16", ""), 1.0)],
    ids=["products are no faster in bf16", "not a CPU", "a large model"],
)
def test_other_models_and_machines_are_not_timed(monkeypatch, machine: Machine, flops: float) -> None:
    monkeypatch.setattr(timing, "matmul_flops", lambda *_, **__: flops)
    model = GPT(GPT_CONFIG)
    monkeypatch.setattr(model, "forward", lambda *_: pytest.fail("a step was taken"))
    assert faster_precision(model, machine, 2) == (machine, "")


def test_the_time_left_follows_the_last_minute() -> None:
    left = TimeLeft(0.0, 0)
    for step in range(1, 101):
        left.note(10.0 * step, step)  # another program made each step take ten seconds
    assert left.seconds(200) == pytest.approx(1000.0)
    for step in range(101, 221):
        left.note(1000.0 + (step - 100), step)  # it has ended
    assert left.seconds(320) == pytest.approx(100.0, rel=0.02)


def test_the_time_left_of_steps_longer_than_a_minute_uses_the_last_one() -> None:
    left = TimeLeft(0.0, 0)
    for step in range(1, 6):
        left.note(100.0 * step, step)
    assert left.seconds(7) == pytest.approx(200.0)


def test_the_time_of_each_step_that_is_logged_includes_that_of_the_device(monkeypatch) -> None:
    waited = []
    clock = Clock({10, 19}, 45, batch_tokens=512)
    module = SimpleNamespace(device=torch.device("cpu"), tokens=512)
    for step in range(1, 46):
        monkeypatch.setattr("positron.training.callbacks.clock.wait_for", lambda _, step=step: waited.append(step))
        clock.on_train_batch_start()
        clock.on_train_batch_end(SimpleNamespace(global_step=step), module)
    assert waited == [10, 19, 20, 30, 38, 40, 45]
