"""When a training has failed by its own numbers. A run that diverged is neither saved so nor ever called finished."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import lightning as L
import torch

from positron.system.errors import Diverged
from positron.training.callbacks.validation import validate
from positron.training.module import TrainingModule
from positron.training.objective.base import Objective

logger = logging.getLogger(__name__)

# A model that knows nothing, and says so, has the loss log(vocabulary); weights as they are drawn are within some percent
# of it. Twice that loss means that the model gives what follows less than 1/vocabulary² on average: it has been thrown
# away from where it began. Overfitting can lead there too, but only on other text than that which it learns, so the loss
# of the last training batch has to be worse than knowing nothing as well.
TIMES_GUESSING = 2.0


class Divergence(L.Callback):
    """Raise Diverged before anything of a bad step is sampled or saved.

    A run has diverged where `max_bad_steps` steps in a row had a loss or gradient that is NaN or infinite, or where a
    validation did; and, at its last step, where it ends in such a streak of any length (nobody can know whether it would
    have recovered) or with a loss far above that of guessing.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        objective: Objective,
        is_last: Callable[[L.Trainer], bool],
    ) -> None:
        """`is_last`: whether the step just done is the last one of the run."""
        self.guessing, self.objective, self.is_last = math.log(vocab_size), objective, is_last
        self._has_warned = False

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: object) -> None:  # type: ignore[override]
        """Check the step. Raises Diverged if the training has diverged."""
        step, metrics, is_last = trainer.global_step, module.metrics, self.is_last(trainer)
        if module.device.type == "cpu" or step % 10 == 0 or trainer.should_stop:  # it waits for the device
            streak = int(module.bad_in_a_row)
            if _any_rank(trainer, streak >= (1 if is_last else module.max_bad_steps)):
                steps = "1 step" if streak == 1 else f"{streak} steps in a row"
                where = f"the run ended after {steps} with" if is_last else f"{steps} had"
                error = diverged(trainer, f"{where} a NaN or infinite loss or gradient, up to step {step}")
                # bad steps have changed nothing, but huge weights may have caused them; and a checkpoint at the horizon
                # would read as a finished run
                batches = self.objective.validation(trainer.global_rank, trainer.world_size)
                error.can_save = not is_last and self._is_sane(validate(trainer, module, batches).loss)
                raise error
        loss = metrics.get("val/loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise diverged(trainer, f"the validation loss of step {step} is NaN or infinite")
        if not self._is_sane(loss):
            what = f"the validation loss of step {step} is {loss:.4g}; guessing alone has {self.guessing:.4g}"
            if is_last and _mean(trainer, module.loss) > self.guessing:
                raise diverged(trainer, what)
            if not self._has_warned:
                logger.warning(f"{what}")
                self._has_warned = True

    def _is_sane(self, loss: float) -> bool:
        return loss <= TIMES_GUESSING * self.guessing  # False for NaN


def diverged(trainer: L.Trainer, what: str) -> Diverged:
    """Return the error, with the remedy."""
    precision = "" if trainer.precision == "32-true" else ", or with precision=fp32"
    return Diverged(
        f"the training diverged: {what}. Start again under another name= with a lower optimizer.lr{precision}"
    )


def has_finite_state(trainer: L.Trainer, module: TrainingModule) -> bool:
    """Whether all weights and the optimizer's moments are finite, on all ranks. Waits for the device."""
    tensors: list[torch.Tensor] = [*module.model.parameters()]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    finite = [tensor.detach().isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not _any_rank(trainer, not all(torch.stack([flag.to(module.device) for flag in finite]).tolist()))


def _any_rank(trainer: L.Trainer, decision: bool) -> bool:
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def _mean(trainer: L.Trainer, value: torch.Tensor) -> float:
    return float(value if trainer.world_size == 1 else trainer.strategy.reduce(value, reduce_op="mean"))
