"""Generating on the stand-in for Apple's GPU: the same text as on a CPU, and one wait of the host per token."""

from __future__ import annotations

import copy

import pytest
import stand_in
import torch
from interop.saved_runs import char
from model_variants import decisive_model

from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.rollouts import rollouts
from positron.inference.sampling import Sampling
from positron.inference.speculative import SpeculativeEngine

TOKENS = 6
SAMPLINGS = {
    "greedy": Sampling(temperature=0, top_p=None),
    "top_p": Sampling(top_p=0.8),
    "top_k, penalty": Sampling(top_k=5, repetition_penalty=1.3),
    "min_p": Sampling(top_p=None, min_p=0.1),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["plain", "modern"])
def test_texts_are_those_of_the_cpu_and_a_token_takes_one_wait(name: str, sampling: str) -> None:
    here = decisive_model(name, char().vocab_size)
    there = copy.deepcopy(here).to(stand_in.DEVICE)
    prompts = [[1, 5, 9], [2, 7]]
    settings = {"max_tokens": TOKENS, "stop_ids": [], "seed": 1}
    wanted = list(Engine(here, char()).ids(prompts, SAMPLINGS[sampling], **settings))
    engine = Engine(there, char())
    stand_in.waits.clear()
    assert list(engine.ids(prompts, SAMPLINGS[sampling], **settings)) == wanted
    assert sum(stand_in.waits.values()) == TOKENS == len(wanted), stand_in.waits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_smaller_weights_are_accepted_and_take_as_many_waits(dtype: torch.dtype) -> None:
    engine = Engine(decisive_model("modern", char().vocab_size).to(stand_in.DEVICE), char(), dtype=dtype)
    stand_in.waits.clear()
    assert (
        len(list(engine.ids([[1, 5, 9]], Sampling(), max_tokens=30, stop_ids=[], seed=1))) == 30
    )  # beyond the context
    assert sum(stand_in.waits.values()) == 30, stand_in.waits


def test_a_round_of_a_draft_model_takes_a_wait_for_each_proposal_and_one_for_the_check() -> None:
    large, small = (decisive_model(name, char().vocab_size).to(stand_in.DEVICE) for name in ("modern", "plain"))
    engine = SpeculativeEngine(large, char(), small)
    stand_in.waits.clear()
    assert len(list(engine.ids([[1, 5, 9]], Sampling(), max_tokens=TOKENS, stop_ids=[], seed=1))) == TOKENS
    assert sum(stand_in.waits.values()) <= 3 * TOKENS, stand_in.waits


def test_a_token_of_many_answers_takes_one_wait_and_is_that_of_the_cpu() -> None:
    here = decisive_model("modern", char().vocab_size)
    there = copy.deepcopy(here).to(stand_in.DEVICE)
    settings = {"temperature": 1.0, "max_tokens": TOKENS, "stop_ids": [3], "seeds": [1, 2]}
    wanted = rollouts(Decoder(here), [[1, 5, 9], [2, 7]], 3, **settings)
    decoder = Decoder(there)
    stand_in.waits.clear()
    got = rollouts(decoder, [[1, 5, 9], [2, 7]], 3, **settings)
    assert sum(stand_in.waits.values()) == max(len(answer.ids) for answer in wanted)
    assert [(answer.ids, answer.ended) for answer in got] == [(answer.ids, answer.ended) for answer in wanted]
    for answer, other in zip(got, wanted, strict=True):
        assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-4)
