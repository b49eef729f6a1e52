"""Distillation: the gradient against finite differences and against torch, and what the loss promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from differences import compare
from test_parity import batch, gpt_config, twins
from torch.nn import functional as F

from numpy_ref.distillation import distillation_backward, distillation_forward, teacher_probs
from numpy_ref.gpt import _backward, _forward, forward
from numpy_ref.loss import IGNORE, cross_entropy_backward, cross_entropy_forward
from positron.model.kernels.distillation import linear_distillation

V, ALPHA, T = 11, 0.3, 2.5
TARGETS = np.array([[3, 0, IGNORE, 10], [IGNORE, 7, 7, 1]])
SETTINGS = [(ALPHA, T, 1), (ALPHA, T, 3), (ALPHA, 1.0, 2), (1.0, 0.5, 1), (0.0, T, 2)]  # alpha, temperature, teachers


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def torch_loss(z: torch.Tensor, teachers: np.ndarray, targets: np.ndarray, alpha: float, t: float) -> torch.Tensor:
    """The same loss by the library's functions: z (B, T, V), teachers (K, B, T, V)."""
    y = torch.from_numpy(targets).flatten()
    scored = y != IGNORE
    rows = z.reshape(-1, z.shape[-1])
    q = (torch.from_numpy(teachers) / t).softmax(-1).mean(0).reshape(rows.shape)
    kl = F.kl_div(F.log_softmax(rows / t, -1)[scored], q[scored], reduction="sum")
    ce = F.cross_entropy(rows, y, ignore_index=IGNORE, reduction="sum")
    return ((1 - alpha) * ce + alpha * t**2 * kl) / scored.sum()


@pytest.mark.parametrize(("alpha", "temperature", "teachers"), SETTINGS)
def test_gradient_of_distillation_equals_finite_differences(
    rng: np.random.Generator, alpha: float, temperature: float, teachers: int
) -> None:
    logits, q = rng.standard_normal((2, 4, V)), teacher_probs(rng.standard_normal((teachers, 2, 4, V)), temperature)
    for denominator in (None, 13):
        arguments = (q, TARGETS, alpha, temperature, denominator)
        dlogits, *others = distillation_backward(1.7, distillation_forward(logits, *arguments)[1])
        assert others == [None, None]
        compare(dlogits, lambda a=arguments: 1.7 * float(distillation_forward(logits, *a)[0]), logits, "logits")


@pytest.mark.parametrize(("alpha", "temperature", "teachers"), SETTINGS)
def test_distillation_and_its_gradient_equal_torch(
    rng: np.random.Generator, alpha: float, temperature: float, teachers: int
) -> None:
    logits, of_teachers = 2 * rng.standard_normal((2, 4, V)), 2 * rng.standard_normal((teachers, 2, 4, V))
    q = teacher_probs(of_teachers, temperature)
    loss, cache = distillation_forward(logits, q, TARGETS, alpha, temperature)
    dlogits, *_ = distillation_backward(1.0, cache)
    z = torch.tensor(logits, requires_grad=True)
    wanted = torch_loss(z, of_teachers, TARGETS, alpha, temperature)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    np.testing.assert_allclose(dlogits, z.grad, rtol=0, atol=1e-12)
    assert np.abs(dlogits).max() > 1e-3
    assert (1 - alpha) * cache["ce"] + alpha * temperature**2 * cache["kl"] == pytest.approx(float(loss), abs=1e-12)


@pytest.mark.parametrize(("alpha", "temperature", "teachers"), SETTINGS)
def test_every_gradient_of_a_student_equals_that_of_the_training(
    alpha: float, temperature: float, teachers: int
) -> None:
    """The loss of `positron distill`, with student and teachers of different sizes, in float64."""
    config = gpt_config(position="rope", norm="rmsnorm", smear=True)
    model, params = twins(config, 1)
    idx, targets = batch(config, 2)
    others = [(gpt_config(n_layer=1, d_model=8 * (k + 1), bias=True), k) for k in range(teachers)]
    frozen = [(other, *twins(other, 10 + k)) for other, k in others]

    q = teacher_probs([forward(weights, other, idx) for other, _, weights in frozen], temperature)
    logits, cache = _forward(params, config, idx)
    loss, loss_cache = distillation_forward(logits, q, targets, alpha, temperature)
    gradients = _backward(distillation_backward(1.0, loss_cache)[0], cache, config)

    x, y = torch.from_numpy(idx), torch.from_numpy(targets)
    with torch.no_grad():
        states = [(teacher.hidden(x).flatten(0, 1), teacher.head_weight) for _, teacher, _ in frozen]
    total, ce, kl = linear_distillation(
        model.hidden(x).flatten(0, 1), model.head_weight, y.flatten(), states, alpha, temperature
    )
    count = (y != IGNORE).sum()
    (total / count).backward()
    assert float(total.detach() / count) == pytest.approx(float(loss), abs=1e-12)
    assert float(ce / count) == pytest.approx(loss_cache["ce"], abs=1e-12)
    assert float(kl / count) == pytest.approx(loss_cache["kl"], abs=1e-12)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = max(1.0, float(parameter.grad.abs().max()))
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=0, atol=1e-11 * scale, err_msg=name)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_student_that_equals_its_teacher_gets_no_gradient_from_it(
    rng: np.random.Generator, temperature: float
) -> None:
    logits = 3 * rng.standard_normal((2, 4, V))
    _, cache = distillation_forward(logits, teacher_probs([logits], temperature), TARGETS, 1.0, temperature)
    assert cache["kl"] == pytest.approx(0, abs=1e-15)
    assert (distillation_backward(1.0, cache)[0] == 0).all()


