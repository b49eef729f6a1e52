"""Define the protocol of an objective, which provides the data, loss, validation and sample prompt of a training run.

The training loop (`training/loop.py`) is the same for all kinds of training. To add a kind, write a class with the members of
`Objective`. The shortest way is a subclass of `PretrainObjective` or `SFTObjective` that overrides `loss`, as in
docs/examples/add_an_objective.py.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from positron.model.gpt import GPT

# A micro-batch: input ids (B, T), target ids (B, T), and tensors that only the objective reads. A target of -100 has no loss.
Part = tuple[Tensor, ...]


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt for samples: its text for display, its token ids for the model, and the token ids that end a sample."""

    shown: str
    ids: list[int]
    stop_ids: list[int]


class Objective(Protocol):
    """Define what a run learns. `kind` is the objective's name in run.json."""

    kind: str
    token_bytes: np.ndarray  # (V,) number of bytes of each token's text
    val_bits: float | None  # the entropy of the validation text in bits; None if it is not known
    val_bytes: int  # the length of the validation text in bytes
    patience: int  # the run ends after this number of validations in a row without an improvement; 0: no early stopping
    keeps_best: (
        bool  # True: the checkpoint with the lowest validation loss is the result of the run; False: the newest one
    )
    # set by the loop; returns an error after a signal, with which `batch` has to end a long wait in all processes together
    interruption: Callable[[], Exception | None]

    @property
    def fingerprint(self) -> str:
        """Return a hash of the training data. A run is not continued if this hash has changed."""
        ...

    @property
    def dependencies(self) -> dict[str, str]:
        """Return a dict with hashes of what determines the loss, except the training data, the tokenizer and the settings.

        For example, distillation returns hashes of the teachers' weights under the key "teachers". run.json and provenance.json
        record each hash under its key, which must be a field of `Facts` (positron/run/facts.py).
        """
        ...

    @property
    def bytes_per_token(self) -> float | None:
        """Return the mean number of bytes per training target; None if the loss cannot be expressed in bits per byte."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of one rank for optimizer step `step`, counted from 1.

        The result must depend only on the arguments, so that a run can continue at any step.
        """
        ...

    def examples(
        self, model: GPT, parts: list[Part], step: int, rank: int, world_size: int, pause: Callable[[], None]
    ) -> list[Part]:
        """Return the micro-batches to learn from in step `step`. `parts`: the result of `batch`, on the model's device.

        An objective that learns from texts of the model itself generates them here, with the weights before the step. If this
        takes long, the objective must call `pause` regularly. If the run has to stop, `pause` raises an error, which abandons
        the step.
        """
        ...

    def count(self, part: Part) -> Tensor:
        """Return the number of losses that `loss` adds up for this micro-batch.

        The loop needs it before the forward pass, to divide each loss by the number of losses in the step.
        """
        ...

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of the losses of a micro-batch, in nats.

        The loop divides it by the number of losses in the step.
        """
        ...

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Return one rank's micro-batches for validation; all ranks must get the same number of micro-batches."""
        ...

    def score(self, model: GPT, part: Part, token_bytes: Tensor) -> Tensor:
        """Return a tensor (3,) for a micro-batch: the summed losses in nats, and the numbers of target bytes and of targets.

        `token_bytes` (V,): the number of bytes of each token's text, on the device of the micro-batch.
        """
        ...

    def measures(self, model: GPT, rank: int, world_size: int) -> dict[str, float]:
        """Return those metrics of a validation that `score` does not compute; all ranks must return the same values."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """Return the state to save in a checkpoint after optimizer step `step`, or {} if the objective has no state."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state`, which is empty if the checkpoint has none."""
        ...

    def step_metrics(self) -> dict[str, float]:
        """Return those metrics of the last optimizer step that the loop does not compute itself, by name."""
        ...

    def loss_terms(self) -> dict[str, Tensor]:
        """Return the terms of the last step's loss by metric name, such as `train/kl`; {} if the loss has a single term.

        A term is a mean over this rank's targets, in nats. The tensors are on the device and read only if the step is logged.
        """
        ...

    def progress(self, metrics: dict[str, float], loss: float) -> str:
        """Return the text for the progress line, given the metrics and the loss (in nats) of the last step."""
        ...

    def documents(self, x: Tensor) -> Tensor | None:
        """Return for each token the index of its document within its row, (B, T), or None if attention crosses documents."""
        ...

    def probe_rows(self) -> list[Part]:
        """Return validation rows (x, y): input ids and target ids, each (T,).

        The monitors run the model on some of these rows. A monitor is a callback that measures values inside the model.
        """
        ...

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each id is a training target, (V,), in all data or in a large sample of it."""
        ...

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt for samples: the text `asked` or, if it is None or empty, a default for this kind of data.

        An objective may ignore `asked` and always return its default.
        """
        ...

    def close(self) -> None:
        """End background work, such as a download."""
        ...
