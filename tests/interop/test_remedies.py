"""A model that another program cannot compute: the change that the message names is enough."""

import dataclasses
import itertools
import re
from typing import get_args

import pytest
import yaml

from positron.config import GPTConfig, Norm
from positron.interop import gguf_file, hf_architectures
from positron.system.errors import UserError

BASE = GPTConfig(vocab_size=64, d_model=32, n_head=4, n_layer=1, context_length=16)
OPTIONS = {
    "norm": get_args(Norm),
    "position": ("learned", "rope"),
    "activation": ("gelu", "swiglu", "relu2"),
    **dict.fromkeys(("smear", "bias", "qk_norm"), (False, True)),
    "window": (None, 8),
    "head_dim": (None, 16),
}


@pytest.mark.parametrize("choose", [hf_architectures.choose, gguf_file.choose], ids=["transformers", "llama.cpp"])
def test_the_named_change_makes_every_refused_model_acceptable(choose):
    refused = set()
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        try:
            config = dataclasses.replace(BASE, **options)
        except UserError:  # the options contradict each other
            continue
        try:
            choose(config)
        except UserError as error:
            lack, advice = re.fullmatch(r"(.*): train a run with (model\..*)", str(error)).groups()
            changes = {name: yaml.safe_load(value) for name, value in re.findall(r"model\.(\w+)=(\S+)", advice)}
            assert all(options[name] != value for name, value in changes.items()), "a change that changes nothing"
            choose(dataclasses.replace(config, **changes))
            refused.add(lack)
    assert len(refused) > 5