def test_without_weight_the_teacher_changes_nothing(rng: np.random.Generator) -> None:
    logits, q = rng.standard_normal((2, 4, V)), teacher_probs([rng.standard_normal((2, 4, V))])
    loss, cache = distillation_forward(logits, q, TARGETS, 0.0, T)
    plain, plain_cache = cross_entropy_forward(logits, TARGETS)
    assert loss == plain
    np.testing.assert_array_equal(distillation_backward(1.0, cache)[0], cross_entropy_backward(1.0, plain_cache)[0])


def test_a_certain_teacher_at_temperature_1_is_the_text() -> None:
    logits = np.random.default_rng(1).standard_normal((2, 4, V))
    text = np.eye(V)[np.where(TARGETS == IGNORE, 0, TARGETS)]
    taught, by_teacher = distillation_forward(logits, text, TARGETS, 1.0)
    read, by_text = cross_entropy_forward(logits, TARGETS)
    assert taught == pytest.approx(float(read), abs=1e-14)
    np.testing.assert_allclose(
        distillation_backward(1.0, by_teacher)[0], cross_entropy_backward(1.0, by_text)[0], atol=1e-15
    )


def test_teachers_are_averaged_in_probability() -> None:
    certain = 50 * np.eye(3)[:2]  # one teacher is sure of token 0, the other one of token 1
    np.testing.assert_allclose(teacher_probs(list(certain)), [0.5, 0.5, 0], atol=1e-15)


def test_divergence_by_plain_arithmetic() -> None:
    logits, q = np.log([[0.5, 0.5]]), np.array([[0.8, 0.2]])
    loss, cache = distillation_forward(logits, q, np.array([0]), 0.25)
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert loss == pytest.approx(0.75 * math.log(2) + 0.25 * kl)
    np.testing.assert_allclose(distillation_backward(1.0, cache)[0], [[-0.75 / 2 - 0.25 * 0.3, 0.75 / 2 + 0.25 * 0.3]])


def test_at_a_high_temperature_the_weight_of_the_teacher_stays(rng: np.random.Generator) -> None:
    """With the factor T^2, the gradient has a limit: the difference of the centred logits, divided by V."""
    z, teacher = rng.standard_normal((2, 1, 1, V))
    q = teacher_probs([teacher], 1e4)
    dlogits, *_ = distillation_backward(1.0, distillation_forward(z, q, np.array([[0]]), 1.0, 1e4)[1])
    centred = (z - z.mean()) - (teacher - teacher.mean())
    np.testing.assert_allclose(dlogits, centred / V, atol=1e-4)


def test_gradients_of_the_parts_of_a_batch_add_up(rng: np.random.Generator) -> None:
    logits, q = rng.standard_normal((2, 4, V)), teacher_probs([rng.standard_normal((2, 4, V))], T)
    loss, cache = distillation_forward(logits, q, TARGETS, ALPHA, T)
    parts = [distillation_forward(logits[i : i + 1], q[i : i + 1], TARGETS[i : i + 1], ALPHA, T, 6) for i in (0, 1)]
    assert sum(part for part, _ in parts) == pytest.approx(float(loss), abs=1e-14)
    together = np.concatenate([distillation_backward(1.0, part)[0] for _, part in parts])
    np.testing.assert_allclose(together, distillation_backward(1.0, cache)[0], rtol=1e-12, atol=1e-16)


def test_float32_stays_float32_and_extreme_logits_stay_finite() -> None:
    logits = np.array([[200.0, -200.0, 0.0]], dtype=np.float32)
    q = teacher_probs([-logits], 0.5)
    loss, cache = distillation_forward(logits, q, np.array([1]), ALPHA, 0.5)
    (dlogits, *_) = distillation_backward(1.0, cache)
    for value in (loss, dlogits, q):
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
