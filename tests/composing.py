"""The configuration that a command line composes."""

from conftest import PROJECT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides], return_hydra_config=True)
        OmegaConf.set_readonly(cfg.hydra, False)
        from hydra.core.hydra_config import HydraConfig

        HydraConfig.instance().set_config(cfg)
        return OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
