"""Learning from rewards: gradients against differences and torch, and estimators against exact expectations (no sampling)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from differences import compare
from torch.nn import functional as F

from numpy_ref.embedding import embedding_backward, embedding_forward
from numpy_ref.enumeration import (
    END,
    all_answers,
    answer_gradients,
    estimator_moments,
    expected_reward_backward,
    expected_reward_forward,
    kl_estimate_moments,
)
from numpy_ref.loss import IGNORE
from numpy_ref.policy_gradient import (
    dr_grpo_advantages,
    grpo_advantages,
    kl_backward,
    kl_estimate_backward,
    kl_estimate_forward,
    kl_forward,
    policy_gradient_backward,
    policy_gradient_forward,
    rloo_advantages,
)
from numpy_ref.preference import log_probs_backward, log_probs_forward

V, L = 3, 3
ANSWERS = all_answers(V, L)
N, C = len(ANSWERS.ended), 7
ADVANTAGES = {"rloo": rloo_advantages, "dr_grpo": dr_grpo_advantages, "grpo": grpo_advantages}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def table(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((C, V))


@pytest.fixture
def rewards() -> np.ndarray:
    """1 for an answer that ends and has exactly one token 2, otherwise 0."""
    return ((ANSWERS.targets == 2).sum(axis=1) == 1) * ANSWERS.ended * 1.0


def exact_gradient(table: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """dJ/dtable by the chain of backward passes."""
    logits, lookup = embedding_forward(ANSWERS.contexts, table)
    rows, cache = log_probs_forward(logits, ANSWERS.targets)
    drows, _ = expected_reward_backward(1.0, expected_reward_forward(rows, rewards)[1])
    return embedding_backward(log_probs_backward(drows, cache)[0], lookup)[1]


def group_gradient(
    table: np.ndarray, targets: np.ndarray, contexts: np.ndarray, advantages: np.ndarray, own_length: bool = False
) -> np.ndarray:
    """dtable of the loss of one group, by the functions that train."""
    logits, lookup = embedding_forward(contexts, table)
    denominator = len(targets) if own_length else len(targets) * L
    _, cache = policy_gradient_forward(logits, targets, advantages, denominator, own_length)
    return embedding_backward(policy_gradient_backward(1.0, cache)[0], lookup)[1]


def mean_over_groups(
    table: np.ndarray, rewards: np.ndarray, advantages: Callable, own_length: bool = False
) -> np.ndarray:
    """The expectation of the loss's gradient: the sum over all groups of 2 answers, each with its probability."""
    log_pi, _ = answer_gradients(table, ANSWERS)
    mean = np.zeros_like(table)
    for pair in product(range(N), repeat=2):
        group = list(pair)
        a = advantages(rewards[group][None])[0]
        gradient = group_gradient(table, ANSWERS.targets[group], ANSWERS.contexts[group], a, own_length)
        mean += np.exp(log_pi[group].sum()) * gradient
    return mean


# ---- against finite differences and torch


@pytest.mark.parametrize("own_length", [False, True])
def test_gradient_of_the_loss_equals_finite_differences_and_torch(rng: np.random.Generator, own_length: bool) -> None:
    logits, targets, a = rng.standard_normal((N, L, V)), ANSWERS.targets, rng.standard_normal(N)
    loss, cache = policy_gradient_forward(logits, targets, a, 2.5, own_length)
    (dlogits,) = policy_gradient_backward(1.7, cache)
    compare(
        dlogits, lambda: 1.7 * float(policy_gradient_forward(logits, targets, a, 2.5, own_length)[0]), logits, "logits"
    )

    z = torch.tensor(logits, requires_grad=True)
    nll = F.cross_entropy(z.mT, torch.from_numpy(targets), ignore_index=IGNORE, reduction="none")
    lengths = torch.from_numpy((targets != IGNORE).sum(1)) if own_length else 1
    wanted = (torch.from_numpy(a) * nll.sum(1) / lengths).sum() / 2.5
    (1.7 * wanted).backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    np.testing.assert_allclose(dlogits, z.grad, rtol=0, atol=1e-12)


