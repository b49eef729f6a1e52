"""Load the model to export: the best weights of a run, its architecture and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from positron.config import GPTConfig
from positron.model.gpt import GPT
from positron.run.folder import Run
from positron.run.load import load_model
from positron.text.tokenizer import Tokenizer

PROBE_LOGITS = 2**24  # 64 MB in fp32


@dataclass(frozen=True)
class Source:
    """Hold a model to export, in fp32 on the CPU, with its run and tokenizer.

    `checkpoint`: the file from which the weights were loaded. `is_chat`: true if the model was trained to answer messages.
    """

    run: Run
    model: GPT
    tokenizer: Tokenizer
    checkpoint: Path
    is_chat: bool

    @property
    def config(self) -> GPTConfig:
        """Return the architecture of the model."""
        return self.model.config

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in `GPT`."""
        return {name: tensor.detach() for name, tensor in self.model.named_parameters()}

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return self.run.folder.resolve().name


def open_source(run: Run) -> Source:
    """Load the best checkpoint of a run, or the newest if no best was saved. Raises the errors of `load_model`."""
    model, tokenizer, checkpoint = load_model(run)
    model.requires_grad_(False)
    return Source(run, model, tokenizer, checkpoint, run.is_chat)


def probe(config: GPTConfig) -> Tensor:
    """Return random token ids (2, T), on which an exported model is compared with the original.

    T is the context length, or less for a large model: 2 T tokens have at most 2^24 logits (PROBE_LOGITS), and T is >= 64.
    """
    length = min(config.context_length, max(64, PROBE_LOGITS // (2 * config.vocab_size)))
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def largest_difference(source: Source, weights: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between the logits of the model and of the same model with `weights`.

    Both models read the token ids of `probe`.
    """
    copy = GPT(source.config).eval()
    copy.load_state_dict(weights)
    ids = probe(source.config)
    return float((copy(ids) - source.model(ids)).abs().max().item())
