"""Answers to learn from: drawn from the model's own distribution, with the probabilities that training computes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from positron.config import GPTConfig
from positron.inference import rollouts as module
from positron.inference.decoder import Decoder
from positron.inference.parallel import in_threads
from positron.inference.rollouts import Rollout, draw, rollouts
from positron.model.gpt import GPT

STOP = 0
PROMPTS = [[3, 4], [5], [6, 7, 8]]
OPTIONS: list[dict[str, object]] = [
    {},
    {"position": "learned", "norm": "layernorm", "bias": True},
    {"position": "sinusoidal", "activation": "swiglu"},
    {"n_kv_head": 1, "smear": True, "qk_norm": True},
    {"window": 5},
]


def model_of(**options: object) -> GPT:
    """A model whose distributions are far from uniform."""
    values = {
        "vocab_size": 12,
        "context_length": 24,
        "d_model": 16,
        "n_layer": 2,
        "n_head": 2,
        "norm": "rmsnorm",
        "position": "rope",
    }
    model = GPT(GPTConfig(**{**values, **options}), seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


def answers_of(model: GPT, copies: int = 4, seeds: tuple[int, ...] = (1, 2, 3), **options: object) -> list[Rollout]:
    settings = {"temperature": 1.0, "max_tokens": 30, "stop_ids": [STOP], **options}
    return rollouts(Decoder(model, 0), PROMPTS, copies, seeds=seeds, **settings)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_log_probabilities_are_those_that_training_computes(options):
    model = model_of(**options)
    answers = answers_of(model)
    assert [answer.prompt for answer in answers] == [0] * 4 + [1] * 4 + [2] * 4
    for answer in answers:
        prompt = PROMPTS[answer.prompt]
        logprobs = F.log_softmax(model(torch.tensor([[*prompt, *answer.ids[:-1]]]))[0, len(prompt) - 1 :], dim=-1)
        mine = logprobs[torch.arange(len(answer.ids)), torch.tensor(answer.ids)]
        torch.testing.assert_close(torch.tensor(answer.logprobs), mine, atol=1e-5, rtol=0)
        entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        torch.testing.assert_close(torch.tensor(answer.entropies), entropies, atol=1e-4, rtol=0)


def test_an_answer_ends_at_a_stop_token_at_the_limit_or_at_the_end_of_the_context():
    answers = answers_of(model_of(), copies=40, max_tokens=20)
    for answer in answers:
        assert STOP not in answer.ids[:-1]
        assert answer.ended == (answer.ids[-1] == STOP)
        assert answer.ended or len(answer.ids) == 20
    assert 0 < sum(answer.ended for answer in answers) < len(answers)
    full = [answer for answer in answers_of(model_of(), copies=40, max_tokens=99) if not answer.ended]
    assert full
    assert all(len(answer.ids) == 24 - len(PROMPTS[answer.prompt]) for answer in full)


def test_an_answer_does_not_depend_on_the_others(monkeypatch):
    model = model_of().double()
    together = answers_of(model, copies=8)
    monkeypatch.setattr(module, "SHRINK", 0.0)  # rows of answers that have ended stay
    assert answers_of(model, copies=8) == together
    monkeypatch.setattr(module, "CACHE_BYTES", 1)  # one prompt at a time
    alone = answers_of(model, copies=8)
    assert [answer.ids for answer in alone] == [answer.ids for answer in together]
    assert [answer.ids for answer in answers_of(model, copies=8, seeds=(1, 9, 3))][:8] == [a.ids for a in together[:8]]


def test_tokens_are_drawn_with_the_probabilities_of_the_model():
    logits = torch.tensor([[0.0, 1.0, -2.0, -math.inf, 3.0]])
    numbers = (torch.arange(100_000) + 0.5) / 100_000
    tokens, logprobs, entropies = draw(2 * logits.expand(100_000, -1), 2.0, numbers)
    p = logits.softmax(dim=-1)[0]
    torch.testing.assert_close(torch.bincount(tokens, minlength=5) / 100_000, p, atol=2e-5, rtol=0)
    torch.testing.assert_close(logprobs.exp(), p[tokens])
    torch.testing.assert_close(entropies[0], torch.distributions.Categorical(p).entropy())
    assert draw(logits, 1.0, torch.tensor([0.0]))[0] == 0
    assert draw(logits, 1.0, torch.tensor([1 - 2**-24]))[0] == 4


def test_sampling_is_left_as_soon_as_the_run_has_to_stop():
    calls = 0

    def pause() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answers_of(model_of(), pause=pause)
    assert calls == 5


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_threads_that_share_the_prompts_give_the_answers_of_one_thread(monkeypatch):
    model, used, meeting = model_of().double(), set(), threading.Barrier(3)

    def meet() -> None:
        """Wait for the other threads, once, so that no thread can end and take over the share of another one."""
        if threading.get_ident() not in used:
            used.add(threading.get_ident())
            meeting.wait(timeout=60)

    alone = answers_of(model, copies=8, pause=lambda: used.add(threading.get_ident()))
    assert used == {threading.get_ident()}  # too few answers for a second thread
    monkeypatch.setattr(module, "MIN_ROWS", 8)
    assert answers_of(model, copies=8, pause=meet) == alone
    assert len(used) == 4
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_an_error_in_one_thread_ends_the_others():
    waits = 0

    def fails(pause: Callable[[], None]) -> None:
        raise ValueError("no answer")

    def waits_for_ever(pause: Callable[[], None]) -> None:
        nonlocal waits
        while True:
            waits += 1
            pause()
            time.sleep(0.001)

    with pytest.raises(ValueError, match="no answer"):
        in_threads([waits_for_ever, fails], lambda: None)
    assert waits
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_the_threads_of_torch_are_divided_among_the_tasks():
    seen = []
    in_threads([lambda pause: seen.append(torch.get_num_threads())] * 2, lambda: None)
    assert seen == [2, 2]
    assert torch.get_num_threads() == 4


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused():
    with pytest.raises(ValueError, match="a prompt of 24 tokens fills the context"):
        rollouts(Decoder(model_of(), 0), [[1] * 24], 2, temperature=1.0, max_tokens=3, stop_ids=[STOP], seeds=[1])