def test_gradient_of_the_kl_equals_finite_differences_and_torch(rng: np.random.Generator) -> None:
    logits, reference = rng.standard_normal((2, N, L, V))
    targets = ANSWERS.targets
    loss, cache = kl_forward(logits, reference, targets, 4)
    dlogits, none = kl_backward(1.7, cache)
    assert none is None
    compare(dlogits, lambda: 1.7 * float(kl_forward(logits, reference, targets, 4)[0]), logits, "logits")

    z = torch.tensor(logits, requires_grad=True)
    # F.kl_div(input=log q, target=log p) is KL(p, q)
    each = F.kl_div(torch.tensor(reference).log_softmax(-1), z.log_softmax(-1), reduction="none", log_target=True)
    wanted = each.sum(-1)[torch.from_numpy(targets) != IGNORE].sum() / 4
    (1.7 * wanted).backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    np.testing.assert_allclose(dlogits, z.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_slope_of_a_kl_estimator_equals_finite_differences(rng: np.random.Generator, kind: str) -> None:
    log_p, log_q, upstream = rng.standard_normal((3, 6))
    _, cache = kl_estimate_forward(log_p, log_q, kind)
    dlog_p, _ = kl_estimate_backward(upstream, cache)
    compare(dlog_p, lambda: float((kl_estimate_forward(log_p, log_q, kind)[0] * upstream).sum()), log_p, kind)


def test_exact_gradient_of_the_expected_reward_equals_finite_differences(table: np.ndarray) -> None:
    rewards = np.random.default_rng(1).standard_normal(N)

    def expected() -> float:
        return float(expected_reward_forward(answer_gradients(table, ANSWERS)[0], rewards)[0])

    compare(exact_gradient(table, rewards), expected, table, "table")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_logits_is_kept(rng: np.random.Generator, dtype: type) -> None:
    logits, reference = rng.standard_normal((2, N, L, V)).astype(dtype)
    loss, cache = policy_gradient_forward(logits, ANSWERS.targets, rng.standard_normal(N), 3)
    kl, kl_cache = kl_forward(logits, reference, ANSWERS.targets, 3)
    results = (loss, policy_gradient_backward(1.0, cache)[0], kl, kl_backward(1.0, kl_cache)[0])
    assert {result.dtype for result in results} == {np.dtype(dtype)}


# ---- advantages


def test_advantages_by_plain_arithmetic() -> None:
    rewards = np.array([[1.0, 0, 0, 1], [3.0, 1, 1, 1]])
    np.testing.assert_allclose(rloo_advantages(rewards), [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [2, -2 / 3, -2 / 3, -2 / 3]])
    np.testing.assert_allclose(dr_grpo_advantages(rewards), [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]])
    np.testing.assert_allclose(
        grpo_advantages(rewards, eps=0.0),
        [np.array([0.5, -0.5, -0.5, 0.5]) / (1 / 3) ** 0.5, [1.5, -0.5, -0.5, -0.5]],
    )


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_without_variance_has_exactly_zero_gradient(rng: np.random.Generator, name: str) -> None:
    for reward, size in product((0.1, 0.3, -1 / 3, 1e6), (2, 3, 7)):
        a = ADVANTAGES[name](np.full((1, size), reward))[0]
        logits, targets = rng.standard_normal((size, L, V)), ANSWERS.targets[:size]
        loss, cache = policy_gradient_forward(logits, targets, a, size * L)
        assert loss == 0
        assert (policy_gradient_backward(1.0, cache)[0] == 0).all()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_the_advantage_of_a_group_does_not_depend_on_other_groups(rng: np.random.Generator, name: str) -> None:
    rewards = rng.standard_normal((3, 4))
    alone = np.concatenate([ADVANTAGES[name](group[None]) for group in rewards])
    np.testing.assert_array_equal(ADVANTAGES[name](rewards), alone)


