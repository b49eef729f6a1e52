"""`device.compile=true`: believed after its first step was seen to be eager's, otherwise left out, in one line."""

from types import SimpleNamespace

import pytest
import torch

from positron.config import GPTConfig
from positron.model.gpt import GPT, document_numbers
from positron.training import loop
from positron.training.compiling import compile_in_place
from positron.training.device import Machine
from positron.training.resume import Start

MACHINE = Machine("cpu", "fp32", "")


def compiled_by(monkeypatch, compiler, dropout=0.0):
    """Return a model, a batch, and whether `compiler` (in the place of torch's) was believed."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function))
    model = GPT(GPTConfig(vocab_size=9, context_length=8, d_model=8, n_layer=1, n_head=2, dropout=dropout))
    rows = torch.arange(18).view(2, 9) % 9
    return model, rows, compile_in_place(model, (rows[:, :-1], rows[:, 1:]), MACHINE)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_computes_the_same_is_used(monkeypatch, dropout, logged):
    calls = []

    def compiler(function):
        return lambda *arguments: calls.append(1) or function(*arguments)

    model, rows, believed = compiled_by(monkeypatch, compiler, dropout)
    assert (believed, logged) == (True, [])
    assert model.training
    model(rows[:, :8], rows[:, 1:])
    assert len(calls) == 2
    assert all(p.grad is None for p in model.parameters())


def test_what_computes_something_else_is_left_out_and_both_numbers_are_said(monkeypatch, logged):
    model, rows, believed = compiled_by(monkeypatch, lambda function: lambda *a: 1.01 * function(*a))
    assert not believed
    assert len(logged) == 1
    assert "when compiled, but" in logged[0]
    assert model(rows[:, :8], rows[:, 1:]).item() == pytest.approx(GPT(model.config)(rows[:, :8], rows[:, 1:]).item())


def test_a_compiler_that_fails_costs_a_line_and_not_the_run(monkeypatch, logged):
    def compiler(function):
        def broken(*_):
            raise RuntimeError("no C++ compiler\nwas found")

        return broken

    _, _, believed = compiled_by(monkeypatch, compiler)
    assert not believed
    assert logged == ["WARNING: device.compile=true is ignored: no C++ compiler was found"]


@pytest.mark.parametrize(("is_first", "processes", "asked"), [(True, 1, (8, 0, 1)), (False, 2, (8, 1, 2))])
def test_each_process_compares_the_loss_of_the_next_step_with_its_mask(is_first, processes, asked, monkeypatch, logged):
    def compiler(function):
        def broken(idx, targets, documents):
            raise RuntimeError("no kernel was found")

        return broken

    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function))
    model, rows = GPT(GPTConfig(vocab_size=9, context_length=8, d_model=8, n_layer=1, n_head=2)), torch.arange(18) % 9
    part = (rows.view(2, 9)[:, :-1], rows.view(2, 9)[:, 1:])
    asked_for = []

    def loss(model, part):
        return model(*part, document_numbers(part[0], 0))

    objective = SimpleNamespace(batch=lambda *which: asked_for.append(which) or [part], loss=loss)
    session = SimpleNamespace(start=Start(step=7), is_first_rank=is_first)
    loop._compile(session, SimpleNamespace(machine=MACHINE, world_size=processes), model, objective)
    assert asked_for == [asked]
    assert logged == ["WARNING: device.compile=true is ignored: no kernel was found"]
    assert objective.loss(model, part).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_compile_itself_is_believed(precision, logged):
    model = GPT(GPTConfig(vocab_size=64, context_length=96, d_model=32, n_layer=2, n_head=2, position="rope"))
    rows = torch.randint(64, (2, 97), generator=torch.Generator().manual_seed(0))
    assert compile_in_place(model, (rows[:, :-1], rows[:, 1:]), Machine("cpu", precision, ""))
    assert logged == []
