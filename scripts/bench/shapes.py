"""Define the architectures that several benchmarks measure."""

from __future__ import annotations

import yaml

from positron.cli.hydra_app import conf_folder
from positron.config import GPTConfig

_QUICKSTART = (conf_folder() / "model" / "quickstart.yaml").read_text(encoding="utf-8")
QUICKSTART = GPTConfig(vocab_size=4000, **yaml.safe_load(_QUICKSTART))  # model=quickstart with tokenizer=spm_4k