# ---- expectations: all groups of two answers, each with its probability


def test_all_answers_are_the_ones_that_the_policy_can_write(table: np.ndarray) -> None:
    log_pi, gradients = answer_gradients(table, ANSWERS)
    assert np.exp(log_pi).sum() == pytest.approx(1, abs=1e-14)
    assert np.abs(np.tensordot(np.exp(log_pi), gradients, axes=1)).max() < 1e-15  # the gradient of 1
    assert (N, int(ANSWERS.ended.sum())) == (15, 7)
    assert ANSWERS.targets[:4].tolist() == [[0, -100, -100], [1, 0, -100], [2, 0, -100], [1, 1, 0]]
    assert ((ANSWERS.targets == END).sum(axis=1) == ANSWERS.ended).all()


def test_rloo_estimates_the_exact_gradient_without_bias(table: np.ndarray, rewards: np.ndarray) -> None:
    mean = mean_over_groups(table, rewards, rloo_advantages)
    np.testing.assert_allclose(mean, -exact_gradient(table, rewards) / L, rtol=0, atol=1e-14)


def test_dr_grpo_estimates_the_exact_gradient_up_to_one_factor(table: np.ndarray, rewards: np.ndarray) -> None:
    mean = mean_over_groups(table, rewards, dr_grpo_advantages)
    np.testing.assert_allclose(mean, -exact_gradient(table, rewards) / L * (2 - 1) / 2, rtol=0, atol=1e-14)


def direction_error(mean: np.ndarray, exact: np.ndarray) -> float:
    """The part of `mean` that is not along `exact`, relative to the part that is."""
    along = (mean * exact).sum() / (exact**2).sum()
    return float(np.linalg.norm(mean / along - exact) / np.linalg.norm(exact))


def test_grpo_estimates_another_direction(table: np.ndarray, rewards: np.ndarray) -> None:
    exact = exact_gradient(table, rewards)
    assert direction_error(mean_over_groups(table, rewards, rloo_advantages), exact) < 1e-14
    # with one prompt and two rewards sigma changes the length only; division by the own length changes the direction
    assert direction_error(mean_over_groups(table, rewards, grpo_advantages), exact) < 1e-14
    assert direction_error(mean_over_groups(table, rewards, grpo_advantages, own_length=True), exact) > 0.1
    graded = rewards * np.where(ANSWERS.targets[:, 0] == 2, 10, 1)  # sigma of more than two rewards changes it, too
    assert direction_error(mean_over_groups(table, graded, grpo_advantages), exact_gradient(table, graded)) > 0.02


def test_sigma_gives_a_hard_prompt_more_weight_than_the_expected_reward_has() -> None:
    """Against binomial sums, with 8 answers for each prompt and the probability p of a success."""
    answers, K, weights = all_answers(2, 1), 8, []
    for p in (0.5, 0.02):
        log_pi, gradients = answer_gradients(np.log([[p, 1 - p]]), answers)
        exact = np.tensordot(np.exp(log_pi) * [1, 0], gradients, axes=1)
        mean, _ = estimator_moments(log_pi, gradients, np.array([1.0, 0]), K, grpo_advantages)
        weights.append((mean * exact).sum() / (exact**2).sum())
        shares = (
            np.arange(1, K) / K
        )  # of successes in a group; the variance of its rewards is K / (K - 1) share (1 - share)
        chances = [math.comb(K, c) * p**c * (1 - p) ** (K - c) for c in range(1, K)]
        sigma = np.sqrt(K / (K - 1) * shares * (1 - shares))
        assert weights[-1] == pytest.approx((chances * shares * (1 - shares) / (sigma + 1e-4)).sum() / (p * (1 - p)))
    assert weights[1] > 1.3 * weights[0]


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("own_length", [False, True])
def test_moments_over_all_groups_equal_the_sum_of_single_groups(
    table: np.ndarray, rewards: np.ndarray, name: str, own_length: bool
) -> None:
    log_pi, _ = answer_gradients(table, ANSWERS)
    _, gradients = answer_gradients(table, ANSWERS, own_length)
    mean, variance = estimator_moments(log_pi, gradients, rewards, 2, ADVANTAGES[name])
    one_by_one = mean_over_groups(table, rewards, ADVANTAGES[name], own_length) * -(1 if own_length else L)
    np.testing.assert_allclose(mean, one_by_one, rtol=0, atol=1e-14)
    second = 0.0
    for i, j in product(range(N), repeat=2):
        a = ADVANTAGES[name](rewards[[i, j]][None])[0]
        second += np.exp(log_pi[i] + log_pi[j]) * (((a[0] * gradients[i] + a[1] * gradients[j]) / 2) ** 2).sum()
    assert variance == pytest.approx(second - (mean**2).sum(), abs=1e-14)


