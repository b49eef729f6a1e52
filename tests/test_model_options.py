"""A new option of a model is known where a model is described without torch, or named here with the reason why not."""

from __future__ import annotations

import dataclasses

from positron.cli.preflight import _FIELD_OF, _SHAPE_FIELDS
from positron.config import GPTConfig
from positron.inspection.packed_weights import engine_config

OPTIONS = {field.name for field in dataclasses.fields(GPTConfig)}
CONFIG = GPTConfig(vocab_size=10, context_length=8, d_model=8, n_layer=1, n_head=2)


def test_the_engine_of_the_browser_gets_every_option():
    # nothing is dropped when a text is written, and the names of the weights tell whether there are biases
    assert OPTIONS - engine_config(CONFIG).keys() == {"dropout", "bias"}


def test_a_run_that_starts_from_another_ones_weights_has_the_options_that_they_were_trained_with():
    known = {_FIELD_OF.get(name, name) for name in _SHAPE_FIELDS}
    # the vocabulary is that of the tokenizer, and the others may change: a longer context, for example, with another rope_base
    assert OPTIONS - known == {"vocab_size", "context_length", "dropout", "norm_eps", "rope_base", "window"}
