"""Register the defaults of `config.py` with Hydra, as base configurations for the files in `conf/`.

For example, conf/train.yaml has the entry `/_defaults/train` in its defaults list, which is Hydra's list of the configurations
that a file extends. So the file contains only the values that differ from the base configuration `train`. Hydra refuses a key
of the command line that the composed configuration lacks. Therefore the base configuration of a command contains every key that
the command reads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from positron.config import (
    BATCH_TOKENS,
    Asked,
    DistillConfig,
    PreferenceConfig,
    ReinforceConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
    TensorboardConfig,
    WandbConfig,
)
from positron.settings import BESIDE_VALUES, NOT_READ_BY, defaults_of


@cache  # the store is one for the whole process
def register_defaults() -> None:
    """Add the configurations of `default_configs` to the configuration store of Hydra."""
    from hydra.core.config_store import ConfigStore

    for name, values in default_configs().items():
        ConfigStore.instance().store(name, values, group="_defaults", package="_global_")


def default_configs() -> dict[str, dict[str, Any]]:
    """Return the configurations that files in `conf/` can name as `/_defaults/NAME`, by NAME.

    The configuration of a command, such as "train", contains all keys that the command reads. The configuration of an
    accelerator, such as "cuda", contains settings of the group `device`. The configuration of a logger, such as "wandb",
    contains the settings of this logger.
    """
    extra_values = {key: getattr(Asked, key) for key in BESIDE_VALUES}
    groups = {
        "distill": DistillConfig,
        "sft": SFTConfig,
        "preference": PreferenceConfig,
        "reinforce": ReinforceConfig,
        "reward": RewardConfig,
    }
    run = {**defaults_of(RunConfig), **{name: defaults_of(group) for name, group in groups.items()}, **extra_values}
    return {
        **{
            recipe: {key: value for key, value in run.items() if key not in excluded_keys}
            for recipe, excluded_keys in NOT_READ_BY.items()
        },
        **{name: {"device": {"accelerator": name, "batch_tokens": size}} for name, size in BATCH_TOKENS.items()},
        "wandb": {"logger": {"wandb": defaults_of(WandbConfig)}},
        "tensorboard": {"logger": {"tensorboard": defaults_of(TensorboardConfig)}},
    }
