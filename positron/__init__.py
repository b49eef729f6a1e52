"""Positron: train, understand, fine-tune and talk to a small GPT on a machine you own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from positron.threads import wait_briefly

wait_briefly()

if TYPE_CHECKING:
    from positron.inference.writer import Writer

__version__ = "0.1.0"


def load(run: str | None = None, weights: str = "fp32") -> Writer:
    """The model of a run folder, or of a name below outputs/ (None: the one trained last), ready to write.

    `weights="bf16"` or `"int8"` writes faster on a CPU and rounds more.
    """
    from positron.inference.writer import Writer
    from positron.runs import find_run, load_model

    model, tokenizer, _ = load_model(find_run(run), lambda line: None)
    return Writer(model, tokenizer, weights=weights)
