"""Several models that predict as one, against the mean of their probabilities, computed by NumPy without a cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from positron.config import GPTConfig
from positron.inference.decoder import Decoder
from positron.inference.dialogue import Dialogue
from positron.inference.engine import Engine
from positron.inference.ensemble import EnsembleDecoder
from positron.inference.sampling import Sampling, choose
from positron.inference.sessions import Request, Session, Sessions
from positron.inference.speculative import SpeculativeEngine
from positron.inference.text_model import Writer
from positron.model.ensemble import Ensemble, mean_logits
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer

TOKENIZER = CharTokenizer("abcdefghij")
V, CONTEXT = TOKENIZER.vocab_size, 12
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "smear": True, "d_model": 16, "n_layer": 1},
    {"context_length": 2 * CONTEXT, "position": "sinusoidal", "tie_embeddings": False},
]
SHARP = 4  # so that the models disagree
WRITING = Sampling(temperature=0.9, top_k=9, top_p=0.97, min_p=0.01, repetition_penalty=1.3, last_n=5)


def model_of(seed: int = 0, **options: Any) -> GPT:
    sizes: dict[str, Any] = {"context_length": CONTEXT, "d_model": 32, "n_layer": 2, "n_head": 2}
    model = GPT(GPTConfig(vocab_size=V, **{**sizes, **options}), seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(SHARP)
    return model


def members(count: int = 3) -> list[GPT]:
    return [model_of(seed, **SHAPES[seed]) for seed in range(count)]


def mean_of(models: list[GPT], ids: list[int]) -> np.ndarray:
    """The mean of the models' probabilities of the token after `ids`, (V,), in float64 and without a cache."""
    chances = []
    for model in models:
        with torch.inference_mode():
            logits = copy.deepcopy(model).double()(torch.tensor([ids]))[0, -1].numpy()
        p = np.exp(logits - logits.max())
        chances.append(p / p.sum())
    return np.mean(chances, axis=0)


def chances_of(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(dim=-1).numpy()


@given(st.integers(1, 5), st.floats(0, 300), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_mean_logits_are_those_of_the_mean_of_the_distributions(count: int, width: float, seed: int) -> None:
    each = np.random.default_rng(seed).normal(0, width, size=(count, 2, 7)).clip(-700, 0)
    p = np.exp(each)
    p /= p.sum(axis=-1, keepdims=True)
    found = mean_logits([torch.from_numpy(one) for one in each])
    np.testing.assert_allclose(chances_of(found), p.mean(axis=0), rtol=1e-10, atol=1e-300)
    same = mean_logits([torch.from_numpy(each[0])] * count)  # a constant would change the repetition penalty
    np.testing.assert_allclose(same.numpy(), each[0], rtol=0, atol=1e-12)


def test_a_token_that_no_member_finds_possible_keeps_a_finite_logarithm() -> None:
    logits = torch.tensor([0.0, -2000.0])
    assert mean_logits([logits, logits]).log_softmax(dim=-1)[1] == pytest.approx(-2000)


def test_each_method_of_the_decoder_gives_the_mean_of_the_probabilities() -> None:
    models = members()
    decoder = EnsembleDecoder([Decoder(model.double(), 2) for model in models])
    assert decoder.context_length == CONTEXT
    first, second = [1, 2, 3], [4, 5, 6, 7, 1]
    for row, prompt in zip(decoder.prefill([0, 1], [first, second]), (first, second), strict=True):
        np.testing.assert_allclose(chances_of(row), mean_of(models, prompt), rtol=1e-10)
    for row, prompt in zip(decoder.step(torch.tensor([8, 9])), ([*first, 8], [*second, 9]), strict=True):
        np.testing.assert_allclose(chances_of(row), mean_of(models, prompt), rtol=1e-10)
    (row,) = decoder.step_some(torch.tensor([2]), [1])
    np.testing.assert_allclose(chances_of(row), mean_of(models, [*second, 9, 2]), rtol=1e-10)
    read = decoder.read([3, 4, 5], 0)
    assert decoder.lengths == [7, 7]
    for i, row in enumerate(read):
        np.testing.assert_allclose(chances_of(row), mean_of(models, [*first, 8, 3, 4, 5][: 5 + i]), rtol=1e-10)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), WRITING], ids=["greedy", "sampled"])
def test_generation_with_caches_writes_what_generation_without_them_writes(sampling: Sampling) -> None:
    """Longer than the context, so that the window moves."""
    models, prompt, count = members(), [0, 7, 8], 3 * CONTEXT
    engine = Engine(Ensemble([model.double() for model in models]), TOKENIZER)
    (found,) = zip(*engine.ids([prompt], sampling, max_tokens=count, stop_ids=(), seed=3), strict=True)
    seen, start, generator = list(prompt), 0, torch.Generator().manual_seed(3)
    for _ in range(count):
        if len(seen) - start > CONTEXT:
            start = len(seen) - CONTEXT // 2
        with torch.inference_mode():
            logits = mean_logits([model(torch.tensor([seen[start:]]))[0, -1] for model in models])
        seen.append(choose(logits, sampling, seen, generator, engine.specials))
    assert list(found) == seen[len(prompt) :]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("without_numba", ["0", "1"])
