"""Build the callbacks of the user: `callbacks=mine`, or `callbacks.NAME._target_=my_module.Class`.

Only the command line and `conf/` can name these callbacks. They are not part of a run's configuration, so that the run
folder of another person cannot make this program import code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from positron.system.errors import UserError
from positron.system.imports import load_object

if TYPE_CHECKING:
    from lightning import Callback


def make_callbacks(entries: Mapping[str, Any] | None) -> list[Callback]:
    """Build a Lightning callback from each value of `entries`, a dict whose keys are the names of the callbacks.

    A value is a dict: its key `_target_` names the class of the callback, and its other keys are the arguments of the class. A
    value that is None is left out. Raises UserError if a class cannot be imported, is not a callback, or refuses its arguments.
    """
    callbacks: list[Callback] = []
    for name, entry in (entries or {}).items():
        key = f"callbacks.{name}"
        if entry is None:  # callbacks.NAME=null removes this callback of the chosen file
            continue
        if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
            raise UserError(
                f"{key} needs a class: give {key}._target_=my_module.MyCallback, and {key}.NAME=VALUE for each argument"
            )
        callbacks.append(_make(key, entry["_target_"], {k: v for k, v in entry.items() if k != "_target_"}))
    refuse_equal_keys(callbacks)
    return callbacks


_AVERAGES = "Positron keeps a mean of the last weights itself; set schedule.average_share="
# Lightning's callbacks that would do nothing, raise an error, or change the training so that it could not continue exactly
_UNUSABLE = {
    "Checkpoint": "Positron saves checkpoints itself; set train.save_every= and train.keep_last=",
    "EarlyStopping": "Lightning's validation does not run; a callback of your own can set trainer.should_stop = True",
    "ProgressBar": "Positron prints the progress itself; leave it out",
    "LearningRateMonitor": "metrics.jsonl contains the learning rate already; leave it out",
    "DeviceStatsMonitor": "metrics.jsonl contains the peak of the memory already; leave it out",
    "ThroughputMonitor": "metrics.jsonl contains the speed already; leave it out",
    "StochasticWeightAveraging": _AVERAGES,
    "WeightAveraging": _AVERAGES,
    "GradientAccumulationScheduler": "Positron adds up gradients itself; set train.batch_tokens= and train.micro_batch_size=",
    "LearningRateFinder": "it would train by itself; compare values of optimizer.lr= in a sweep",
    "BatchSizeFinder": "it would train by itself; train.micro_batch_size=auto finds the size",
    "BaseFinetuning": "a training of Positron has only one epoch, so it would unfreeze nothing; leave it out",
    "ModelPruning": "a training of Positron has only one epoch, after which it would prune; leave it out",
    "ModelSummary": "train.log contains the number of parameters already; leave it out",
    "SpikeDetection": "a step of Positron returns no loss to it; train.max_bad_steps= ends a run that diverges",
    "BasePredictionWriter": "a training predicts nothing; leave it out",
}
_NEVER_CALLED = ("on_validation", "on_test", "on_predict", "on_sanity_check")  # beginnings of the names of methods


def refuse_unusable(cls: type[Callback], label: str) -> None:
    """Raise UserError for a class of callbacks that does not work with Positron's training; `label` names it in the message.

    These are callbacks of Lightning that would do nothing, end the training with an error, or change it so that a run that was
    stopped would not continue exactly. A callback of the user is refused if Positron would call none of its methods.
    """
    from lightning.pytorch import callbacks

    for base in cls.__mro__:
        reason = _UNUSABLE.get(base.__name__)
        if reason is not None and getattr(callbacks, base.__name__, None) is base:
            raise UserError(f"{label} cannot be used: {reason}")
    hooks = [name for name in dir(callbacks.Callback) if name.startswith(("on_", "setup", "teardown"))]
    own = [name for name in hooks if getattr(cls, name) is not getattr(callbacks.Callback, name)]
    if own and all(name.startswith(_NEVER_CALLED) for name in own):
        raise UserError(
            f"{label} would do nothing, because Positron never calls {own[0]}: put its code into on_train_batch_end"
        )


def refuse_equal_keys(callbacks: Iterable[Callback]) -> None:
    """Raise UserError if a checkpoint would store the states of two callbacks under the same key."""
    from lightning import Callback

    keys = [each.state_key for each in callbacks if type(each).state_dict is not Callback.state_dict]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(
                f"two callbacks with a state_dict have the same state_key, {key}, so a checkpoint could hold only one of their "
                "states: give their class a property state_key that returns a different text for each of them"
            )


def _make(key: str, target: str, arguments: dict[str, Any]) -> Callback:
    from lightning import Callback

    cls = load_object(target, f"{key}._target_")
    if not (isinstance(cls, type) and issubclass(cls, Callback)):
        raise UserError(f"{key}._target_={target} is not a callback: name a subclass of lightning.Callback")
    refuse_unusable(cls, f"{key}._target_={target}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise UserError(
            f"{key}: the class {target} refuses its arguments ({' '.join(str(error).split())}): give the arguments as "
            f"{key}.NAME=VALUE, or correct the class"
        ) from error
