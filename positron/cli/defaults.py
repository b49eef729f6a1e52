"""What `conf/` is composed over: the defaults of `config.py`, as configs that Hydra knows beside the files.

A file in `conf/` names one of them in its defaults list as `/_defaults/NAME` and holds only what it chooses. Hydra
refuses a key that the composed configuration does not have, so they hold every key that a command reads.
"""

from __future__ import annotations

from typing import Any

from positron.config import BATCH_TOKENS, Asked, RunConfig, SFTConfig, TensorboardConfig, WandbConfig
from positron.settings import BESIDE_VALUES, NOT_READ_BY, defaults_of


def register_defaults() -> None:
    """Store each of `default_configs` where Hydra looks for what is no file."""
    from hydra.core.config_store import ConfigStore

    for name, values in default_configs().items():
        ConfigStore.instance().store(name, values, group="_defaults", package="_global_")


def default_configs() -> dict[str, dict[str, Any]]:
    """Every key of the commands `train` and `sft`, the preset of each accelerator, and the loggers, which may be absent."""
    beside = {key: getattr(Asked, key) for key in BESIDE_VALUES}
    run = {**defaults_of(RunConfig), "sft": defaults_of(SFTConfig), **beside}
    return {
        **{
            recipe: {key: value for key, value in run.items() if key not in left_out}
            for recipe, left_out in NOT_READ_BY.items()
        },
        **{name: {"device": {"accelerator": name, "batch_tokens": size}} for name, size in BATCH_TOKENS.items()},
        "wandb": {"logger": {"wandb": defaults_of(WandbConfig)}},
        "tensorboard": {"logger": {"tensorboard": defaults_of(TensorboardConfig)}},
    }
