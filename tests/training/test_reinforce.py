"""Reinforcement learning: an estimator whose expectation is the exact gradient, and runs that resume bit for bit."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from numpy_ref import policy_gradient as reference
from positron.config import IGNORE, Advantage, GPTConfig, ReinforceConfig
from positron.inference.rollouts import Rollout
from positron.model.gpt import GPT
from positron.text.char_word import CharTokenizer
from positron.training.objective.answer_totals import AnswerTotals
from positron.training.objective.policy_gradient import advantages, exact_kl
from positron.training.objective.reinforce import Question, ReinforceObjective, RewardRule
from positron.training.objective.validation_text import ValidationText

TOKENIZER = CharTokenizer("ab")
END = TOKENIZER.end_ids[0]
A, B = TOKENIZER.encode("ab")
ROWS = torch.tensor([[A, B]])
TEXT = ValidationText(ROWS, ROWS, None, 2, TOKENIZER.token_bytes(), "text")


def model_of(seed: int = 0) -> GPT:
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=8, d_model=8, n_layer=1, n_head=2)
    model = GPT(config, seed=seed).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def objective_of(
    reward: Callable[[str, str], float] = lambda prompt, answer: float(len(answer)),
    decided: Callable[[str, str], int | None] = lambda prompt, answer: None,
    train: str = "ab",
    val: str = "ab",
    **settings: Any,
) -> ReinforceObjective:
    values = {"prompts": 2, "samples": 4, "max_tokens": 3, "val_prompts": 2, "val_samples": 2, **settings}
    questions = {"a": Question("a", [END, A], (END,)), "b": Question("b", [END, B], (END,))}
    return ReinforceObjective(
        ([questions[name] for name in train], [questions[name] for name in val]),
        RewardRule(reward, 2.0, decided),
        TOKENIZER,
        ReinforceConfig(**values),
        micro_batch_size=3,
        seed=5,
        initial=model_of(1),
        text=TEXT,
        replay=None,
        is_exact=True,
    )


def gradient(model: GPT, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def step_gradient(objective: ReinforceObjective, model: GPT, step: int = 1) -> torch.Tensor:
    """The gradient of an optimizer step, as the training loop computes it."""
    parts = objective.examples(model, objective.batch(step, 0, 1), step, 0, 1, lambda: None)
    count = sum(objective.count(part) for part in parts)
    return sum(gradient(model, objective.loss(model, part) / count) for part in parts)


def answers_up_to(length: int) -> list[list[int]]:
    """All answers of at most `length` tokens: those that end with the end token, and those that are cut off."""
    others = [i for i in range(TOKENIZER.vocab_size) if i != END]
    ended = [[*body, END] for n in range(length) for body in itertools.product(others, repeat=n)]
    return [*ended, *map(list, itertools.product(others, repeat=length))]


def answers_to(model: GPT, prompt: list[int]) -> tuple[list[list[int]], torch.Tensor]:
    """All answers of at most two tokens to a prompt, and their probabilities."""
    answers = answers_up_to(2)
    logprobs = []
    for answer in answers:
        rows = F.log_softmax(model(torch.tensor([[*prompt, *answer[:-1]]]))[0, 1:], dim=-1)
        logprobs.append(rows[torch.arange(len(answer)), torch.tensor(answer)].sum())
    p = torch.stack(logprobs).exp()
    assert p.sum().item() == pytest.approx(1)
    return answers, p


def estimates(
    objective: ReinforceObjective, model: GPT, answers: list[list[int]], rewards: torch.Tensor
) -> dict[tuple[int, int], torch.Tensor]:
    """The estimated gradient for each pair of answers to the first question, which their order does not change."""
    question, made = objective.questions[0], {}
    for pair in itertools.combinations_with_replacement(range(len(answers)), 2):
        weights = advantages(rewards[list(pair)][None], objective.config.advantage)[0]
        sampled = [Rollout(0, answers[i], [0.0] * len(answers[i]), ended=answers[i][-1] == END) for i in pair]
        rows = [
            (question.ids, objective._decisive(question, answer), float(weight))
            for answer, weight in zip(sampled, weights, strict=True)
        ]
        (part,) = objective._parts(rows, torch.device("cpu"))
        part = (*part[:2], part[2].double(), *part[3:])
        made[pair] = made[pair[::-1]] = gradient(model, objective.loss(model, part) / 2)  # the mean over the answers
    return made


# the advantages of both kinds are compared with their NumPy twins below, for which the expectation is enumerated, too
@pytest.mark.parametrize("kind", ["rloo", pytest.param("dr_grpo", marks=pytest.mark.slow)])
def test_the_expected_gradient_is_that_of_the_expected_reward(kind):
    """Over all pairs of answers to a prompt, with their probabilities; dr_grpo's is (K - 1) / K times as large."""
    model, objective = model_of(), objective_of(samples=2, max_tokens=2, advantage=kind)
    answers, p = answers_to(model, objective.questions[0].ids)
    rewards = torch.tensor([float(len(answer)) ** 2 + answer[0] for answer in answers], dtype=torch.float64)
    exact = gradient(model, -(p * rewards).sum())
    q = p.tolist()
    estimated = sum(q[i] * q[j] * each for (i, j), each in estimates(objective, model, answers, rewards).items())
    factor = {"rloo": 1.0, "dr_grpo": 0.5}[kind]
    torch.testing.assert_close(estimated, factor * exact, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_tokens_after_the_decision_of_the_reward_are_left_out_which_changes_only_the_noise():
    """An answer that begins with b is wrong, whatever follows; of the others, only `a` and its end is right."""
    model = model_of()
    answers, p = answers_to(model, objective_of().questions[0].ids)
    rewards = torch.tensor([float(answer == [A, END]) for answer in answers], dtype=torch.float64)
    exact = gradient(model, -(p * rewards).sum())
    q, noise = p.tolist(), {}
    for name, decided in (
        ("all tokens", lambda prompt, answer: None),
        ("decisive tokens", lambda prompt, answer: 1 if answer.startswith("b") else None),
    ):
        objective = objective_of(decided=decided, samples=2, max_tokens=2)
        made = estimates(objective, model, answers, rewards)
        mean = sum(q[i] * q[j] * each for (i, j), each in made.items())
        torch.testing.assert_close(mean, exact, rtol=1e-5, atol=1e-7)
        noise[name] = sum(q[i] * q[j] * float((each - exact).square().sum()) for (i, j), each in made.items())
    assert noise["decisive tokens"] < noise["all tokens"]
    wrong = Rollout(0, [B, A, END], [-1.0, -2.0, -3.0], ended=True)
    assert objective._decisive(objective.questions[0], wrong).ids == [B]
    assert objective._decisive(objective.questions[0], wrong).logprobs == [-1.0]
    with_kl = objective_of(decided=decided, kl=0.1)
    assert with_kl._decisive(with_kl.questions[0], wrong).ids == wrong.ids


def test_prompts_that_were_answered_badly_are_asked_again_and_solved_ones_are_not():
    objective = objective_of(lambda prompt, answer: 2.0 if prompt == "a" else 0.0, hard_share=1.0)
    model, asked = model_of(), []
    for step in range(1, 5):
        objective.examples(model, objective.batch(step, 0, 1), step, 0, 1, lambda: None)
        asked.append(objective.state(step)["hard"])
    assert asked == [[1]] * 4  # "a" passes, "b" never does
    other_split = objective_of(hard_share=1.0, train="aba", val="b")
    other_split.restore(objective.state(4))
    assert other_split.state(4) == {}, "the indices are those of other prompts"
    again = objective_of(hard_share=1.0)
    again.restore(objective.state(4))
    assert again.state(4) == objective.state(4)


class _Logits:
    """A model whose logits are given: its hidden states are the logits, and its head is the identity."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.given = logits

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.given

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def to(self, device: torch.device) -> _Logits:
        return self


def test_loss_and_gradient_are_those_of_the_numpy_reference():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 4))
    for kind, twin in (("rloo", reference.rloo_advantages), ("dr_grpo", reference.dr_grpo_advantages)):
        np.testing.assert_allclose(advantages(torch.from_numpy(rewards), kind), twin(rewards), atol=1e-12)

    logits, initial = rng.normal(size=(2, 4, 5, 7))
    targets = np.where(rng.random((4, 5)) < 0.4, IGNORE, rng.integers(0, 7, (4, 5)))
    weights, count = rng.normal(size=4), 24.0
    objective = objective_of(kl=0.3)
    given = torch.from_numpy(logits).requires_grad_()
    objective.initial = _Logits(torch.from_numpy(initial))
    y = torch.from_numpy(targets)
    places = torch.from_numpy(np.flatnonzero(targets != IGNORE))
    part = (y, y, torch.from_numpy(weights), torch.zeros(y.shape), torch.zeros(()), places)
    loss = objective.loss(_Logits(given), part) / count
    loss.backward()
    wanted, cache = reference.policy_gradient_forward(logits, targets, weights, count)
    kl, kl_cache = reference.kl_forward(logits, initial, targets, count)
    np.testing.assert_allclose(loss.item(), wanted + 0.3 * kl, rtol=1e-12)
    (slope,), (kl_slope, _) = reference.policy_gradient_backward(1.0, cache), reference.kl_backward(0.3, kl_cache)
    np.testing.assert_allclose(given.grad, slope + kl_slope, atol=1e-14)


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_advantages_compare_each_answer_with_the_others(rewards):
    got = advantages(torch.tensor(rewards, dtype=torch.float64), "rloo")
    for i, j in itertools.product(range(len(rewards)), range(3)):
        others = [reward for k, reward in enumerate(rewards[i]) if k != j]
        assert float(got[i, j]) == pytest.approx(rewards[i][j] - np.mean(others), abs=1e-9)


@given(st.floats(-5, 5), st.integers(2, 9), st.sampled_from(get_args(Advantage)))
def test_prompts_whose_answers_are_equally_good_have_no_gradient(reward, samples, kind):
    assert torch.equal(advantages(torch.full((1, samples), reward), kind), torch.zeros(1, samples))


def test_equal_rewards_change_nothing():
    objective = objective_of(lambda prompt, answer: 0.1)
    assert torch.equal(step_gradient(objective, model_of()), torch.zeros_like(step_gradient(objective, model_of())))
    assert objective.step_metrics()["train/silent_prompts"] == 1


def test_the_end_token_is_a_target_and_the_prompt_is_not():
    objective, model = objective_of(), model_of()
    parts = objective.examples(model, objective.batch(1, 0, 1), 1, 0, 1, lambda: None)
    rows = [(x, y, sampled) for part in parts for x, y, sampled in zip(part[0], part[1], part[3], strict=True)]
    assert any(y[y != IGNORE][-1] == END for _, y, _ in rows)
    for x, y, sampled in rows:
        scored = y != IGNORE
        first = int(scored.nonzero()[0])
        assert x[: first + 1].tolist() in ([END, A], [END, B])
        inside = scored[:-1] & scored[1:]
        assert torch.equal(x[1:][inside], y[:-1][inside])
        logprobs = F.log_softmax(model(x[None])[0], dim=-1)[torch.arange(len(x)), y.clamp(min=0)]
        torch.testing.assert_close(logprobs[scored].float(), sampled[scored], atol=1e-5, rtol=0)


class _Windows:
    """Four windows of a text, of two targets each."""

    batch_size, window, document_start = 4, 2, None

    def batch(self, step: int, rank: int, world_size: int) -> torch.Tensor:
        return torch.tensor([[A, B, A], [B, B, A], [A, A, A], [B, A, B]]).chunk(world_size)[rank]


def test_micro_batches_change_nothing_but_rounding():
    one, many = objective_of(), objective_of()
    one.replay = many.replay = _Windows()
    one.micro_batch_size, many.micro_batch_size = 1, 100
    torch.testing.assert_close(step_gradient(one, model_of()), step_gradient(many, model_of()), rtol=1e-6, atol=1e-9)


def test_replayed_text_adds_its_mean_loss_times_its_weight():
    objective, model = objective_of(lambda prompt, answer: 0.0, replay=0.3), model_of()
    objective.replay = _Windows()
    rows = objective.replay.batch(1, 0, 1)
    wanted = gradient(model, 0.3 * model(rows[:, :-1], rows[:, 1:]) / rows[:, 1:].numel())
    torch.testing.assert_close(step_gradient(objective, model), wanted, rtol=1e-6, atol=1e-9)


def test_attention_in_replayed_text_stays_in_its_documents_if_it_did_so_in_pretraining():
    objective, model = objective_of(replay=0.3), model_of()
    objective.replay = _Windows()
    objective.replay.document_start = A
    *_, part = objective._replayed(1, 0, 1, torch.device("cpu"))
    x, y, weights = part[:3]
    masked = weights[0] * model(x, y, (x == A).cumsum(dim=1))
    assert objective.loss(model, part) == masked != weights[0] * model(x, y)


def test_the_length_of_an_answer_does_not_divide_its_loss():
    """The loss of an answer of n tokens is the sum over its tokens, divided by P K L."""
    objective, model = objective_of(), model_of()
    for answer in ([A, END], [A, B, A]):
        (part,) = objective._parts([([END, A], Rollout(0, answer, [0.0] * len(answer)), 2.0)], torch.device("cpu"))
        logprobs = F.log_softmax(model(torch.tensor([[END, A, *answer[:-1]]]))[0, 1:], dim=-1)
        wanted = -2.0 * logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum()
        torch.testing.assert_close(objective.loss(model, part).double(), wanted, rtol=1e-6, atol=0)
    parts = objective.examples(model, objective.batch(1, 0, 1), 1, 0, 1, lambda: None)
    assert sum(float(objective.count(part)) for part in parts) == 2 * 4 * 3


def test_a_limit_above_the_context_does_not_weaken_the_rewards_beside_replayed_text():
    gradients = []
    for limit in (8, 800):
        objective = objective_of(replay=0.3, max_tokens=limit)  # the context has 8 tokens
        objective.replay = _Windows()
        gradients.append(step_gradient(objective, model_of()))
    torch.testing.assert_close(*gradients)


def test_answers_that_were_cut_off_can_be_left_out():
    def parts_of(objective: ReinforceObjective) -> list[Any]:
        return list(objective.examples(model_of(), objective.batch(1, 0, 1), 1, 0, 1, lambda: None))

    def ends(parts: list[Any]) -> set[int]:
        return {int(y[y != IGNORE][-1]) for part in parts for y in part[1]}

    cut, whole = parts_of(objective_of(mask_truncated=True)), parts_of(objective_of())
    assert ends(cut) == {END}
    assert ends(whole) > {END}
    assert sum(float(part[4]) for part in cut) == sum(float(part[4]) for part in whole)


def test_the_ratio_of_two_precisions_is_bounded():
    objective, model = objective_of(max_ratio=2.0), model_of()
    objective.is_exact = False
    answer = [A, END]
    logprobs = F.log_softmax(model(torch.tensor([[END, A, A]]))[0, 1:], dim=-1)[torch.arange(2), torch.tensor(answer)]
    sampled = [logprobs[0].item() - 5, logprobs[1].item() + 0.5]  # ratios e^5 and e^-0.5
    (part,) = objective._parts([([END, A], Rollout(0, answer, sampled), 1.0)], torch.device("cpu"))
    wanted = -(2.0 * logprobs[0] + np.exp(-0.5) * logprobs[1])
    torch.testing.assert_close(objective.loss(model, part).double(), wanted, rtol=1e-5, atol=0)


def test_the_kl_divergence_is_exact_and_has_its_gradient():
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    other = torch.randn(3, 7, dtype=torch.float64)
    p, q = (torch.distributions.Categorical(logits=each) for each in (logits, other))
    torch.testing.assert_close(
        exact_kl(logits, other).double(), torch.distributions.kl_divergence(p, q), rtol=1e-5, atol=1e-6
    )
    quiet, held = objective_of(lambda prompt, answer: 0.0, kl=0.0), objective_of(lambda prompt, answer: 0.0, kl=0.5)
    assert not step_gradient(quiet, model_of()).any()
    assert step_gradient(held, model_of()).any()
    assert not step_gradient(held, model_of(1)).abs().max() > 1e-6  # at the initial model, the divergence is 0


def test_ranks_sample_what_one_process_would_sample(monkeypatch):
    monkeypatch.setattr(
        AnswerTotals, "over_ranks", lambda totals, model, world_size: totals
    )  # no processes are connected
    model, objective = model_of(), objective_of()
    whole = objective.examples(model, objective.batch(3, 0, 1), 3, 0, 1, lambda: None)
    ranks = [objective.examples(model, objective.batch(3, rank, 2), 3, rank, 2, lambda: None) for rank in (0, 1)]
    split = [part for parts in ranks for part in parts]

    def rows(parts: list[Any]) -> set[tuple[int, ...]]:
        return {tuple(y[y != IGNORE].tolist()) for part in parts for y in part[1]}

    assert rows(whole) == rows(split)
    assert sum(float(part[4]) for part in whole) == sum(float(part[4]) for part in split)


def test_measures_are_those_of_the_sampled_answers():
    objective = objective_of(lambda prompt, answer: float(min(2, len(answer))), val_samples=3)
    got = objective.measures(model_of(), 0, 1)
    assert objective.measures(model_of(), 0, 1) == got
    assert got["val/pass_1"] <= got["val/pass_3"] <= 1
    assert 1 <= got["val/answer_tokens"] <= 3
    assert 0 < got["val/entropy"] <= np.log(TOKENIZER.vocab_size)
    assert got["val/kl"] > 0
    same = objective.measures(model_of(1), 0, 1)
    assert same["val/kl"] == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_the_means_of_the_prompts():
    rewards = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    answers = [Rollout(0, [1], [0.0], [0.0], ended=True) for _ in rewards]
    means = [0.5, 1.0, 0.0, 0.5]
    measured = AnswerTotals.of(answers, rewards, 2, 1.0).measures(2)
    assert measured["reward_se"] == pytest.approx(statistics.stdev(means) / 2)
    far = AnswerTotals.of(answers, 1000 + 0.01 * rewards.double(), 2, 1.0).measures(2)
    assert far["reward_se"] == pytest.approx(0.01 * measured["reward_se"], rel=1e-3)


def test_the_reward_of_a_validation_far_from_0_has_the_standard_error_of_one_near_0():
    near, far = (
        objective_of(lambda prompt, answer, base=base: base + 0.01 * len(answer)).measures(model_of(), 0, 1)
        for base in (0.0, 10_000.0)
    )
    assert far["val/reward_se"] == pytest.approx(near["val/reward_se"], rel=1e-2)


def test_a_step_whose_answers_were_all_cut_off_and_left_out_is_silent():
    objective = objective_of(lambda prompt, answer: float(hash(answer)), mask_truncated=True, max_tokens=1)
    while objective.step_metrics().get("train/truncated") != 1:
        objective.seed += 1
        list(objective.examples(model_of(), objective.batch(1, 0, 1), 1, 0, 1, lambda: None))
    assert objective.step_metrics()["train/silent_prompts"] == 1


def test_the_gap_between_two_precisions_is_the_mean_over_the_tokens_of_one_step():
    gaps = []
    for size in (1, 3, 100):
        objective, model = objective_of(), model_of()
        objective.is_exact, objective.micro_batch_size = False, size
        for _ in range(2):  # the first step may be one whose time is measured
            for part in objective.examples(model, objective.batch(1, 0, 1), 1, 0, 1, lambda: None):
                with torch.no_grad():
                    part = (*part[:3], part[3] + 0.1 * torch.arange(part[3].shape[1]), *part[4:])
                    objective.loss(model, part)
        gaps.append(objective.step_metrics()["train/ratio_gap"])
    assert gaps == pytest.approx([gaps[0]] * 3, rel=1e-5)


def test_the_gap_between_two_precisions_is_that_of_all_processes(monkeypatch):
    objective = objective_of()
    objective.is_exact, objective._ratio_gap, objective._world_size = False, torch.tensor([1.0, 4.0]), 2
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.add_(torch.tensor([2.0, 4.0])))
    assert objective.step_metrics()["train/ratio_gap"] == 3 / 8


def test_one_process_exchanges_nothing_with_processes_that_the_calling_program_has_connected(monkeypatch):
    """They train other runs, or evaluate after a training that all of them shared."""
    objective, model = objective_of(), model_of()
    objective.is_exact = False
    alone = objective.measures(model, 0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.mul_(2))
    objective.examples(model, objective.batch(1, 0, 1), 1, 0, 1, lambda: None)
    objective._ratio_gap = torch.tensor([1.0, 4.0])
    assert objective.step_metrics()["train/ratio_gap"] == 1 / 4
    assert objective.measures(model, 0, 1) == alone
