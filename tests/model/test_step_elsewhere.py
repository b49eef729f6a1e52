"""An optimizer step on two devices that this machine does not have: one that refuses what Apple's GPU refuses, and none."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import stand_in
import torch
from model_variants import MODELS, OPTIMIZERS, PLAIN

from positron.model.gpt import GPT, document_numbers
from positron.training.optim.groups import build_optimizer, clip_gradients

IDS = torch.randint(PLAIN.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))


def loss_of(model: GPT, precision: str) -> torch.Tensor:
    """The loss of two windows, and of the same windows if attention does not cross documents, which begin with token 3."""
    device = model.wte.weight.device
    rows = IDS.to(device)
    x, y = rows[:, :-1], rows[:, 1:]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss: torch.Tensor = model(x, y) + model(x, y, document_numbers(x, 3))
    return loss


def stand_ins_gradient(model: GPT, precision: str) -> tuple[GPT, float]:
    """A copy of the model on the stand-in, with gradients, and the norm of these. Fails if the host has to wait for it."""
    there = copy.deepcopy(model).to(stand_in.DEVICE)
    stand_in.waits.clear()
    loss_of(there, precision).backward()
    norm = clip_gradients(list(there.parameters()), 1e9)
    assert stand_in.waits == {}
    return there, norm.item()


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_on_the_stand_in_is_that_of_the_cpu_and_takes_no_wait(name: str) -> None:
    """The CPU takes fast paths of its own, so that this also compares them with the operators of other devices."""
    here = GPT(MODELS[name]).eval()  # without dropout, whose random numbers differ
    there, norm = stand_ins_gradient(here, "fp32")
    _, coarse = stand_ins_gradient(here, "bf16")
    loss_of(here, "fp32").backward()
    largest = max(float(p.grad.abs().max()) for p in here.parameters())
    for (path, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert float((q.grad.cpu() - p.grad).abs().max()) <= 1e-5 * largest, path
    exact = float(clip_gradients(list(here.parameters()), 1e9))
    assert norm == pytest.approx(exact, rel=1e-5)
    assert coarse == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_needs_no_number_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device "meta" have no numbers: reading one is an error, and so is a wrong shape."""
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: contextlib.nullcontext()
    )  # "meta" has none; fp32 needs none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    model = GPT(dataclasses.replace(MODELS[name], n_layer=1)).to("meta")
    parameters = list(model.parameters())
    before = [(p.shape, p.dtype) for p in parameters]
    rows = IDS.to("meta")
    x, y = rows[:, :-1], rows[:, 1:]
    loss = model(x, y, document_numbers(x, 3))
    assert loss.shape == ()
    loss.backward()
    assert clip_gradients(parameters, 1.0).shape == ()
    for settings in OPTIMIZERS.values():
        build_optimizer(model.named_parameters(), settings, fused=False).step()
    assert [(p.shape, p.dtype) for p in parameters] == [(p.grad.shape, p.grad.dtype) for p in parameters] == before
    assert all(p.is_meta for p in parameters)


def refused(make: object) -> str:
    with pytest.raises(stand_in.Refused) as error:
        make()
    return str(error.value)


def test_the_stand_in_refuses_what_apples_gpu_refuses() -> None:
    x = torch.ones(3, 3).to(stand_in.DEVICE)
    assert "float64" in refused(lambda: x.double())
    assert "float64" in refused(lambda: torch.zeros(3, dtype=torch.float64, device=stand_in.DEVICE))
    assert "torch.bfloat16 and torch.float32" in refused(lambda: torch.layer_norm(x.bfloat16(), (3,), x[0], x[0]))
    assert "linalg_eigh" in refused(lambda: torch.linalg.eigh(x))
    assert "of the host" in refused(lambda: x + torch.ones(3))
    assert "generator of the host" in refused(lambda: x.normal_(generator=torch.Generator()))
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    model = GPT(PLAIN).to(stand_in.DEVICE)
    model.norm_f.weight.data = model.norm_f.weight.data.bfloat16()
    with pytest.raises(stand_in.Refused, match=r"^model/gpt\.py:\d+: native_layer_norm gets torch"):
        model(IDS[:, :-1].to(stand_in.DEVICE))


def test_the_stand_in_counts_what_the_host_waits_for() -> None:
    x = torch.ones(4).to(stand_in.DEVICE)
    for read in (
        lambda: x.sum().item(),
        lambda: bool((x > 0).all()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: torch.empty(4).copy_(x),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.masked_select(x > 0),
    ):
        stand_in.waits.clear()
        read()
        assert sum(stand_in.waits.values()) == 1
    stand_in.waits.clear()
    x[x > 2] = 0.0
    x[[0, 1]] = (x * 2 + torch.tensor(3.0))[[2, 3]]
    assert stand_in.waits == {}
    assert x.tolist() == [5, 5, 1, 1]
