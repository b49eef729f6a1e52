"""Define the base class of the objectives, with the next-token loss, which pretraining and supervised fine-tuning use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positron.config import IGNORE
from positron.model.gpt import GPT, document_numbers
from positron.model.kernels.precision import widest
from positron.training.objective.base import Objective, Part


def share_of(parts: list[Part], rank: int, world_size: int) -> list[Part]:
    """Return one rank's micro-batches: every `world_size`-th of `parts`, beginning with `parts[rank]`.

    Micro-batches without targets are added at the end, so that all ranks get the same number of micro-batches.
    """
    x, y = parts[-1]
    missing = -len(parts) % world_size
    return [*parts, *[(x, torch.full_like(y, IGNORE))] * missing][rank::world_size]


class NextToken:
    """Serve as the base class of the objectives in this package.

    Unless a subclass overrides it, the loss is the sum of the cross-entropies of the targets, each predicted from the tokens
    before it.
    """

    token_bytes: np.ndarray  # (V,) number of bytes of each token's text
    document_start: int | None  # the token id that begins every document; None if attention crosses documents
    keeps_best = True
    val_parts: list[Part]  # the micro-batches of the validation, for all ranks together
    interruption: Callable[[], Exception | None] = staticmethod(lambda: None)  # see `Objective`

    @property
    def dependencies(self) -> dict[str, str]:
        """Return an empty dict: the loss depends only on the data, the tokenizer and the settings."""
        return {}

    def examples(
        self, model: GPT, parts: list[Part], step: int, rank: int, world_size: int, pause: Callable[[], None]
    ) -> list[Part]:
        """Return `parts` unchanged, because the batches read from the data are used as they are.

        A subclass that trains on generated texts overrides this method. For the arguments, see `Objective.examples`.
        """
        return parts

    def count(self, part: Part) -> Tensor:
        """Return the number of targets of a micro-batch."""
        return (part[1] != IGNORE).sum()

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of the losses of a micro-batch, in nats."""
        x, y = part
        total: Tensor = model(x, y, self.documents(x))
        return total

    def score(self, model: GPT, part: Part, token_bytes: Tensor) -> Tensor:
        """Return a tensor (3,) for a micro-batch: the summed losses in nats, and the numbers of target bytes and of targets.

        The tensor has the widest float type of the device. `token_bytes` (V,): the number of bytes of each token's text.
        """
        x, y = part
        scored = y != IGNORE
        nats = model(x, y, self.documents(x))
        nats = nats.to(widest(y.device))
        count = token_bytes[y.clamp(min=0)].to(nats.dtype).mul(scored).sum()
        return torch.stack([nats, count, scored.sum().to(nats.dtype)])

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Return one rank's micro-batches for validation: every `world_size`-th of all micro-batches."""
        return share_of(self.val_parts, rank, world_size)

    def probe_rows(self) -> list[Part]:
        """Return the validation rows (x, y): input ids and target ids, each (T,).

        The monitors run the model on some of these rows. A monitor is a callback that measures values inside the model.
        """
        return [row for part in self.val_parts for row in zip(*part, strict=True)]

    def measures(self, model: GPT, rank: int, world_size: int) -> dict[str, float]:
        """Return an empty dict: the loss is the only metric."""
        return {}

    def state(self, step: int) -> dict[str, Any]:
        """Return an empty dict: a checkpoint needs no state, because the number of a step determines its batch."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

    def step_metrics(self) -> dict[str, float]:
        """Return an empty dict: the loss is the only metric."""
        return {}

    def loss_terms(self) -> dict[str, Tensor]:
        """Return an empty dict: the loss has a single term."""
        return {}

    def progress(self: Objective, metrics: dict[str, float], loss: float) -> str:
        """Return `loss`, the loss of the last step in nats per token, as text.

        The text also gives the loss in bits per byte if the objective's attribute `bytes_per_token` is not None. The argument
        `metrics` is not used; other objectives report values from it.
        """
        size = self.bytes_per_token
        return f"loss {loss:.3f}" + ("" if size is None else f" · {loss / math.log(2) / size:.3f} bpb")

    def documents(self, x: Tensor) -> Tensor | None:
        """Return for each token the index of its document within its row, (B, T), or None if attention crosses documents."""
        return document_numbers(x, self.document_start)

    def close(self) -> None:
        """Do nothing: no other process or file is in use."""
