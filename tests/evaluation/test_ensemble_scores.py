"""The score of several models that predict as one, against the mean of their probabilities, computed by NumPy."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.config import GPTConfig
from positron.evaluation.ensemble import as_lines, ensemble_facts, gain
from positron.evaluation.score import Score
from positron.evaluation.scoring import interval, score_documents, score_ensemble, score_windows, total
from positron.model.ensemble import Ensemble
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import END_OF_TEXT

TOKENIZER = CharTokenizer("abcd ")
CONTEXT = 8
TEXTS = ["a cab", "", "dad bad cab dab", "d", "abcd dcba abcd dcba"]
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "d_model": 8},
    {"context_length": 3 * CONTEXT},
]


def members(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[GPT]:
    sizes: dict[str, Any] = {"context_length": CONTEXT, "d_model": 16, "n_layer": 1, "n_head": 2}
    made = []
    for i, shape in enumerate(SHAPES):
        config = GPTConfig(vocab_size=TOKENIZER.vocab_size, **{**sizes, **shape})
        model = GPT(config, seed=3 * seed + i).eval().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)  # so that the models disagree
        made.append(model)
    return made


def nats(documents: list[list[Score]]) -> list[float]:
    return [total(windows).nats for windows in documents]


def brute_force(models: list[GPT], text: str, stride: int) -> float:
    """-log of the mean probability of each token, which is read after as many tokens as sliding windows give it."""
    end = TOKENIZER.special_id(END_OF_TEXT)
    ids, loss = [end, *TOKENIZER.encode(text), end], 0.0
    for place in range(1, len(ids)):
        window = max(0, math.ceil((place - CONTEXT) / stride))  # the first window that reaches the token
        chances = []
        for model in models:
            with torch.inference_mode():
                logits = model(torch.tensor([ids[window * stride : place]]))[0, -1].numpy()
            p = np.exp(logits - logits.max())
            chances.append(p[ids[place]] / p.sum())
        loss -= math.log(np.mean(chances))
    return loss


@pytest.mark.parametrize("stride", [None, 1, 3, CONTEXT])
def test_the_score_is_that_of_the_mean_of_the_probabilities(stride: int | None) -> None:
    models = members()
    documents, by_member = score_ensemble(Ensemble(models), TOKENIZER, TEXTS, stride=stride)
    wanted = [brute_force(models, text, stride or CONTEXT // 2) for text in TEXTS]
    assert nats(documents) == pytest.approx(wanted, rel=1e-12)
    for model, scores in zip(models, by_member, strict=True):
        alone = [brute_force([model], text, stride or CONTEXT // 2) for text in TEXTS]
        assert nats(scores) == pytest.approx(alone, rel=1e-12)
    sizes = [[(score.bytes, score.tokens) for score in windows] for windows in documents]
    for scores in by_member:
        assert [[(score.bytes, score.tokens) for score in windows] for windows in scores] == sizes
    assert total([total(windows) for windows in documents]).bytes == sum(map(len, TEXTS))


def test_an_ensemble_of_one_model_or_of_copies_scores_as_the_model() -> None:
    for model in members()[:2]:
        wanted = nats(score_windows(model, TOKENIZER, TEXTS))
        for count in (1, 2, 3):
            ensemble = Ensemble([copy.deepcopy(model) for _ in range(count)])
            documents, by_member = score_ensemble(ensemble, TOKENIZER, TEXTS)
            assert nats(documents) == pytest.approx(wanted, rel=1e-12)
            assert [nats(scores) for scores in by_member] == [wanted] * count


@given(st.integers(0, 1000), st.lists(st.text("abcd ", max_size=20), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_the_score_is_never_worse_than_the_mean_of_the_members(seed: int, texts: list[str]) -> None:
    """Jensen's inequality, for each window."""
    documents, by_member = score_ensemble(Ensemble(members(seed, torch.float32)), TOKENIZER, texts)
    for windows in zip(documents, *by_member, strict=True):
        for ours, *others in zip(*windows, strict=True):
            assert ours.nats <= np.mean([other.nats for other in others]) + 1e-9


def test_the_windows_are_as_long_as_the_shortest_context() -> None:
    ensemble = Ensemble(members())
    with pytest.raises(UserError, match=f"context length {CONTEXT}"):
        score_ensemble(ensemble, TOKENIZER, TEXTS, stride=CONTEXT + 1)
    assert score_ensemble(ensemble, TOKENIZER, []) == ([], [[], [], []])


def test_the_gain_is_the_difference_of_the_scores_with_the_interval_of_the_differences() -> None:
    models = members()
    texts = ["".join(np.random.default_rng(i).choice(list("abcd "), 5 + i)) for i in range(30)]
    documents, by_member = score_ensemble(Ensemble(models), TOKENIZER, texts)
    facts = ensemble_facts(["a", "b", "c"], documents, by_member)
    whole = total([total(windows) for windows in documents])
    alone = [total(score_documents(model, TOKENIZER, texts)).bpb for model in models[:2]]
    bpb = [member["bpb"] for member in facts["members"]]
    assert bpb[:2] == pytest.approx(alone, rel=1e-12)  # the third has a longer context, of which it uses a part here
    assert facts["gain_over_mean"]["bpb"] == pytest.approx(np.mean(bpb) - whole.bpb, rel=1e-9)
    assert facts["gain_over_best"]["bpb"] == pytest.approx(min(bpb) - whole.bpb, rel=1e-9)
    assert facts["best_member"] == "abc"[bpb.index(min(bpb))]
    ours, first = (np.array(nats(scores)) for scores in (documents, by_member[0]))
    sizes = np.array([len(text) for text in texts])
    differences = first - ours - sizes * (first - ours).sum() / sizes.sum()
    half = (
        2.0452 * math.sqrt(30 / 29 * (differences**2).sum()) / sizes.sum() / math.log(2)
    )  # t for 29 degrees of freedom
    assert gain(documents, [by_member[0]])["interval"] == pytest.approx(half, rel=1e-4)
    assert half < interval([total(windows) for windows in by_member[0]])
    assert as_lines(facts)[-2].startswith(f"gain            {facts['gain_over_mean']['bpb']:.4f} ± ")
