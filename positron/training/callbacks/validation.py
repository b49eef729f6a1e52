"""Score the validation text while a run trains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from positron.evaluation.score import Score
from positron.model.kernels.precision import widest
from positron.training.module import TrainingModule
from positron.training.objective.base import Objective, Part

logger = logging.getLogger(__name__)


@torch.no_grad()
def validate(trainer: L.Trainer, module: TrainingModule, parts: list[Part]) -> Score:
    """Score this rank's validation micro-batches, `parts`, and return the score of all ranks together."""
    module.eval()
    total = torch.zeros(3, dtype=widest(module.device), device=module.device)
    for i, part in enumerate(parts):
        sums = trainer.strategy.validation_step(tuple(tensor.to(module.device) for tensor in part), i)
        assert isinstance(sums, torch.Tensor)
        total += sums
    if trainer.world_size > 1:
        total = trainer.strategy.reduce(total, reduce_op="sum")
    module.train()
    nats, n_bytes, tokens = total.tolist()
    return Score(nats=nats, bytes=round(n_bytes), tokens=round(tokens))


@torch.no_grad()
def measures(trainer: L.Trainer, module: TrainingModule) -> dict[str, float]:
    """Return the validation metrics of the objective other than the loss, computed with the model in evaluation mode.

    For example, reinforcement learning measures the mean reward of answers to the validation prompts.
    """
    module.eval()
    measured = module.objective.measures(module.model, trainer.global_rank, trainer.world_size)
    module.train()
    return measured


class Validation(L.Callback):
    """Score the validation text every `every` steps, and at the step at which the training ends or is stopped.

    Adds val/loss (nats per token), val/bpb (bits per byte) and val/perplexity to the metrics. The method `measures` of the
    objective returns further metrics, such as the reward in reinforcement learning; they are added, too.
    """

    def __init__(self, objective: Objective, *, every: int, note_length: Callable[[int], None]) -> None:
        """Store the arguments. `note_length` is called once, with the length of the scored text in bytes."""
        self.objective, self.every, self.note_length = objective, every, note_length
        self._is_noted = False

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Score the validation text and add the result to the metrics, if the model is to be validated after this step."""
        if trainer.global_step % self.every and not trainer.should_stop:
            return
        with module.average.in_use():
            score = validate(trainer, module, self.objective.validation(trainer.global_rank, trainer.world_size))
            measured = measures(trainer, module)
        module.metrics |= {"val/loss": score.loss, "val/bpb": score.bpb, "val/perplexity": score.perplexity}
        if trainer.is_global_zero and not self._is_noted:
            self.note_length(score.bytes)
            self._is_noted = True
        module.metrics |= measured
        floor_bits = self.objective.val_bits
        # `floor_bits` belongs to `val_bytes`; a story that was cut after them adds bytes to the score, and only raises the loss
        n_bytes = self.objective.val_bytes
        if floor_bits is not None and score.bytes >= n_bytes and score.is_below(floor_bits):
            logger.warning(
                f"{score.bpb:.4f} bits per byte is below the entropy of the text, {floor_bits / n_bytes:.4f}, which is "
                "impossible for a correct model: the validation text is also in the training text, or the model sees the "
                "future (the token that it has to predict)"
            )