def test_gradients_of_micro_batches_add_up_to_the_gradient_of_the_batch(table: np.ndarray, rewards: np.ndarray) -> None:
    """The parts have different numbers of answers and of targets, because truncated answers are masked."""
    targets = np.where(ANSWERS.ended[:, None], ANSWERS.targets, IGNORE)[:14]
    logits, a = table[ANSWERS.contexts[:14]], rloo_advantages(rewards[:14].reshape(7, 2)).reshape(-1)
    loss, cache = policy_gradient_forward(logits, targets, a, 14 * L)
    parts = [policy_gradient_forward(logits[p], targets[p], a[p], 14 * L) for p in (slice(0, 4), slice(4, 14))]
    assert sum(part for part, _ in parts) == pytest.approx(loss, abs=1e-15)
    together = np.concatenate([policy_gradient_backward(1.0, part)[0] for _, part in parts])
    np.testing.assert_array_equal(together, policy_gradient_backward(1.0, cache)[0])


# ---- the end token


def stopping(loss_on_the_end: bool) -> np.ndarray:
    """The chance of an answer that ends, step by step, for a policy over {end, a} that is rewarded for ending.

    Truncated answers are masked, so that nothing but the end token can teach it to stop.
    """
    answers = all_answers(2, 3)
    rewards = answers.ended * 1.0
    targets = np.where(answers.ended[:, None], answers.targets, IGNORE)
    if not loss_on_the_end:
        targets = np.where(targets == END, IGNORE, targets)
    table, chances = np.zeros((3, 2)), []
    for _ in range(61):
        log_pi, _ = answer_gradients(table, answers)
        chances.append(np.exp(log_pi[answers.ended]).sum())
        mean = np.zeros_like(table)
        for pair in product(range(4), repeat=2):
            group = list(pair)
            a = rloo_advantages(rewards[group][None])[0]
            mean += np.exp(log_pi[group].sum()) * group_gradient(table, targets[group], answers.contexts[group], a)
        table -= 60 * mean
    return np.array(chances)


def test_a_policy_learns_to_stop_because_the_end_token_has_loss() -> None:
    chances = stopping(loss_on_the_end=True)
    assert (np.diff(chances) > 0).all()
    assert chances[-1] > 0.98


def test_a_policy_whose_end_token_is_masked_forgets_to_stop() -> None:
    chances = stopping(loss_on_the_end=False)
    assert (np.diff(chances) < 0).all()
    assert chances[0] == pytest.approx(7 / 8)
    assert chances[-1] == pytest.approx(1 / 2, abs=0.01)  # only after "a a" does it still end as often as at first


# ---- KL


