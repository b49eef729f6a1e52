"""Hold a model that was read from the files of another program, before the model is written as a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from positron.config import GPTConfig
from positron.system.console import one_line
from positron.system.errors import UserError
from positron.text.library_json import LibraryTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

Weights = dict[str, Tensor]
NEW_ROW_NOISE = 0.01  # standard deviation of the noise in added rows, relative to that of the embedding


@dataclass(frozen=True)
class Imported:
    """Hold a model that was read from the files of another program, or of a Positron export.

    `weights`: the tensors by their names in `GPT`. `is_chat`: true if the model was fine-tuned with Positron's chat template.
    `origin`: the path or repository of the model. `is_masked`: true if it is known that the model was pretrained with
    data.document_mask.
    """

    config: GPTConfig
    weights: Weights
    tokenizer: LibraryTokenizer
    is_chat: bool
    origin: str
    is_masked: bool = False


def refuse_non_finite(weights: Weights, source: Path) -> None:
    """Raise UserError if a tensor that was read from `source` contains NaN or infinity."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                one_line(f"{source} cannot be imported, because its tensor {name} contains NaN or infinite values: ")
                + "download the model again, or choose another one"
            )


def special_ids(known: dict[str, int], begin: int, rows: int) -> tuple[dict[str, int], int]:
    """Return the ids of Positron's special tokens in an imported vocabulary, and the number of ids with those that are new.

    `known`: the ids of the special tokens of the vocabulary. `begin`: the id of the token that begins a text. `rows`: the
    number of rows of the embedding; the tokens for chat that are not among `known` get the ids from `rows` on.
    """
    missing = [token for token in SPECIALS[1:] if token not in known]
    ids = {token: known[token] for token in SPECIALS[1:] if token in known}
    ids |= {token: rows + i for i, token in enumerate(missing)}
    return {END_OF_TEXT: begin, **ids}, rows + len(missing)


def with_rows(config: GPTConfig, weights: Weights, vocab_size: int) -> tuple[GPTConfig, Weights]:
    """Enlarge embedding and output head to `vocab_size` rows, and return the new configuration and weights.

    A new row is the mean of the old rows plus a little noise. New rows are not 0, because a token whose row is 0 has the logit
    0. In GPT-2, whose other logits are far below 0, this token would be the likeliest token.
    """
    if vocab_size == config.vocab_size:
        return config, weights
    generator = torch.Generator().manual_seed(0)
    for name in ("wte.weight", "lm_head.weight"):
        if name in weights:
            old = weights[name]
            noise = torch.randn(vocab_size - len(old), old.shape[1], generator=generator)
            new = old.mean(dim=0) + NEW_ROW_NOISE * old.std() * noise
            weights = {**weights, name: torch.cat((old, new))}
    return dataclasses.replace(config, vocab_size=vocab_size), weights
