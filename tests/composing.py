"""The configuration that a command line composes."""

from typing import Any

from conftest import PROJECT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from positron.cli.defaults import register_defaults
from positron.settings import BESIDE_VALUES


def composed(*overrides: str, recipe: str = "train") -> Any:
    register_defaults()
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = compose(recipe, [*overrides], return_hydra_config=True)
        OmegaConf.set_readonly(cfg.hydra, False)
        from hydra.core.hydra_config import HydraConfig

        HydraConfig.instance().set_config(cfg)
        settings = OmegaConf.masked_copy(cfg, [k for k in cfg if k not in ("hydra", "callbacks", *BESIDE_VALUES)])
        return OmegaConf.to_container(settings, resolve=True)
