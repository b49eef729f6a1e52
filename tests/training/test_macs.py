"""What a run decides on a Mac, and on a machine whose NVIDIA GPU torch does not find, tried without them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from positron import doctor
from positron.config import Accelerator, DeviceConfig, PrecisionConfig
from positron.system.errors import UserError
from positron.training import device
from positron.training.device import Machine, choose_machine, use_device

FALLBACK, LIMIT = "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO"


@pytest.fixture(autouse=True)
def mac(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A Mac without settings of torch; the shares of its memory to which runs limit themselves."""
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 10**9)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", limits.append)
    for name in (FALLBACK, LIMIT):
        monkeypatch.delenv(name, raising=False)
    return limits


@pytest.mark.parametrize(
    ("accelerator", "value", "is_told"),
    [("mps", "1", True), ("auto", "1", True), ("cpu", "1", False), ("mps", "0", False), ("mps", None, False)],
)
def test_a_run_tells_that_operators_may_run_on_the_cpu(
    accelerator: Accelerator, value: str | None, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv(FALLBACK, value)
    machine = choose_machine(DeviceConfig(accelerator), PrecisionConfig("fp32"))
    assert (
        f"{FALLBACK} is set, so operators that MPS lacks run on the CPU, which is slow: unset it" in machine.why
    ) == is_told


@pytest.mark.parametrize(
    ("cuda", "visible", "said"),
    [
        (None, None, "the installed PyTorch cannot use the NVIDIA GPU: install a PyTorch with CUDA"),
        ("13.0", None, "PyTorch finds no NVIDIA GPU: install a driver that supports CUDA 13.0"),
        ("13.0", "", "this machine has no CUDA and no MPS"),
    ],
)
def test_an_nvidia_gpu_that_torch_does_not_find_is_named(
    cuda: str | None, visible: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen = choose_machine(DeviceConfig("auto"), PrecisionConfig("fp32"))
    assert chosen.why == f"CPU (device=auto: {said}), fp32"
    first = next(doctor.devices())
    assert (first.says == said) == (visible is None)
    assert not first.fatal


@pytest.mark.parametrize(
    ("codes", "capability", "is_usable"),
    [
        (["sm_75", "sm_80", "sm_90a", "compute_120"], (6, 1), False),
        (["sm_75", "sm_80", "sm_90a", "compute_120"], (7, 0), False),
        (["sm_75", "sm_80", "sm_90a"], (8, 6), True),
        (["sm_75", "sm_80"], (9, 0), False),
        (["sm_75", "compute_80"], (9, 0), True),
        (["gfx90a"], (9, 0), True),
    ],
)
def test_a_gpu_for_which_torch_has_no_code_is_named_and_not_used(
    codes: list[str], capability: tuple[int, int], is_usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, value in (("is_available", True), ("device_count", 1), ("get_arch_list", codes)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old 1080")
    chosen = choose_machine(DeviceConfig("auto"), PrecisionConfig("fp32"))
    assert chosen.accelerator == ("cuda" if is_usable else "cpu")
    if is_usable:
        return
    reason = (
        f"the installed PyTorch has no code for the GPU Old 1080 (compute capability {capability[0]}.{capability[1]}): "
        "install a PyTorch for a version of CUDA that supports it"
    )
    assert chosen.why == f"CPU (device=auto: {reason}), fp32"
    with pytest.raises(UserError, match=re.escape(f"device=cuda, but {reason}, or give device=cpu or device=auto")):
        choose_machine(DeviceConfig("cuda"), PrecisionConfig("fp32"))
    assert next(doctor.devices()).says == reason


@pytest.mark.parametrize("value", [None, "1"])
def test_the_doctor_tells_it_too(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv(FALLBACK, value)
    monkeypatch.setattr(device, "matmul_flops", lambda *_, **__: 1e12)
    findings = {finding.what: finding for finding, _ in zip(doctor.devices(), range(2), strict=False)}
    assert findings["device=mps"].says.endswith("12.0 GB of memory free")
    assert findings["mps fallback"].good == (value is None)
    assert not findings["mps fallback"].fatal


@pytest.mark.parametrize(("count", "names"), [(1, ["cuda"]), (2, ["cuda:0", "cuda:1"])])
def test_the_doctor_checks_each_gpu(count: int, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, torch.device]] = []

    def note(kind: str) -> Any:
        return lambda device, *_, **__: (checked.append((kind, device)), doctor.Finding(kind, True, "", False))[1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index or 0}")
    monkeypatch.setattr(device, "free_memory", lambda gpu: 10**9 * (1 + (gpu.index or 0)))
    monkeypatch.setattr(device, "matmul_flops", lambda gpu, _: checked.append(("matmul", gpu)) or 1e12)
    for kind in ("causality", "attention"):
        monkeypatch.setattr(doctor, kind, note(kind))
    findings = {finding.what: finding.says for finding, _ in zip(doctor.devices(), range(6 * count), strict=False)}
    for number, name in enumerate(names):
        assert findings[f"device={name}"] == f"GPU {number}, {number + 1}.0 GB of memory free"
        assert f"{name} matmul" in findings
        for kind in ("matmul", "causality", "attention"):
            assert checked.count((kind, torch.device(name))) == 2


def test_a_device_without_free_memory_is_a_finding_of_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("MPS backend out of memory")

    monkeypatch.setattr(device, "matmul_flops", is_full)
    finding = next(finding for finding in doctor.devices() if finding.what == "mps matmul")
    assert finding == ("mps matmul", False, "failed: MPS backend out of memory", True)


def test_a_run_takes_no_more_memory_than_the_system_recommends(
    mac: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for accelerator, share in (("mps", 1.0), ("mps", 0.5), ("cpu", 1.0)):
        use_device(Machine(accelerator, "bf16", "", share=share))
    assert mac == [1.0, 0.5]
    monkeypatch.setenv(LIMIT, "1.4")  # the user's own limit
    use_device(Machine("mps", "bf16", ""))
    assert mac == [1.0, 0.5]
