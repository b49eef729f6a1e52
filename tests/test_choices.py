"""A choice that no code knows is an error where the thing is made, and never the last choice in silence."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from conftest import tiny
from interop.saved_runs import char
from torch import Tensor

import numpy_ref
import numpy_ref.gpt
import numpy_ref.optimizers
import numpy_ref.tokenizers
from positron import config as choices
from positron.cli.unused_settings import READ_BY, SOURCES_OF
from positron.config import (
    Accelerator,
    Asked,
    DataConfig,
    DeviceConfig,
    GPTConfig,
    OptimizerConfig,
    Precision,
    PrecisionConfig,
    PreferenceConfig,
    RewardConfig,
    RewardTerm,
    ScheduleConfig,
    SweepConfig,
    TokenizerConfig,
)
from positron.data.conversations import read_conversations
from positron.data.decoding import Reading
from positron.data.open import open_source
from positron.data.preferences import read_pairs
from positron.inference import compiled
from positron.inference.decoder import Decoder
from positron.inference.text_model import DTYPES
from positron.interop import gguf_file, hf_architectures, llama2c, onnx_graph
from positron.model.gpt import GPT
from positron.rewards import open_reward
from positron.run.folder import Run
from positron.system.errors import UserError
from positron.text.factory import train_tokenizer
from positron.train import train
from positron.training import device
from positron.training.budget.choose import rate_for
from positron.training.callbacks.pruning import open_pruning
from positron.training.monitors.activations import DEAD
from positron.training.objective.policy_gradient import advantages
from positron.training.objective.preference_losses import is_mean, losses, margins
from positron.training.optim.groups import build_optimizer
from positron.training.optim.schedule import lr_at

GPT_CONFIG = tiny(Path()).model.with_vocab(50)
MODEL = GPT(GPT_CONFIG)


def with_value(settings: Any, field: str, value: str) -> Any:
    """A copy of the settings with a value that nothing has checked."""
    copy = dataclasses.replace(settings)
    object.__setattr__(copy, field, value)
    return copy


def invented(settings: Any, field: str) -> Any:
    """A copy with a value that no code knows: what adding it to a Literal alone does."""
    return with_value(settings, field, "invented")


def answer(name: str, otherwise: bool) -> property:
    """Make a property that answers `otherwise` for a value that `GPTConfig` does not know."""

    def get(config: GPTConfig) -> bool:
        try:
            known: bool = getattr(GPTConfig, name).fget(config)
        except AssertionError:
            return otherwise
        return known

    return property(get)


def half_added(field: str, *, gated: bool = False, **options: Any) -> Any:
    """An architecture with a value that only config.py knows, so that every other place must notice it by itself."""
    others = ("has_norm_bias", "has_rope", "has_learned_positions")
    properties = {name: answer(name, False) for name in others}
    kind = type("HalfAdded", (GPTConfig,), {**properties, "is_gated": answer("is_gated", gated)})
    return invented(kind(**{**dataclasses.asdict(GPT_CONFIG), **options}), field)


def forward(field: str) -> Tensor:
    logits: Tensor = GPT(half_added(field))(IDS)
    return logits


def packing(field: str) -> Decoder:
    model = GPT(GPT_CONFIG)
    model.config = invented(GPT_CONFIG, field)
    return Decoder(model)


def step(field: str) -> Tensor:
    decoder = Decoder(GPT(GPT_CONFIG))
    decoder.config = half_added(field)
    return decoder.step(IDS[0])


def graph(field: str) -> Any:
    model = GPT(GPT_CONFIG)
    model.config = half_added(field)
    past = torch.zeros(GPT_CONFIG.n_layer, 1, GPT_CONFIG.kv_heads, 0, GPT_CONFIG.d_head)
    return onnx_graph.hidden(model, IDS, past, past, None)


FIELDS = ("position", "norm", "activation")
IDS = torch.zeros(1, 1, dtype=torch.int64)
MAKERS: dict[str, Callable[[], Any]] = {
    **{f"model.{f}": lambda f=f: forward(f) for f in FIELDS},
    **{f"decoder.{f}": lambda f=f: packing(f) for f in ("position", "norm")},
    **{f"step of the decoder.{f}": lambda f=f: step(f) for f in ("norm", "activation")},
    "compiled.norm": lambda: compiled.norm_code("invented"),
    "compiled.activation": lambda: compiled.activation_code("invented"),
    "onnx.position": lambda: graph("position"),
    **{f"numpy.{f}": lambda f=f: numpy_ref.gpt.shapes(invented(GPT_CONFIG, f)) for f in FIELDS},
    "optimizer.kind": lambda: build_optimizer(
        MODEL.named_parameters(), invented(OptimizerConfig(), "kind"), fused=False
    ),
    "rate of a budget": lambda: rate_for(
        dataclasses.replace(tiny(Path()), optimizer=invented(OptimizerConfig(), "kind")), Asked(), 64
    ),
    "schedule.kind": lambda: lr_at(1, 100, peak=1.0, schedule=invented(ScheduleConfig(), "kind")),
    "schedule of numpy": lambda: numpy_ref.optimizers.lr_at(1, 100, peak=1.0, kind="invented", warmup_steps=5),
    "tokenizer.kind": lambda: train_tokenizer(invented(TokenizerConfig("char"), "kind"), ["a"]),
    "tokenizer of numpy": lambda: numpy_ref.tokenizers.train_tokenizer("invented", "a", 300),
    "data.source": lambda: open_source(invented(DataConfig("stories"), "source")),
    "conversations": lambda: read_conversations(invented(DataConfig("story_instruct"), "source")),
    "pairs": lambda: read_pairs(invented(DataConfig("story_preference"), "source")),
    "preference.loss": lambda: margins(invented(PreferenceConfig(), "loss"), *[torch.zeros(1)] * 4),
    "loss of preference.loss": lambda: losses(invented(PreferenceConfig(), "loss"), torch.zeros(1), torch.zeros(1)),
    "sums of preference.loss": lambda: is_mean(invented(PreferenceConfig(), "loss")),
    "data.on_invalid": lambda: Reading(on_invalid="invented"),
    "sweep.prune": lambda: open_pruning(invented(SweepConfig(), "prune"), Run(Path("nowhere")), 1, 1, []),
    "reward.kind": lambda: open_reward(invented(RewardConfig("story_request"), "kind"), []),
    "reward.terms.kind": lambda: open_reward(
        RewardConfig("sum", terms=(invented(RewardTerm("story_request"), "kind"),)), []
    ),
    "reinforce.advantage": lambda: advantages(torch.ones(1, 2), "invented"),
    "reinforce.weights": lambda: DTYPES["invented"],
    "device.strategy": lambda: invented(DeviceConfig(), "strategy").shards_weights,
    "device.accelerator": lambda: device.choose_machine(invented(DeviceConfig(), "accelerator"), PrecisionConfig()),
    "precision.dtype": lambda: device.choose_machine(
        DeviceConfig(accelerator="cpu"), invented(PrecisionConfig(), "dtype")
    ).autocast(),
}


@pytest.mark.parametrize("what", MAKERS)
def test_an_invented_choice_is_refused_where_it_is_made(what: str) -> None:
    with pytest.raises((AssertionError, KeyError), match="invented"):
        MAKERS[what]()


EXPORTS: dict[str, Callable[[GPTConfig], Any]] = {
    "hf": lambda config: hf_architectures.config_json(hf_architectures.choose(config), config, char()),
    "gguf": gguf_file.choose,
    "llama2c": llama2c.check_model,
}
MODELS: list[dict[str, Any]] = [
    {},
    {"position": "rope"},
    {"norm": "rmsnorm", "position": "rope", "activation": "swiglu"},
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("format_", EXPORTS)
def test_no_export_writes_an_invented_value_as_another(
    format_: str, field: str, options: dict[str, Any], gated: bool
) -> None:
    config = half_added(field, gated=gated, **options)
    with pytest.raises((AssertionError, UserError), match=r"invented|does not support"):
        EXPORTS[format_](config)


@pytest.mark.parametrize(("group", "field"), [("data", "packing"), ("", "resume")])
def test_an_invented_choice_never_trains(tmp_path: Path, group: str, field: str) -> None:
    config = tiny(tmp_path, train__max_steps=2)
    train(config, tmp_path / "run")
    if group:
        config = dataclasses.replace(config, **{group: invented(getattr(config, group), field)})
    else:
        config = invented(config, field)
    with pytest.raises(AssertionError, match="invented"):
        train(config, tmp_path / ("other" if group else "run"))


def literals(kind: type) -> Iterator[tuple[str, str, set[str]]]:
    """Every choice among words of a settings class and of those inside it: its class, its field, its values."""
    for name, hint in typing.get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) is not Literal else (hint,)
        for inner in (hint, *parts):
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                yield from literals(inner)
        words = {w for part in (hint, *parts) if get_origin(part) is Literal for w in get_args(part)}
        if len(words - {"auto"}) > 0:
            yield kind.__name__, name, words


def test_every_choice_of_the_settings_is_tested_here() -> None:
    """A new Literal in config.py needs its line in MAKERS; one of its own for each way of using it."""
    known = {
        ("ModelConfig", "norm"),
        ("ModelConfig", "position"),
        ("ModelConfig", "activation"),
        ("TokenizerConfig", "kind"),
        ("DataConfig", "source"),
        ("DataConfig", "on_invalid"),
        ("DataConfig", "packing"),
        ("DeviceConfig", "accelerator"),
        ("DeviceConfig", "strategy"),
        ("PrecisionConfig", "dtype"),
        ("OptimizerConfig", "kind"),
        ("ScheduleConfig", "kind"),
        ("SweepConfig", "prune"),
        ("RewardConfig", "kind"),
        ("RewardTerm", "kind"),
        ("ReinforceConfig", "advantage"),
        ("ReinforceConfig", "weights"),
        ("RunConfig", "resume"),
        ("PreferenceConfig", "loss"),
    }
    assert {(kind, field) for kind, field, _ in literals(choices.RunConfig)} == known


def test_tables_by_choice_have_a_row_for_every_choice() -> None:
    assert set(device.DTYPES) == set(get_args(Precision))
    assert set(choices.BATCH_TOKENS) == set(device.accelerators()) == set(get_args(Accelerator))
    values = {(kind, field): words for kind, field, words in literals(choices.RunConfig)}
    assert set(DTYPES) == values["ReinforceConfig", "weights"]
    assert set(DEAD) == values["ModelConfig", "activation"]
    sources = [with_value(DataConfig("stories"), "source", word) for word in values["DataConfig", "source"]]
    assert {data.source for data in sources if data.holds_conversations} == set(SOURCES_OF["sft"])
    assert {data.source for data in sources if data.holds_pairs} == set(SOURCES_OF["prefer"])
    for choice in READ_BY:
        assert set(choice.choices) == values[f"{choice.group.capitalize()}Config", choice.decided_by], choice.group


def test_properties_agree_with_the_parameters_of_the_model() -> None:
    """`n_params` and the properties that it uses, against the parameters of the model."""
    hints = typing.get_type_hints(choices.ModelConfig)
    for field in FIELDS:
        for word in get_args(hints[field]):
            config = dataclasses.replace(GPT_CONFIG, bias=True, **{field: word})
            model, twin = GPT(config), numpy_ref.GPTConfig(**dataclasses.asdict(config))
            names = {name for name, _ in model.named_parameters()}
            assert config.n_params() == sum(p.numel() for p in model.parameters())
            assert config.has_learned_positions == ("wpe.weight" in names)
            assert config.has_rope == hasattr(model, "cos")
            assert config.is_gated == ("blocks.0.mlp.gate.weight" in names)
            assert config.has_norm_bias == ("norm_f.bias" in names)
            assert set(numpy_ref.gpt.shapes(twin)) == names
            assert np.isfinite(model(torch.zeros(1, 4, dtype=torch.int64)).detach().numpy()).all()
