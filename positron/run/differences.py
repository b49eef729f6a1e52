"""Compare the settings of a run with those of a command that is to continue it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from positron.config import RunConfig
from positron.run.facts import Resolved
from positron.run.folder import OUTPUTS, Run
from positron.settings import flat, recipe_of
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.errors import UserError
from positron.system.paths import without_home

# Settings that may differ between two commands that train the same run, because they do not change what it learns. The
# weights of the teachers are compared instead of their names.
_CHANGEABLE_KEYS = {"ckpt_path", "init_from", "resume", "distill.teachers"}
# Those of them that nevertheless decide what a new run learns: the weights with which it begins, and its teachers.
STARTING_POINTS = {"ckpt_path", "init_from", "distill.teachers"}
_CHANGEABLE_GROUPS = ("device.", "logger.", "monitor.", "sweep.")
_CHANGEABLE_TRAIN = {
    "stop_at",
    "max_time",
    "extend",
    "keep_last",
    "keep_history",
    "save_every",
    "micro_batch_size",
    "sample_every",
    "sample_prompt",
    "sample_tokens",
}
# Where the text is; its fingerprint is compared instead.
TEXT_LOCATION = {"data.path", "data.dir", "data.url", "data.sha256"}
_EPOCHS = {"sft.epochs", "preference.epochs"}
_SHOWN_DIFFERENCES = 3  # in an error message
# Keys that decide which other keys of their group are read. The full table is READ_BY in cli/unused_settings.py; this package
# must not import the command line.
_DECIDING_KEYS = ("data.source", "tokenizer.kind", "optimizer.kind", "schedule.kind")
_RESOLVED = ("max_steps", "batch_tokens")  # settings whose `auto` is compared as the number that replaced it


def differences(run: Run, config: RunConfig) -> list[str]:
    """Return `key: recorded -> requested` for each setting in which the run and `config` differ.

    The name of the run is compared, and all settings that decide what the model learns or when the model is validated. The
    place of the text, such as data.path, is not compared if `run.json` contains the text's fingerprint. The number of epochs
    is not compared if `config` has a number of steps, because it only replaces train.max_steps=auto.
    """
    resolved = run.resolved()
    recorded, requested = (learned_settings(settings, resolved) for settings in (run.settings(), config))
    asked = {f"train.{name}": getattr(config.train, name) for name in _RESOLVED}  # shown as the command gives them
    ignored = TEXT_LOCATION if run.facts().data_fingerprint else set()
    if config.train.max_steps != "auto":
        ignored = ignored | _EPOCHS
    keys = [key for key in {**recorded, **requested} if key not in ignored]
    return [
        one_line(f"{key}: {_shown(recorded.get(key))} -> {_shown(asked.get(key, requested.get(key)))}", 200)
        for key in keys
        if str(recorded.get(key)) != str(requested.get(key))
    ]


def begins_alike(run: Run, config: RunConfig) -> bool:
    """Tell whether the run and `config` name the same starting point, such as init_from, and the same place of the text.

    `differences` does not compare these names, because a run may be continued under others.
    """
    recorded, requested = (flat(without_home(dataclasses.asdict(settings))) for settings in (run.settings(), config))
    return all(recorded.get(key) == requested.get(key) for key in STARTING_POINTS | TEXT_LOCATION)


def refuse_differences(run: Run, config: RunConfig, given: Iterable[str] = ()) -> list[str]:
    """Raise UserError if `config` is for another command than the one that trained the run, or changes what the run learns.

    One change is accepted: if `train.extend` is set, `train.max_steps` may be larger. Returns a list with a description
    of this change, or an empty list if there is none. `given`: the keys of the command line, which the message names before
    other keys.
    """
    _refuse_another_command(run, config)
    changed = differences(run, config)
    extended = [difference for difference in changed if difference.startswith("train.max_steps: ")]
    recorded_steps = run.resolved().max_steps
    new_steps = recorded_steps if config.train.max_steps == "auto" else config.train.max_steps
    is_shorter = new_steps < recorded_steps
    if is_shorter and changed == extended:
        ends_earlier = " (train.stop_at= ends a run earlier)" if (run.facts().step or 0) < new_steps else ""
        raise UserError(
            f"train.max_steps={new_steps} is shorter than the {recorded_steps} steps of {run.folder}, and a run can only be "
            f"made longer: give train.max_steps={recorded_steps}{ends_earlier}, or another name="
        )
    refused = [difference for difference in changed if not (config.train.extend and difference in extended)]
    if len(refused) == 1 and refused[0].startswith("name: "):
        recorded = run.settings().name
        original = OUTPUTS / recorded
        remedy = f"continue {original} by name={recorded}" if original.exists() else f"rename it to {original} again"
        raise UserError(
            f"{run.folder} contains a run that was trained with name={recorded}, so the folder was renamed or copied: "
            f"{remedy}, or start a new run from its weights with init_from={run.folder} and another name="
        )
    if refused:
        advice = "give the same settings as before"
        if extended and not is_shorter and not config.train.extend:
            advice = (
                "give train.extend=true to train more steps"
                if changed == extended
                else f"{advice} (train.max_steps may be larger with train.extend=true)"
            )
        elif len(refused) == 1 and (key := refused[0].split(": ")[0]) in _EPOCHS:
            advice += (
                f", or replace {key}= by train.extend=true and train.max_steps= above {recorded_steps} to train longer"
            )
        refused = sorted(_without_consequences(refused), key=lambda change: _rank(change, given))
        remainder = f"; and {len(refused) - _SHOWN_DIFFERENCES} more" if len(refused) > _SHOWN_DIFFERENCES else ""
        shown = "; ".join(refused[:_SHOWN_DIFFERENCES])
        raise UserError(
            f"{run.folder} was trained with other settings ({shown}{remainder}): {advice}, or another name="
        )
    return extended


def _without_consequences(changes: list[str]) -> list[str]:
    """Leave out changes that follow from another change, and return the others. A change is a text `key: old -> new`.

    In some groups of settings, one key decides which other keys of the group are read (_DECIDING_KEYS), such as data.source in
    the group data. If this key has changed, all other changes of the group are left out.
    """
    decided = [key.split(".")[0] for key in _DECIDING_KEYS if any(change.startswith(f"{key}: ") for change in changes)]
    return [
        change
        for change in changes
        if change.split(".")[0] not in decided or change.startswith(tuple(f"{key}: " for key in _DECIDING_KEYS))
    ]


def _rank(change: str, given: Iterable[str]) -> int:
    """Return the place of a change `key: old -> new` in the message: first budget=, then the keys `given`, then the others."""
    key = change.split(": ")[0]
    return 0 if key == "budget" else 1 if any(f"{key}.".startswith(f"{each}.") for each in given) else 2


def _refuse_another_command(run: Run, config: RunConfig) -> None:
    """Raise UserError if the run is an imported model, or if `config` is for another command than the one that trained it."""
    if run.settings().data.source == "imported":
        raise UserError(
            f"{run.folder} is an imported model, which cannot be continued under its own name: give another name= and "
            f"init_from={run.folder} to train the model further"
        )
    recorded, requested = (
        recipe_of({key: value for key, value in vars(settings).items() if value is not None})
        for settings in (run.settings(), config)
    )
    if recorded != requested:
        raise UserError(
            one_line(f"{run.folder} is a run of {command(recorded)}, and this command is {command(requested)}: ")
            + f"give another name=, or continue the run by {command(recorded)}"
        )


def learned_settings(settings: RunConfig, resolved: Resolved) -> dict[str, Any]:
    """Return the settings that must not change when a run is continued, as a dict from dotted key to value.

    Settings that may change (see `is_changeable`) are left out. If train.max_steps, train.batch_tokens or the precision is
    `auto`, the dict contains the value in `resolved` instead.
    """
    return {key: value for key, value in _with_resolved(settings, resolved).items() if not _is_changeable(key)}


def deciding_settings(run: Run) -> dict[str, Any]:
    """Return the settings that decided what a run learned (see `decides_a_new_run`), as a dict from dotted key to value.

    A setting that is `auto` has the value that the run used. Raises UserError if the files of the run are damaged.
    """
    values = _with_resolved(run.settings(), run.resolved())
    return {key: value for key, value in values.items() if decides_a_new_run(key)}


def _with_resolved(settings: RunConfig, resolved: Resolved) -> dict[str, Any]:
    """Return all settings as a dict from dotted key to value, with the values that replaced `auto`."""
    values = flat(without_home(dataclasses.asdict(settings)))
    for name in _RESOLVED:
        if values[f"train.{name}"] == "auto":
            values[f"train.{name}"] = getattr(resolved, name)
    if values["precision.dtype"] == "auto" and resolved.precision is not None:
        values["precision.dtype"] = resolved.precision
    return values


def is_changeable(key: str) -> bool:
    """Tell whether a setting, or a group such as `device`, may differ between two commands that train the same run."""
    return _is_changeable(key) or f"{key}." in _CHANGEABLE_GROUPS


def decides_a_new_run(key: str) -> bool:
    """Tell whether a setting, or a group such as `optimizer`, has an influence on what a new run learns.

    For example, init_from has this influence, although it may be left out when the run is continued. device.threads has not.
    """
    return key in STARTING_POINTS or not is_changeable(key)


def _is_changeable(key: str) -> bool:
    if key in _CHANGEABLE_KEYS or key.startswith(_CHANGEABLE_GROUPS):
        return True
    return key.startswith("train.") and key.split(".", 1)[1] in _CHANGEABLE_TRAIN


def _shown(value: Any) -> Any:
    return "null" if value is None else value
