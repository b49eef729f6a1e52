"""Positron: train, understand, fine-tune and talk to a small GPT on a machine you own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from positron.system.threads import SPIN_TRAINING, SPIN_WRITING, spin

spin(SPIN_TRAINING)

if TYPE_CHECKING:
    from positron.inference.text_model import Writer

__version__ = "0.1.0"


def load(run: str | Path | None = None, weights: str = "fp32") -> Writer:
    """The model of a run folder, or of a name below outputs/ (None: the one trained last), ready to write.

    `weights="bf16"` or `"int8"` writes faster on a CPU and rounds more.
    """
    spin(SPIN_WRITING)
    from positron.inference.arguments import weights_of
    from positron.inference.text_model import Writer
    from positron.run.folder import find_run
    from positron.run.load import load_model
    from positron.system.errors import UserError

    if run is not None and not isinstance(run, (str, Path)):
        raise UserError(f"run {run!r} must be the name or the folder of a run, not {type(run).__name__}")
    weights_of(weights)
    model, tokenizer, _ = load_model(find_run(None if run is None else str(run)), lambda line: None)
    return Writer(model, tokenizer, weights=weights)
