"""The protocol of an objective: everything about a training that depends on what is being learned.

The loop (`training/loop.py`) has no branch on the kind of training: a new method is a class with these members, most
easily a subclass of `PretrainObjective` or `SFTObjective` that overrides `loss`. docs/examples/add_an_objective.py is one.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from positron.model.gpt import GPT

Part = tuple[Tensor, Tensor]  # input and target ids (B, T) of a micro-batch, -100 where there is no loss


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt for samples: as text to show, as ids for the model, and the ids that end a sample."""

    shown: str
    ids: list[int]
    stop_ids: list[int]


class Objective(Protocol):
    """Define what a run learns. `kind` is its name in run.json."""

    kind: str
    token_bytes: np.ndarray  # (V,) bytes of text that each id stands for
    val_bits: float | None  # the information of the validation text, where it is known
    val_bytes: int  # its bytes
    patience: int  # validations without a better one after which the run ends; 0: never

    @property
    def fingerprint(self) -> str:
        """Return a hash of all training data: a run whose data has changed is not continued."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """Return the mean bytes of text of a target of training."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of a rank's share of optimizer step `step` (from 1): a pure function of the step."""
        ...

    def count(self, part: Part) -> Tensor:
        """Return how many losses the sum of `loss` has; known before any forward pass, so that gradients are exact."""
        ...

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of the losses of a micro-batch, in nats. The loop divides by the count of the whole step."""
        ...

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Return a rank's micro-batches of the validation side, the same number on each rank."""
        ...

    def score(self, model: GPT, part: Part, token_bytes: Tensor) -> Tensor:
        """Return (nats, bytes, tokens), summed over the targets of a validation micro-batch."""
        ...

    def documents(self, x: Tensor) -> Tensor | None:
        """Return the number (B, T) of each token's document in its row, or None where documents see each other."""
        ...

    def probe_rows(self) -> list[Part]:
        """Return rows (x, y), each (T,), from which monitors take their probe."""
        ...

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return (V,) how often each id is a target of training, at least in a large sample."""
        ...

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt of samples: `asked`, or a default that suits the data."""
        ...

    def close(self) -> None:
        """End background work, such as a download."""
        ...
