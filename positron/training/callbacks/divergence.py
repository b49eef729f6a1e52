"""End a run that has diverged. Its damaged weights are not saved, and its status is `diverged`, never `finished`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from positron.system.errors import Diverged, raise_together
from positron.training.callbacks.validation import validate
from positron.training.module import TrainingModule
from positron.training.objective.base import Objective
from positron.training.sharded_tensors import own_part

logger = logging.getLogger(__name__)

# A model that gives all tokens the same probability has the loss log(vocabulary); initial weights have nearly this loss. At
# twice this loss, the geometric mean of the probabilities of the targets is 1/vocabulary², so training has made the model
# worse than it was at the start. Overfitting can have the same effect, but only on validation text. Therefore a run counts as
# diverged only if the loss of its last training batch is also above log(vocabulary). A trained model that begins with a text
# unlike its own, for example in another language, may have a higher loss than log(vocabulary) before the first step. For such
# a run, the loss of its first step takes the place of log(vocabulary).
MAX_LOSS_RATIO = 2.0  # validation loss / log(vocabulary)


class Divergence(L.Callback):
    """Raise Diverged after a step that shows divergence, before samples and checkpoints are written.

    A step is bad if its loss or gradient is NaN or infinite (in fp16, only the loss counts while the loss scale is above 1).
    The loss of random guessing is log(`vocab_size`). A run has diverged in each of these cases:

    - train.max_bad_steps steps in a row were bad. On a GPU, this is checked only at every 10th step and when training stops.
    - A validation loss is NaN or infinite.
    - The last step of the run was bad.
    - At the last step of the run, the training loss is above the loss of random guessing, and the validation loss is above
      twice the loss of random guessing (MAX_LOSS_RATIO). If the loss of the first step is higher than that of random guessing,
      it takes its place.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        objective: Objective,
        is_last: Callable[[L.Trainer], bool],
    ) -> None:
        """Store the arguments.

        `vocab_size`: the size of the vocabulary, from which the loss of random guessing is computed. `objective` provides the
        validation data. If the training ends because of NaN or infinite losses or gradients, the loss on the validation data
        shows whether the weights are still worth saving. `is_last` is called after a step and tells whether it was the last
        step of the run.
        """
        self.guessing, self.objective, self.is_last = math.log(vocab_size), objective, is_last
        self._first_loss = torch.zeros(())  # 0: unknown, in a run that an older version began
        self._has_warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the loss of the first step, which a run that continues cannot measure again."""
        return {"first_loss": self._first_loss.item()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loss of the first step."""
        self._first_loss = torch.tensor(state_dict["first_loss"])

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: object) -> None:  # type: ignore[override]
        """Raise Diverged if this step shows that the training has diverged."""
        step, metrics, is_last = trainer.global_step, module.metrics, self.is_last(trainer)
        if step == 1:
            self._first_loss = module.loss.detach().clone()  # before any update
        if step % check_interval(module.device) == 0 or trainer.should_stop:
            # both numbers are the same on all ranks; the longest streak may have ended since the last check
            last, longest = int(module.bad_in_a_row), int(module.longest_bad_streak)
            ends_badly = is_last and last > 0
            if ends_badly or longest >= module.max_bad_steps:
                streak = last if ends_badly else longest
                steps = "1 step" if streak == 1 else f"{streak} steps in a row"
                subject = f"the run ended with {steps} that had" if ends_badly else f"{steps} had"
                until = f"up to step {step}" if streak == last else f"before step {step}"
                error = diverged(trainer, f"{subject} a NaN or infinite loss or gradient, {until}")
                # bad steps change no weight, but very large weights may have caused them; and a checkpoint at the last
                # step would mark the run as finished
                batches = self.objective.validation(trainer.global_rank, trainer.world_size)
                error.can_save = not is_last and self._is_sane(validate(trainer, module, batches).loss)
                raise_together(error)
        loss = metrics.get("val/loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise diverged(trainer, f"the validation loss of step {step} is NaN or infinite")
        if not self._is_sane(loss):
            cause = (
                f"the validation loss of step {step} is {loss:.4g} nats per token, more than {MAX_LOSS_RATIO:g} times the "
                f"loss of random guessing, {self.guessing:.4g}"
            )
            if is_last and module.loss.item() > self._loss_at_start():
                raise diverged(trainer, cause)
            if not self._has_warned:
                logger.warning(
                    f"{cause}: if the loss does not fall soon, stop the run and start again under another name= with a lower "
                    "optimizer.lr"
                )
                self._has_warned = True

    def _is_sane(self, loss: float) -> bool:
        return loss <= MAX_LOSS_RATIO * self._loss_at_start()  # False for NaN

    def _loss_at_start(self) -> float:
        """Return the loss of random guessing, or that of the first step if it is finite and higher."""
        first = self._first_loss.item()
        return max(self.guessing, first) if math.isfinite(first) else self.guessing


def check_interval(device: torch.device) -> int:
    """Return after how many steps bad steps are looked for: on a GPU rarely, because reading a value waits for the device."""
    return 1 if device.type == "cpu" else 10


def diverged(trainer: L.Trainer, cause: str) -> Diverged:
    """Return the error for a run that diverged; its message names the `cause` and the remedy."""
    precision = ", or with precision=fp32" if trainer.precision == "16-mixed" else ""  # only fp16 has a smaller range
    return Diverged(
        f"the training diverged: {cause}. Start again under another name= with a lower optimizer.lr{precision}"
    )


def has_finite_state(trainer: L.Trainer, module: TrainingModule) -> bool:
    """Tell whether all weights and all moments of the optimizer are finite, on all ranks.

    The call waits until the device has finished its work.
    """
    tensors: list[torch.Tensor] = [*module.model.parameters()]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    finite = [own_part(tensor.detach()).isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not _any_rank(trainer, not all(torch.stack([flag.to(module.device) for flag in finite]).tolist()))


def _any_rank(trainer: L.Trainer, decision: bool) -> bool:
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
