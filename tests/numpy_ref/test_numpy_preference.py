"""The losses of pairs: each gradient against finite differences and against torch, and what each loss promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from differences import compare
from torch.nn import functional as F

from numpy_ref.config import GPTConfig
from numpy_ref.gpt import forward, init_params
from numpy_ref.loss import IGNORE
from numpy_ref.preference import (
    answer_targets,
    dpo_backward,
    dpo_forward,
    ipo_backward,
    ipo_forward,
    log_probs_backward,
    log_probs_forward,
    orpo_backward,
    orpo_forward,
    reference_log_probs,
    simpo_backward,
    simpo_forward,
)

# two pairs in rows (chosen, rejected, chosen, rejected); the tokens of a row: prompt, answer, end token 9, padding 0
TOKENS = np.array(
    [
        [1, 2, 3, 4, 5, 9, 0, 0],
        [1, 2, 3, 6, 9, 0, 0, 0],
        [7, 8, 5, 9, 0, 0, 0, 0],
        [7, 8, 5, 5, 4, 3, 2, 9],
    ]
)
BEGIN, END = np.array([3, 3, 2, 2]), np.array([6, 5, 4, 8])
V, TAU, BETA, GAMMA, LAMBDA = 10, 0.25, 0.7, 0.4, 0.6


def torch_log_probs(logits: torch.Tensor, targets: np.ndarray, mean: bool) -> torch.Tensor:
    losses = F.cross_entropy(logits.mT, torch.from_numpy(targets), ignore_index=IGNORE, reduction="none")
    return -losses.sum(1) / torch.from_numpy((targets != IGNORE).sum(1) if mean else np.ones(len(targets)))


def torch_dpo(w: Any, lose: Any, rw: Any, rl: Any, smoothing: float = 0.0) -> torch.Tensor:
    h = BETA * (w - lose - (rw - rl))
    return (-(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)).mean()


def torch_ipo(w: Any, lose: Any, rw: Any, rl: Any) -> torch.Tensor:
    return F.mse_loss(w - lose - (rw - rl), torch.full_like(w, 0.5 / TAU))


def torch_simpo(w: Any, lose: Any) -> torch.Tensor:
    return -F.logsigmoid(BETA * (w - lose) - GAMMA).mean()


def torch_orpo(w: Any, lose: Any) -> torch.Tensor:
    def odds(m: torch.Tensor) -> torch.Tensor:
        return m.exp() / (1 - m.exp())

    return (-w - LAMBDA * torch.log(torch.sigmoid(torch.log(odds(w) / odds(lose))))).mean()


Case = tuple[Callable, Callable, Callable, dict[str, float], bool, bool]
LOSSES: dict[str, Case] = {  # forward, backward, the same in torch, options, takes means, takes a reference
    "dpo": (dpo_forward, dpo_backward, torch_dpo, {"beta": BETA}, False, True),
    "smoothed dpo": (
        dpo_forward,
        dpo_backward,
        lambda *rows: torch_dpo(*rows, 0.2),
        {"beta": BETA, "label_smoothing": 0.2},
        False,
        True,
    ),
    "ipo of sums": (ipo_forward, ipo_backward, torch_ipo, {"tau": TAU}, False, True),
    "ipo of means": (ipo_forward, ipo_backward, torch_ipo, {"tau": TAU}, True, True),
    "simpo": (simpo_forward, simpo_backward, torch_simpo, {"beta": BETA, "gamma": GAMMA}, True, False),
    "orpo": (orpo_forward, orpo_backward, torch_orpo, {"weight": LAMBDA}, True, False),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rows_of(rng: np.random.Generator, with_reference: bool, n: int = 5) -> list[np.ndarray]:
    """Random log-probabilities of chosen and rejected, and of the reference where the loss has one."""
    return [-0.05 - 2 * rng.random(n) for _ in range(4 if with_reference else 2)]


# ---- against finite differences and torch


@pytest.mark.parametrize("mean", [False, True])
def test_gradient_of_log_probabilities_equals_finite_differences(rng: np.random.Generator, mean: bool) -> None:
    logits, targets = rng.standard_normal((4, 7, V)), answer_targets(TOKENS, BEGIN, END)
    upstream = rng.standard_normal(4)
    _, cache = log_probs_forward(logits, targets, mean)
    (dlogits,) = log_probs_backward(upstream, cache)
    compare(dlogits, lambda: float((log_probs_forward(logits, targets, mean)[0] * upstream).sum()), logits, "logits")


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_a_loss_equals_finite_differences(rng: np.random.Generator, name: str) -> None:
    forward, backward, _, options, _, with_reference = LOSSES[name]
    rows = rows_of(rng, with_reference)
    for denominator in (None, 7):
        gradients = backward(1.7, forward(*rows, **options, denominator=denominator)[1])
        assert [g is None for g in gradients] == [False, False, True, True][: len(rows)]
        for row, gradient in zip(rows, gradients, strict=True):
            if gradient is not None:
                compare(
                    gradient, lambda n=denominator: 1.7 * float(forward(*rows, **options, denominator=n)[0]), row, name
                )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_of_the_logits_equal_torch(rng: np.random.Generator, name: str) -> None:
    forward, backward, in_torch, options, mean, with_reference = LOSSES[name]
    targets = answer_targets(TOKENS, BEGIN, END)
    logits, reference = rng.standard_normal((2, 4, 7, V))
    rows, cache = log_probs_forward(logits, targets, mean)
    arguments = [rows[0::2], rows[1::2]]
    if with_reference:
        frozen, _ = log_probs_forward(reference, targets, mean)
        arguments += [frozen[0::2], frozen[1::2]]
    loss, pair_cache = forward(*arguments, **options)
    drows = np.empty_like(rows)
    drows[0::2], drows[1::2] = backward(1.0, pair_cache)[:2]
    (dlogits,) = log_probs_backward(drows, cache)

    z = torch.tensor(logits, requires_grad=True)
    of_torch = torch_log_probs(z, targets, mean)
    torch_arguments = [of_torch[0::2], of_torch[1::2]]
    if with_reference:
        frozen_torch = torch_log_probs(torch.tensor(reference), targets, mean)
        torch_arguments += [frozen_torch[0::2], frozen_torch[1::2]]
    wanted = in_torch(*torch_arguments)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    np.testing.assert_allclose(dlogits, z.grad, rtol=0, atol=1e-12)
    assert np.abs(dlogits).max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32_and_extreme_rows_stay_finite(name: str) -> None:
    forward, backward, _, options, _, with_reference = LOSSES[name]
    extremes = np.array([-1e-3, -80.0, -1e-3], dtype=np.float32), np.array([-80.0, -1e-3, -1e-3], dtype=np.float32)
    loss, cache = forward(*extremes, *([np.full(3, -1, np.float32)] * 2 if with_reference else []), **options)
    for value in (loss, *backward(1.0, cache)[:2]):
        assert value.dtype == np.float32
        assert np.isfinite(value).all()


# ---- which tokens have a loss


def test_only_the_answer_and_its_end_token_have_a_target() -> None:
    targets = answer_targets(TOKENS, BEGIN, END)
    assert [row[row != IGNORE].tolist() for row in targets] == [[4, 5, 9], [6, 9], [5, 9], [5, 5, 4, 3, 2, 9]]
    at_the_end = (targets == 9).argmax(axis=1) + 1
    assert (at_the_end == END - 1).all()


def test_a_row_without_an_answer_has_neither_value_nor_gradient(rng: np.random.Generator) -> None:
    targets = answer_targets(TOKENS, BEGIN, np.array([6, 3, 4, 8]))
    for mean in (False, True):
        rows, cache = log_probs_forward(rng.standard_normal((4, 7, V)), targets, mean)
        (dlogits,) = log_probs_backward(np.ones(4), cache)
        assert rows[1] == 0
        assert (dlogits[1] == 0).all()
        assert (rows[[0, 2, 3]] < 0).all()


def test_log_probability_of_an_answer_is_the_sum_over_its_tokens_or_their_mean() -> None:
    logits = np.log(np.tile(np.arange(1.0, 5), (1, 3, 1)))  # p = 0.1, 0.2, 0.3, 0.4
    targets = np.array([[1, IGNORE, 3]])
    assert log_probs_forward(logits, targets)[0] == pytest.approx(math.log(0.2 * 0.4))
    assert log_probs_forward(logits, targets, mean=True)[0] == pytest.approx(math.log(0.2 * 0.4) / 2)


def test_gradient_of_the_padding_and_of_the_prompt_is_zero(rng: np.random.Generator) -> None:
    targets = answer_targets(TOKENS, BEGIN, END)
    _, cache = log_probs_forward(rng.standard_normal((4, 7, V)), targets)
    (dlogits,) = log_probs_backward(np.ones(4), cache)
    assert ((np.abs(dlogits).max(axis=-1) > 0) == (targets != IGNORE)).all()


# ---- what the losses promise


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_at_the_reference_dpo_is_exactly_log_2(dropout: float, smoothing: float) -> None:
    config = GPTConfig(
        vocab_size=V, context_length=8, d_model=8, n_layer=1, n_head=2, d_ff=16, dropout=dropout, position="rope"
    )
    params, targets = init_params(config, dtype=np.float64), answer_targets(TOKENS, BEGIN, END)
    rows, _ = log_probs_forward(forward(params, config, TOKENS[:, :-1]), targets)
    frozen = reference_log_probs(params, config, TOKENS[:, :-1], targets)
    loss, cache = dpo_forward(rows[0::2], rows[1::2], frozen[0::2], frozen[1::2], 0.1, smoothing)
    assert loss == math.log(2)
    dchosen, drejected, *_ = dpo_backward(1.0, cache)
    if smoothing == 0.5:  # each side may be the better one: nothing is learnt
        assert (dchosen == 0).all()
        assert (drejected == 0).all()
    else:  # a step against the gradient makes chosen likelier and rejected less likely
        assert (dchosen < 0).all()
        assert (drejected > 0).all()


def test_dpo_of_swapped_sides_has_the_opposite_margin_and_mirrored_gradients(rng: np.random.Generator) -> None:
    w, lose, rw, rl = rows_of(rng, with_reference=True)
    _, cache = dpo_forward(w, lose, rw, rl, BETA)
    _, swapped = dpo_forward(lose, w, rl, rw, BETA)
    np.testing.assert_array_equal(swapped["h"], -cache["h"])
    # sigmoid(-h) + sigmoid(h) = 1: the pull on a pair and that on the swapped pair add up to beta / N
    dchosen, drejected, *_ = dpo_backward(1.0, cache)
    dlose, dw, *_ = dpo_backward(1.0, swapped)
    np.testing.assert_allclose(drejected - dlose, np.full(5, BETA / 5), rtol=1e-12)
    assert (np.sign(dw) == -np.sign(dchosen)).all()


def test_label_smoothing_is_the_mean_over_right_and_swapped_labels(rng: np.random.Generator) -> None:
    w, lose, rw, rl = rows_of(rng, with_reference=True)
    right, swapped = dpo_forward(w, lose, rw, rl, BETA)[0], dpo_forward(lose, w, rl, rw, BETA)[0]
    assert dpo_forward(w, lose, rw, rl, BETA, 0.3)[0] == pytest.approx(0.7 * right + 0.3 * swapped, abs=1e-14)


def test_the_minimum_of_each_loss_is_where_its_paper_puts_it() -> None:
    def margin_without_slope(backward: Callable, forward: Callable, h: float, **options: float) -> float:
        zero = np.zeros(1)
        return abs(float(backward(1.0, forward(np.array([h]), zero, zero, zero, **options)[1])[0][0]))

    # DPO with smoothing e is least where sigmoid(beta h) = 1 - e; IPO where h = 1 / (2 tau)
    assert margin_without_slope(dpo_backward, dpo_forward, math.log(9) / BETA, beta=BETA, label_smoothing=0.1) < 1e-15
    assert margin_without_slope(ipo_backward, ipo_forward, 2.0, tau=0.25) < 1e-15


def test_simpo_at_equal_sides_has_the_loss_of_its_margin() -> None:
    loss, _ = simpo_forward(np.array([-1.0]), np.array([-1.0]), 2.0, 1.5)
    assert loss == pytest.approx(math.log(1 + math.exp(1.5)))


def test_orpo_by_plain_arithmetic() -> None:
    loss, _ = orpo_forward(np.log([0.5]), np.log([0.2]), 0.1)  # odds 1 and 1/4, ratio 4, sigmoid(log 4) = 4/5
    assert loss == pytest.approx(math.log(2) + 0.1 * math.log(5 / 4))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_micro_batches_add_up_to_the_gradient_of_the_batch(rng: np.random.Generator, name: str) -> None:
    forward, backward, _, options, _, with_reference = LOSSES[name]
    rows = rows_of(rng, with_reference)
    loss, cache = forward(*rows, **options)
    parts = [forward(*(row[part] for row in rows), **options, denominator=5) for part in (slice(0, 2), slice(2, 5))]
    assert sum(part for part, _ in parts) == pytest.approx(loss, abs=1e-14)
    for side in (0, 1):
        together = np.concatenate([backward(1.0, part)[side] for _, part in parts])
        np.testing.assert_allclose(together, backward(1.0, cache)[side], rtol=1e-13)
