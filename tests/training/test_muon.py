"""Muon, against the singular value decomposition, the library's Muon, and what the training loop asks of an optimizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from numpy_ref import optimizers as theirs
from positron.config import OptimizerConfig, PrecisionConfig
from positron.model.gpt import GPT
from positron.run.metrics import read_metrics
from positron.train import train
from positron.training.device import DTYPES, precision_named
from positron.training.optim import muon
from positron.training.optim.groups import build_optimizer
from positron.training.optim.muon import orthogonalize

MUON = OptimizerConfig("muon", lr=0.01)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), more=st.integers(0, 20), seed=st.integers(0, 99))
def test_singular_values_come_near_one_and_directions_stay(n: int, more: int, seed: int) -> None:
    """For values within a factor of 100 of the largest; U^T (U p(S) V^T) V is diagonal and near the identity."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((n + more, n)))
    x = U * rng.uniform(0.01, 1, n) @ V.T
    for result in (orthogonalize(torch.from_numpy(x)).numpy(), theirs.orthogonalize(x), theirs.orthogonalize(x.T).T):
        inner = U.T @ result @ V
        assert np.allclose(inner, np.diag(np.diag(inner)), atol=1e-10)
        assert (np.diag(inner) > 0.1).all()
        assert (np.diag(inner) < 1.25).all()
    assert np.allclose(orthogonalize(torch.from_numpy(x)).numpy(), theirs.orthogonalize(x), atol=1e-12)


def test_typical_gradients_end_between_07_and_12() -> None:
    x = torch.randn(4, 64, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalize(x))
    assert 0.65 < values.min() < values.max() < 1.25


@pytest.mark.parametrize("momentum", [0.95, 0.8])
def test_ten_steps_equal_the_library_s_muon(momentum: float) -> None:
    """Up to the rounding of bf16, in which both iterate."""
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (64, 16), (16, 64)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    others = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    named = [(f"blocks.0.{i}", p) for i, p in enumerate(ours)]
    a = build_optimizer(
        named, OptimizerConfig("muon", lr=0.02, weight_decay=0.1, momentum=momentum), fused=False, bf16=True
    )
    b = torch.optim.Muon(
        others, lr=0.02, weight_decay=0.1, momentum=momentum, nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(10):
        for p, q in zip(ours, others, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, shape in zip(ours, others, shapes, strict=True):
        moved = 10 * 0.02 * 0.2 * max(shape) ** 0.5 / max(shape) ** 0.5
        assert (p - q).abs().max() < 0.1 * moved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_iterates_in_the_precision_of_the_run(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without instructions for bf16, iterations in bf16 took nine tenths of a step that computed in fp32."""
    seen: set[torch.dtype] = set()
    monkeypatch.setattr(muon, "orthogonalize", lambda x: [seen.add(x.dtype), orthogonalize(x)][1])
    config = tiny(tmp_path, train__max_steps=2)
    train(dataclasses.replace(config, optimizer=MUON, precision=PrecisionConfig(precision)), tmp_path / "run")
    assert seen == {DTYPES[precision_named(precision)]}


def model_and_optimizer() -> tuple[GPT, torch.optim.Optimizer]:
    model = GPT(tiny(Path()).model.with_vocab(50), seed=1)
    return model, build_optimizer(model.named_parameters(), MUON, fused=True)


def test_only_matrices_of_the_blocks_take_orthogonal_steps() -> None:
    model, optimizer = model_and_optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["role"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    blocks = {name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")}
    assert groups["matrix"] == blocks
    assert set().union(*groups.values()) == set(names.values())


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model, optimizer = model_and_optimizer()
    ids = torch.randint(0, 50, (2, 8))
    for bad in (0.0, 1.0, 0.0):
        before = [p.detach().clone() for p in model.parameters()]
        moments = [v.clone() for state in optimizer.state.values() for v in state.values()]
        model(ids, ids).backward()
        if bad:
            for p in model.parameters():
                p.grad = torch.full_like(p, float("nan"))
        optimizer.found_inf = torch.tensor(bad)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(same) if bad else not any(same)
        assert all(p.isfinite().all() for p in model.parameters())
        if bad:
            now = [v for state in optimizer.state.values() for v in state.values()]
            assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def test_runs_with_muon_resume_bit_identically(tmp_path: Path) -> None:
    config = tiny(tmp_path, optimizer=MUON, train__max_steps=12)
    train(config, tmp_path / "whole")
    for stop in (5, 7, None):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop))
        train(part, tmp_path / "parts")
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [r["train/loss"] for r in whole] == [r["train/loss"] for r in parts]
