"""One source of defaults, `config.py`: `conf/` holds what a choice chooses, and no value that holds anyway."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import composed
from conftest import PROJECT, tiny

from positron.cli.defaults import default_configs
from positron.config import (
    BATCH_TOKENS,
    DataConfig,
    DeviceConfig,
    MonitorConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
    SFTConfig,
    TrainConfig,
)
from positron.run.folder import Run
from positron.settings import BESIDE_VALUES, MISSING, NOT_READ_BY, all_keys, from_dict
from positron.system.disk import read_json, write_json

CONF = PROJECT / "conf"
# what a choice is named after: device=auto stays that, whatever the default becomes
DECIDING = {"device.accelerator", "precision.dtype", "tokenizer.kind", "optimizer.kind", "schedule.kind"}
# values that equal a default, and the reason to write them
# the rate for every optimizer: optimizer=muon brings another one
WRITTEN_ANYWAY = {"sft.yaml": {"optimizer.lr"}}
# an experiment is a recipe to read and to repeat: all that was measured stands in it
FILES = [
    path for path in sorted(CONF.rglob("*.yaml")) if path.parent.name != "experiment" and "hydra" not in path.parts
]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def written(path: Path) -> dict[str, Any]:
    """Dotted key -> value of what a file in `conf/` sets, its own settings of Hydra left out."""
    text = path.read_text(encoding="utf-8")
    values = {key: value for key, value in (yaml.safe_load(text) or {}).items() if key not in ("defaults", "hydra")}
    is_whole = path.parent == CONF or "# @package _global_" in text
    return flat(values, "" if is_whole else f"{path.parent.name}.")


DEFAULTS = {key: value for values in default_configs().values() for key, value in flat(values).items()}
DEFAULTS |= flat(default_configs()["prefer"]) | flat(default_configs()["sft"]) | flat(default_configs()["train"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_in_conf_restates_a_default(path):
    allowed = DECIDING | WRITTEN_ANYWAY.get(path.name, set())
    for key, value in written(path).items():
        default = DEFAULTS.get(key, MISSING)  # data=custom has keys of its own
        number = float(value) if isinstance(value, str) and isinstance(default, float) else value  # 3e-4 in YAML
        assert key in allowed or number != default, f"{key}: {value} is the default: leave it out"


def test_what_is_written_anyway_makes_a_difference():
    """Without the line in sft.yaml, Muon's own rate would hold."""
    assert written(CONF / "optimizer" / "muon.yaml")["optimizer.lr"] != OptimizerConfig().lr
    assert set(WRITTEN_ANYWAY["sft.yaml"]) <= set(written(CONF / "sft.yaml"))


@pytest.mark.parametrize("recipe", ["train", "distill", "sft", "prefer"])
def test_a_recipe_composes_exactly_the_keys_that_its_command_reads(recipe):
    keys = set(all_keys())
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    read = {key for key in leaves if key.split(".")[0] not in NOT_READ_BY[recipe]}
    absent = {"logger.wandb", "logger.tensorboard"}  # until logger=wandb or logger=tensorboard brings them
    values = flat(composed("logger=[wandb,tensorboard]", recipe=recipe))
    assert set(values) == read - set(BESIDE_VALUES)
    assert (MISSING in values.values()) == (recipe == "distill")  # whose model and text are those of the teacher
    assert {key: value for key, value in flat(composed(recipe=recipe)).items() if key in absent} == dict.fromkeys(
        absent
    )


def test_users_and_tests_have_the_same_defaults():
    """What a command composes is what the classes give, but for what its choices choose."""
    config = from_dict(RunConfig, composed("model=debug", "tokenizer=char", "name=tiny", "device=cpu"))
    expected = RunConfig(
        name="tiny",
        model=config.model,
        tokenizer=config.tokenizer,
        data=DataConfig("stories"),
        device=DeviceConfig("cpu", batch_tokens=BATCH_TOKENS["cpu"]),
        precision=PrecisionConfig(),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        train=TrainConfig(batch_tokens=BATCH_TOKENS["cpu"]),
    )
    assert config == expected
    assert config.monitor == MonitorConfig()
    assert from_dict(SFTConfig, composed(recipe="sft")["sft"]) == SFTConfig()


def test_the_defaults_that_users_had_stay():
    assert DataConfig("stories").packing == "documents"
    assert TrainConfig().sample_tokens == 200
    assert SFTConfig().replay_ratio == 0.1
    ratios = {kind: ScheduleConfig(kind).final_ratio for kind in ("cosine", "linear", "constant", "trapezoid")}
    assert ratios == {"cosine": 0.1, "linear": 0.1, "constant": 0.1, "trapezoid": 0.0}
    assert ScheduleConfig("trapezoid", final_ratio=0.2).final_ratio == 0.2


@pytest.mark.parametrize(
    ("group", "key", "former"),
    [
        ("data", "packing", "windows"),
        ("train", "sample_tokens", 160),
        ("schedule", "final_ratio", 0.1),
        ("sft", "replay_ratio", 0.0),
    ],
)
def test_a_run_older_than_a_key_keeps_what_the_key_meant_then(group, key, former, tmp_path):
    config = dataclasses.replace(tiny(tmp_path, schedule__kind="trapezoid"), sft=SFTConfig(), init_from="base")
    run = Run(tmp_path)
    write_json(tmp_path / "config.json", dataclasses.asdict(config))
    assert run.settings() == config
    values = read_json(tmp_path / "config.json")
    del values[group][key]
    write_json(tmp_path / "config.json", values)
    assert getattr(getattr(run.settings(), group), key) == former
    assert run.config()[group][key] == former


def test_a_preset_of_a_user_may_hold_as_little(run_command, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("context_length: 16\nd_model: 8\nn_layer: 1\nn_head: 2\n")
    shown = run_command("train", "--config-dir", "mine", "model=own", "--cfg", "job")
    assert shown.code == 0, shown.err
    values = yaml.safe_load(shown.out)
    assert values["model"]["n_layer"] == 1
    assert values["model"]["norm"] == "layernorm"


def test_a_setting_that_an_own_experiment_gives_in_vain_is_refused(run_command, tmp_path):
    own = tmp_path / "mine" / "experiment" / "x.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ndata:\n  path: my.txt\n")
    for more in ([], ["-m", "seed=0,1"]):
        refused = run_command("train", "--config-dir", "mine", "experiment=x", "model=debug", *more)
        assert refused.code == 2
        assert "data.path= is read by data=text, not by data=stories" in refused.err