def two_policies(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    table = rng.standard_normal((C, V))
    return table, table + 0.5 * rng.standard_normal((C, V))


def kl_of(log_p: np.ndarray, log_q: np.ndarray) -> float:
    return float(np.exp(log_p) @ (log_p - log_q))


def test_kl_of_answers_is_the_mean_of_the_sums_over_their_positions(rng: np.random.Generator) -> None:
    table, reference = two_policies(rng)
    log_p, log_q = answer_gradients(table, ANSWERS)[0], answer_gradients(reference, ANSWERS)[0]
    mean = 0.0
    for n in range(N):
        contexts, targets = ANSWERS.contexts[n : n + 1], ANSWERS.targets[n : n + 1]
        mean += np.exp(log_p[n]) * kl_forward(table[contexts], reference[contexts], targets, 1)[0]
    assert mean == pytest.approx(kl_of(log_p, log_q), abs=1e-14)
    assert kl_forward(table[ANSWERS.contexts], table[ANSWERS.contexts], ANSWERS.targets, 1)[0] == 0


def test_gradient_of_the_kl_at_each_position_takes_the_tokens_before_it_as_given(rng: np.random.Generator) -> None:
    """The KL of whole answers also changes because other answers become likely; this part is sum_y pi(y) KL(y) d(log pi(y))."""
    table, reference = two_policies(rng)
    log_p, gradients = answer_gradients(table, ANSWERS)
    given, moved = np.zeros_like(table), np.zeros_like(table)
    for n in range(N):
        contexts, targets = ANSWERS.contexts[n : n + 1], ANSWERS.targets[n : n + 1]
        logits, lookup = embedding_forward(contexts, table)
        kl, cache = kl_forward(logits, reference[contexts], targets, 1)
        given += np.exp(log_p[n]) * embedding_backward(kl_backward(1.0, cache)[0], lookup)[1]
        moved += np.exp(log_p[n]) * kl * gradients[n]
    log_q, _ = answer_gradients(reference, ANSWERS)
    exact = np.tensordot(np.exp(log_p) * (log_p - log_q), gradients, axes=1)
    np.testing.assert_allclose(given + moved, exact, rtol=0, atol=1e-14)
    assert np.abs(moved).max() > 0.01


def test_kl_estimators_have_the_means_and_gradients_that_are_claimed(rng: np.random.Generator) -> None:
    table, reference = two_policies(rng)
    log_p, gradients = answer_gradients(table, ANSWERS)
    log_q, _ = answer_gradients(reference, ANSWERS)
    exact = kl_of(log_p, log_q)
    moments = {kind: kl_estimate_moments(log_p, log_q, gradients, kind) for kind in ("k1", "k2", "k3")}
    assert moments["k1"][0] == pytest.approx(exact, abs=1e-14)
    assert moments["k3"][0] == pytest.approx(exact, abs=1e-14)
    assert abs(moments["k2"][0] / exact - 1) > 0.01
    assert moments["k3"][1] < moments["k1"][1]
    assert (kl_estimate_forward(log_p, log_q, "k3")[0] >= 0).all()

    z, frozen = torch.tensor(table, requires_grad=True), torch.tensor(reference)
    p, q = (log_prob_in_torch(each) for each in (z, frozen))
    (forward,) = torch.autograd.grad((p.exp() * (p - q)).sum(), z, retain_graph=True)
    (backward,) = torch.autograd.grad((q.exp() * (q - p)).sum(), z)
    for kind, wanted in (("k1", 0 * forward), ("k2", forward), ("k3", backward)):
        np.testing.assert_allclose(moments[kind][2], wanted, rtol=0, atol=1e-14)
    assert (forward - backward).abs().max() > 0.01


def log_prob_in_torch(table: torch.Tensor) -> torch.Tensor:
    """log pi (N,) of all answers."""
    logits = table[torch.from_numpy(ANSWERS.contexts)]
    return -F.cross_entropy(logits.mT, torch.from_numpy(ANSWERS.targets), ignore_index=IGNORE, reduction="none").sum(1)
