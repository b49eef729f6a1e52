"""Define distillation: the model learns from a text and from the probabilities of frozen models, which are its teachers.

Shapes: B rows of a micro-batch, T tokens, N = B T, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from positron.config import DistillConfig
from positron.model.gpt import GPT, document_numbers
from positron.model.kernels.distillation import States, linear_distillation
from positron.text.tokenizer import END_OF_TEXT
from positron.training.objective.base import Part
from positron.training.objective.pretrain import PretrainObjective


@dataclass(frozen=True)
class Teachers:
    """Hold the frozen models and, for each of them, the hash of its weights and whether attention stays inside documents.

    The models are in evaluation mode, on the device of the training. The hashes are those of `hash_of_stored`.
    """

    models: Sequence[GPT]
    hashes: Sequence[str]
    masks: Sequence[bool]

    @torch.no_grad()
    def states(self, x: Tensor, documents: Tensor | None, inside: Tensor | None) -> list[States]:
        """Return the last hidden states (N, C) and the output matrix (V, C) of each teacher, for the input ids `x` (B, T).

        `inside` (B, T): the number of each token's document. `documents`: the same numbers, or None if the student's attention
        crosses documents. The attention of a teacher that was trained inside documents stays inside them in both cases: across
        documents, its probabilities would be much worse. N is B T, and C is the width of the teacher.
        """
        return [
            (each.hidden(x, inside if is_masked else documents).flatten(0, 1), each.head_weight)
            for each, is_masked in zip(self.models, self.masks, strict=True)
        ]


class DistillObjective(PretrainObjective):
    """Train on every token of a text and, at each position, on the teachers' probabilities of all tokens of the vocabulary.

    The validation measures the plain cross-entropy, as in pretraining, so that runs can be compared.
    """

    kind = "distillation"

    def __init__(self, *text: Any, settings: DistillConfig, teachers: Teachers, **sizes: Any) -> None:
        """Open the text. `text` and `sizes` are the arguments of `PretrainObjective`.

        The teachers are not part of the nn.Module that is trained. Therefore they are neither in the optimizer nor in a
        checkpoint.
        """
        super().__init__(*text, **sizes)
        self.settings, self.teachers = settings, teachers
        self._sums = torch.zeros(3)  # cross-entropy, KL divergence and number of targets of the current step

    @property
    def dependencies(self) -> dict[str, str]:
        """Return {"teachers": "HASH1 HASH2"}: the hashes of the weights of all teachers, separated by spaces."""
        return {"teachers": " ".join(self.teachers.hashes)}

    @property
    def bytes_per_token(self) -> None:
        """Return None: the loss is not only the cross-entropy of the text, so it cannot be expressed in bits per byte."""

    def examples(
        self, model: GPT, parts: list[Part], step: int, rank: int, world_size: int, pause: Callable[[], None]
    ) -> list[Part]:
        """Return `parts` unchanged, and set the sums of the terms of the loss to 0; `loss` adds to them during the step."""
        self._sums = torch.zeros(3, device=model.wte.weight.device)
        return parts

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of (1 - alpha) CE + alpha temperature² KL over the targets of a micro-batch, in nats.

        CE is the cross-entropy of the target, at temperature 1. KL is KL(q || s), where q is the mean of the teachers'
        distributions and s is the distribution of the trained model. For q and s, all logits are divided by the temperature.
        `alpha` and `temperature` are fields of the settings (DistillConfig).
        """
        x, y = part
        documents = self.documents(x)
        student = model.hidden(x, documents).flatten(0, 1)  # (N, C)
        total, ce, kl = linear_distillation(
            student,
            model.head_weight,
            y.flatten(),
            self._states(x, documents),
            self.settings.alpha,
            self.settings.temperature,
        )
        # moved, because a measurement of the speed calls `loss` without `examples`
        self._sums = self._sums.to(ce.device) + torch.stack([ce, kl, self.count(part).to(ce.dtype)]).float()
        return total

    def _states(self, x: Tensor, documents: Tensor | None) -> list[States]:
        """Return what the teachers predict for the input ids `x` (B, T); see `Teachers.states`."""
        inside = document_numbers(x, self.tokenizer.special_id(END_OF_TEXT))
        return self.teachers.states(x, documents, inside)

    def loss_terms(self) -> dict[str, Tensor]:
        """Return the means of the cross-entropy and of the KL divergence over the targets of the last step, in nats."""
        ce, kl, count = self._sums
        return {"train/ce": ce / count, "train/kl": kl / count}


def trial_loss(model: GPT, idx: Tensor, *, teachers: Teachers, settings: DistillConfig, is_masked: bool) -> Tensor:
    """Return the summed loss of token ids (B, T) as targets of themselves, which needs as much memory as that of a text.

    `is_masked`: the student's attention stays inside documents.
    """
    inside = document_numbers(idx, 0)
    documents = inside if is_masked else None
    student, states = model.hidden(idx, documents).flatten(0, 1), teachers.states(idx, documents, inside)
    return linear_distillation(student, model.head_weight, idx.flatten(), states, settings.alpha, settings.temperature)[
        0
    ]