def test_copies_of_a_model_write_what_the_model_writes(
    copies: int, weights: str, without_numba: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", without_numba)
    model = model_of(1, **SHAPES[1])
    ensemble = Ensemble([copy.deepcopy(model) for _ in range(copies)])
    texts = [
        Writer(one, TOKENIZER, weights).samples(
            ["abc", "j", ""], max_tokens=30, seed=5, repetition_penalty=1.3, top_k=5
        )
        for one in (model, ensemble)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_sampled_tokens_have_the_frequencies_of_the_mixture() -> None:
    models, prompt, samples = members(), [0, 7], 4000
    engine = Engine(Ensemble(models), TOKENIZER)
    sampling = Sampling(temperature=1.0, top_p=1.0)
    (drawn,) = engine.ids([prompt] * samples, sampling, max_tokens=1, stop_ids=(), seed=0)
    counts = np.bincount(drawn, minlength=V)

    def p_value(chances: np.ndarray) -> float:
        common = samples * chances >= 5
        groups = [[*values[common], values[~common].sum()] for values in (counts, samples * chances)]
        found, expected = (np.array(group)[np.array(groups[1]) > 0] for group in groups)
        return float(chisquare(found, expected, sum_check=False).pvalue)

    assert p_value(mean_of(models, prompt)) > 1e-3
    for model in models:
        assert p_value(mean_of([model], prompt)) < 1e-3
    logs = np.mean([np.log(mean_of([model], prompt)) for model in models], axis=0)
    assert (
        p_value(np.exp(logs) / np.exp(logs).sum()) < 1e-3
    )  # the mean of the logits is not the mean of the probabilities


def test_a_draft_changes_no_text_of_an_ensemble() -> None:
    models = members()
    settings = {"max_tokens": 3 * CONTEXT, "stop_ids": (), "seed": 0}
    wanted = list(Engine(Ensemble(models), TOKENIZER).ids([[0, 7]], Sampling(temperature=0), **settings))
    for draft in (models[1], model_of(9)):
        engine = SpeculativeEngine(Ensemble(models), TOKENIZER, draft)
        assert list(engine.ids([[0, 7]], Sampling(temperature=0), **settings)) == wanted


def test_texts_that_are_written_together_report_the_log_probabilities_of_the_mixture() -> None:
    models = members()
    engine = Engine(Ensemble(models), TOKENIZER)
    assert engine.decoder.row_bytes == sum(Decoder(model).row_bytes for model in models)
    sessions = Sessions(engine, 2)
    prompts = ([0, 7, 8], [0, 9])
    asked = [
        Request(list(ids), Sampling(), 6, seed=seed, stop_ids=frozenset(), logprobs=2, scores_prompt=True)
        for seed, ids in enumerate(prompts)
    ]
    written: dict[Session, list[Any]] = {sessions.join(request): [] for request in asked}
    while sessions.active:
        for session in sessions.active:
            if not sessions.is_ready(session):
                sessions.read_piece(session)
        ready = [session for session in sessions.active if sessions.is_ready(session)]
        for session, piece in sessions.choose(ready):
            written[session] += piece.tokens
        sessions.read([session for session in ready if session in sessions.active])
    for (session, tokens), prompt, seed in zip(written.items(), prompts, (0, 1), strict=True):
        ids = [token.id for token in tokens]
        rows = engine.ids([prompt], Sampling(), max_tokens=6, stop_ids=(), seed=seed)
        assert ids == [new for (new,) in rows]
        scored = [*session.prompt, *tokens]
        for place, token in enumerate(scored, 1):
            chances = mean_of(models, [*prompt, *ids][:place])
            assert token.logprob == pytest.approx(np.log(chances[token.id]), rel=1e-4)
            assert [likely for likely, _ in token.likeliest] == np.argsort(-chances)[:2].tolist()


def test_the_shortest_context_limits_prompts_and_conversations() -> None:
    writer = Writer(Ensemble(members()), TOKENIZER)
    assert writer.context == CONTEXT
    with pytest.raises(UserError, match=f"reads at most {CONTEXT - 1}"):
        writer.ids("a" * CONTEXT)
    talk = Dialogue(writer, chats=True, max_tokens=3)
    for _ in range(4):
        list(talk.ask("abc"))
    assert len(talk.messages) == 8


def test_an_ensemble_needs_models_of_one_vocabulary() -> None:
    other = GPT(GPTConfig(vocab_size=V + 1, context_length=CONTEXT, d_model=8, n_layer=1, n_head=1))
    for wrong in ([], [model_of(), other]):
        with pytest.raises(ValueError, match="same vocabulary"):
            Ensemble(wrong)
