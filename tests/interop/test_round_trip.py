"""A model that goes to Hugging Face's format and comes back is the same model, for every combination of options."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_runs import char, greedy, random_model, save_run

from positron.config import Activation, GPTConfig, Norm, Position
from positron.interop import hf_architectures
from positron.interop.formats import export
from positron.interop.hf_reading import own_config
from positron.interop.importing import read_model, write_run
from positron.interop.source import open_source, probe
from positron.run.load import load_model
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

SIZES: dict[str, Any] = {"context_length": 12, "d_model": 16, "n_layer": 2, "n_head": 4}
# every value of an option with a list of values; of a number, the values that lead to different tensors or classes
CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": get_args(Norm),
    "position": get_args(Position),
    "activation": get_args(Activation),
    "bias": (False, True),
    "tie_embeddings": (True, False),
    "qk_norm": (False, True),
    "qk_scale": (False, True),
    "smear": (False, True),
    "window": (None, 5, 12),  # 12 is the whole context
    "n_kv_head": (None, 2, 1),
    "head_dim": (None, 6),
    "d_ff": (None, 20),
}
CLASSES = [value.name for value in vars(hf_architectures).values() if isinstance(value, hf_architectures.Architecture)]
# numbers that every class takes as they are
NUMBERS = {
    "rope_base": st.floats(100, 1e7),
    "norm_eps": st.floats(1e-7, 1e-3),
    "dropout": st.floats(0, 0.5),
}


def architecture_of(options: dict[str, Any]) -> str | None:
    """Return the name of the class of transformers that computes these options, if one does."""
    try:
        return hf_architectures.choose(GPTConfig(vocab_size=40, **SIZES, **options)).name
    except UserError:
        return None


@functools.cache
def exportable() -> dict[str, list[dict[str, Any]]]:
    """Return all combinations of options that each class computes."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for values in itertools.product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        architecture = architecture_of(options)
        if architecture is not None:
            cases.setdefault(architecture, []).append(options)
    return cases


def a_case(seed: int) -> dict[str, Any]:
    """Return one of the combinations that a class computes, each as likely as any other."""
    rng = random.Random(seed)
    while True:  # one of 15 combinations is such; to list them all takes 20 s
        options = {name: rng.choice(values) for name, values in CHOICES.items()}
        if architecture_of(options) is not None:
            return options


def check(options: dict[str, Any], seed: int) -> None:
    """Export a model, import it, and compare the architecture, every weight, the tokenizer and the greedy text."""
    tokenizer = char()
    model = random_model(GPTConfig(vocab_size=tokenizer.vocab_size, **SIZES, **options), seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert export(open_source(save_run(folder / "run", model, tokenizer)), "hf", folder / "hf") == 0
        back, library, _ = load_model(write_run(read_model(folder / "hf"), folder / "back"))
    assert back.config == model.config
    weights, read = dict(model.named_parameters()), dict(back.named_parameters())
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)
    assert [library.special_id(token) for token in SPECIALS] == [tokenizer.special_id(token) for token in SPECIALS]
    prompt = "Once"
    ids = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(prompt)]
    assert library.encode(prompt) == ids[1:]
    count = SIZES["context_length"] - len(ids)
    with torch.no_grad():
        assert library.decode(greedy(back, ids, count)) == tokenizer.decode(greedy(model, ids, count))


def test_every_option_takes_part():
    """A new option of GPTConfig must be added here."""
    options = {field.name for field in dataclasses.fields(GPTConfig)}
    assert {*SIZES, *CHOICES, *NUMBERS, "vocab_size"} == options


@settings(max_examples=15, deadline=None)
@given(options=st.integers(0, 2**32).map(a_case), numbers=st.fixed_dictionaries(NUMBERS), seed=st.integers(0, 1000))
def test_a_model_that_was_exported_and_imported_is_the_same_model(options, numbers, seed):
    check({**options, **numbers}, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_exportable_combination_comes_back_as_the_same_model(name):
    """1,800 combinations in all."""
    for number, options in enumerate(exportable()[name]):
        check({**options, "rope_base": 1e4 + number, "norm_eps": 1e-6 * (1 + number)}, number)


@pytest.mark.parametrize(
    ("change", "is_trusted"),
    [
        ({}, True),
        ({"attention_dropout": 0.3}, True),
        ({"max_position_embeddings": 24}, False),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, False),
        ({"vocab_size": 64}, False),
        ({"model_type": "unknown"}, False),
    ],
)
def test_the_note_of_the_export_counts_only_while_the_rest_of_config_json_agrees(
    change: dict[str, Any], is_trusted: bool
) -> None:
    config = GPTConfig(vocab_size=40, norm="rmsnorm", position="rope", activation="swiglu", **SIZES)
    architecture = hf_architectures.choose(config)
    facts = hf_architectures.class_json(architecture, config) | {"positron": dataclasses.asdict(config)} | change
    noted = own_config(facts)
    assert (noted is not None) == is_trusted
    assert noted is None or noted[0] == config


def test_a_large_model_is_compared_on_few_tokens() -> None:
    large = GPTConfig(vocab_size=150_000, context_length=40_960, d_model=8, n_layer=1, n_head=1)
    assert probe(large).shape == (2, 64)
    assert probe(GPTConfig(vocab_size=40, **SIZES)).shape == (2, SIZES["context_length"])
