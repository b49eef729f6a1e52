"""Do once, when the process is started from which tests fork commands, what each command would do again.

The process imports this module by its name (`tests/conftest.py`). Where it cannot, because the tests were not started in the
folder of the project, each command takes half a second longer.
"""

from __future__ import annotations

import hydra

from positron.cli.defaults import register_defaults
from positron.cli.hydra_app import conf_folder
from positron.config import GPTConfig
from positron.inference.decoders import make_decoder
from positron.model.gpt import GPT
from tests import warm

for _index in range(1000):  # all stories of `FAST`
    warm.generate(0, _index)
register_defaults()
with hydra.initialize_config_dir(
    str(conf_folder()), version_base="1.3"
):  # finds Hydra's plugins, and fills its parser's cache
    hydra.compose("train", ["tokenizer=char"])
make_decoder(
    GPT(GPTConfig(vocab_size=16, context_length=16, d_model=16, n_layer=1, n_head=1))
)  # loads what Numba compiled
