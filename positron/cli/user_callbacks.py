"""Build the callbacks of the user: `callbacks=mine`, or `callbacks.NAME._target_=my_module.Class`.

Only the command line and `conf/` can name these callbacks. They are not part of a run's configuration, so that the run
folder of another person cannot make this program import code.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    return callbacks


def _make(key: str, target: str, arguments: dict[str, Any]) -> Callback:
    from lightning import Callback

    cls = load_object(target, f"{key}._target_")
    if not (isinstance(cls, type) and issubclass(cls, Callback)):
        raise UserError(f"{key}._target_={target} is not a callback: name a subclass of lightning.Callback")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise UserError(
            f"{key}: the class {target} refuses its arguments ({' '.join(str(error).split())}): give the arguments as "
            f"{key}.NAME=VALUE, or correct the class"
        ) from error
