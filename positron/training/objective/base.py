"""The protocol of an objective, which defines the data, loss, validation and sample prompt of a training.

The loop (`training/loop.py`) does not distinguish kinds of training. To add one, write a class with these members; a subclass
of `PretrainObjective` or `SFTObjective` that overrides `loss` is shortest. docs/examples/add_an_objective.py is an example.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from positron.model.gpt import GPT

# A micro-batch: input ids (B, T), target ids (B, T), and further tensors of the objective with B rows. A target of -100 has no
# loss.
Part = tuple[Tensor, ...]


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt for samples: its text for display, its ids for the model, and the ids that end a sample."""

    shown: str
    ids: list[int]
    stop_ids: list[int]


class Objective(Protocol):
    """Define what a run learns. `kind` is its name in run.json."""

    kind: str
    token_bytes: np.ndarray  # (V,) number of bytes of each token's text
    val_bits: float | None  # the entropy of the validation text in bits; None if it is not known
    val_bytes: int  # the length of the validation text in bytes
    patience: int  # the run ends after this number of validations in a row without a new best one; 0: it never does
    keeps_best: bool  # whether the checkpoint with the lowest validation loss is the result; False: the newest one is

    @property
    def fingerprint(self) -> str:
        """Return a hash of the training data. A run is not continued if this hash has changed."""
        ...

    @property
    def bytes_per_token(self) -> float | None:
        """Return the mean number of bytes of a training target's text; None if the loss is not in nats per token."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of one rank for optimizer step `step`, counted from 1.

        The result must depend only on the arguments, so that a run can continue at any step.
        """
        ...

    def examples(
        self, model: GPT, parts: list[Part], step: int, rank: int, world_size: int, pause: Callable[[], None]
    ) -> list[Part]:
        """Return the micro-batches to learn from in step `step`, given those of `batch`, which are on the model's device.

        An objective that learns from the model's own texts generates them here, with the weights before the step. `pause` must
        be called regularly during long work: it raises an error if the run has to stop, and the step is then given up.
        """
        ...

    def count(self, part: Part) -> Tensor:
        """Return the number of losses that `loss` adds up for this micro-batch.

        The loop needs it before the forward pass, to divide each micro-batch's loss by the count of the whole step.
        """
        ...

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of the losses of a micro-batch, in nats. The loop divides it by the count of the whole step."""
        ...

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Return one rank's micro-batches of the validation text; all ranks must get the same number of micro-batches."""
        ...

    def score(self, model: GPT, part: Part, token_bytes: Tensor) -> Tensor:
        """Return a tensor (3,): the nats, bytes and number of the targets of a validation micro-batch, each summed."""
        ...

    def measures(self, model: GPT, rank: int, world_size: int) -> dict[str, float]:
        """Return further metrics, which each validation adds to its own; all ranks must return the same values."""
        ...

    def step_metrics(self) -> dict[str, float]:
        """Return further metrics of the last optimizer step."""
        ...

    def progress(self, metrics: dict[str, float], loss: float) -> str:
        """Describe the last step for the progress line, from its metrics and its loss in nats."""
        ...

    def documents(self, x: Tensor) -> Tensor | None:
        """Return for each token the index of its document within its row, (B, T), or None if attention crosses documents."""
        ...

    def probe_rows(self) -> list[Part]:
        """Return validation rows (x, y), each (T,), from which monitors choose their probe."""
        ...

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each id is a training target (V,), counted in the whole data or in a large sample."""
        ...

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt for samples: `asked`, or a default for this kind of data if it is None."""
        ...

    def close(self) -> None:
        """End background work, such as a download."""
        ...
