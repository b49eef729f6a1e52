"""Read and write `run.json` and `config.json` of a run folder.

Both files are written with a checksum, and with `~` in place of the user's home folder. They are checked when they are read,
because a run folder may come from a stranger or from a damaged disk. If a value has a wrong type, or a setting is missing in
config.json, UserError names the file and the key. If only the checksum is wrong, the caller decides what to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from positron.config import DataConfig, ModelConfig, TokenizerConfig
from positron.settings import OWN_GROUPS, from_dict
from positron.system.console import json_line, one_line
from positron.system.disk import is_number, read_json, write_json
from positron.system.errors import UserError, without_advice
from positron.system.paths import without_home

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"
_PATHS = (("data", "path"), ("data", "dir"), ("init_from",), ("ckpt_path",))  # keys of config.json that are paths
# Defaults before they were changed in config.py. A key that is missing in an older config.json has this value.
_FORMER_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"packing": "windows"},
    "optimizer": {"momentum": 0.95},
    "schedule": {"final_ratio": 0.1},
    "train": {"sample_tokens": 160},
    "sft": {"replay_ratio": 0.0},
    "sft.lora": {"markers": False},
}
_FORMER_KEYS = ("given", "auto_size")  # recorded by older versions; ignored now
_warned: set[Path] = set()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18


def _is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


class _Type(NamedTuple):
    """Describe which values a JSON field may have: `holds` tests a value, and `words` describe such values in messages."""

    holds: Callable[[Any], bool]
    words: str


_COUNT = _Type(_is_count, "a whole number from 0 to 1e18")
_NUMBER = _Type(_is_number_or_null, "a number")
_TEXT = _Type(_is_text_or_null, "a text")
_GROUP = _Type(lambda value: isinstance(value, dict), "an object")


def _fact(kind: _Type, key: str | None = None) -> Any:
    """Declare a field of a dataclass, with None as the field's default value.

    `kind` describes the values that the field may have. `key` is the key of the field in run.json (None: the field's name).
    """
    return dataclasses.field(default=None, metadata={"type": kind, "key": key})


@dataclass(frozen=True)
class Resolved:
    """Hold the values that training used, since its latest start, for the settings that can be `auto`.

    `accelerator`, `precision` and `threads` are None in runs of older versions.
    """

    batch_tokens: int = dataclasses.field(metadata={"type": _COUNT})
    micro_batch_size: int = dataclasses.field(metadata={"type": _COUNT})
    max_steps: int = dataclasses.field(metadata={"type": _COUNT})
    accelerator: str | None = _fact(_TEXT)
    precision: str | None = _fact(_TEXT)
    threads: int | None = _fact(_COUNT)


@dataclass(frozen=True)
class Facts:
    """Hold the contents of `run.json`; a field whose value is not known, or not known yet, is None."""

    name: str | None = _fact(_TEXT)
    status: str | None = _fact(_TEXT)  # running, finished, stopped, pruned, diverged or failed
    kind: str | None = _fact(_TEXT)  # name of the objective; None in runs of older versions
    base: str | None = _fact(_TEXT)  # the folder of the run whose weights this run started from
    error: str | None = _fact(_TEXT)  # why the run ended before it was finished
    updated: str | None = _fact(_TEXT)  # when the file was written
    forked_from: str | None = _fact(_TEXT)  # the checkpoint of another run that this run started from
    data_fingerprint: str | None = _fact(_TEXT)  # hash of the training data
    # the values that training used for the settings that can be `auto`
    resolved: Resolved | None = dataclasses.field(default=None, metadata={"type": _GROUP, "key": None})
    step: int | None = _fact(
        _COUNT
    )  # number of optimizer steps when training last started, saved a checkpoint or ended
    tokens: int | None = _fact(_COUNT)  # number of training tokens, not counting a base run
    time_s: float | None = _fact(_NUMBER)  # seconds of training, over all starts of the run
    val_bpb: float | None = _fact(_NUMBER, "val/bpb")  # bits per byte of the last validation
    val_loss: float | None = _fact(_NUMBER, "val/loss")  # nats per token of the last validation
    # step of the validation with the lowest bits per byte; in preference tuning and reinforcement learning, of the last one
    best_step: int | None = _fact(_COUNT, "best/step")
    best_bpb: float | None = _fact(_NUMBER, "best/bpb")  # bits per byte of the validation at best_step
    val_bytes: int | None = _fact(_COUNT, "val/bytes")  # length of the text on which the run is validated
    floor_bpb: float | None = _fact(_NUMBER)  # the entropy of the text in bits per byte, if it is known
    base_tokens: int | None = _fact(_COUNT, "base/tokens")  # training tokens of the base run and of its base runs
    # bits per byte on the pretraining text, before this run (of the base run) and after it (of this run)
    base_bpb_before: float | None = _fact(_NUMBER, "base/bpb_before")
    base_bpb_after: float | None = _fact(_NUMBER, "base/bpb_after")
    teachers: str | None = _fact(_TEXT)  # SHA-256 of the weights of each teacher of a distillation, separated by blanks
    reference: str | None = _fact(_TEXT)  # SHA-256 of the weights of the base run with which this run began
    replayed: str | None = _fact(_TEXT)  # identifies the pretraining text in the batches of a fine-tuning
    imported: str | None = _fact(_TEXT)  # the path or repository from which the model was imported
    # size and modification time of the files from which the model was imported (`files_of` in interop/names.py)
    imported_files: dict[str, Any] | None = dataclasses.field(default=None, metadata={"type": _GROUP, "key": None})
    # in preference tuning and reinforcement learning: hash of the pretraining text on which the run is validated, or "answers"
    validated_on: str | None = _fact(_TEXT)


_KEYS = {field.name: field.metadata["key"] or field.name for field in dataclasses.fields(Facts)}


def write_record(path: Path, record: dict[str, Any], *, mask_home: bool = True) -> None:
    """Write a JSON object with a checksum. With `mask_home`, the user's home folder in its values is replaced by `~`."""
    record = {key: value for key, value in record.items() if key != CHECKSUM}
    record = without_home(record) if mask_home else record
    write_json(path, {**record, CHECKSUM: _checksum(record)})


def read_record(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the JSON object in a file, without its checksum, and whether the checksum is correct.

    A missing checksum counts as correct: older versions wrote none. Raises UserError if the file is not a JSON object.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(
            f"{path} is damaged or was edited: it contains {_shown(record)} instead of an object; restore it from a copy"
        )
    checksum = record.pop(CHECKSUM, None)
    try:
        return record, checksum is None or checksum == _checksum(record)
    except (ValueError, RecursionError):  # text that is not Unicode
        return record, False


def read_facts(path: Path) -> tuple[Facts, bool]:
    """Return the facts in `run.json`, and whether its checksum is correct. Raises UserError for a value of the wrong type."""
    record, is_whole = read_record(path)
    return _facts_in(record, path), is_whole


def update_facts(path: Path, **changes: Any) -> None:
    """Change some values in the file `path`, the run.json of a run, and keep all other values.

    The keywords are fields of `Facts`. If the file does not exist, it is created. If its checksum is wrong, a warning is
    logged, and the values are changed all the same. Raises TypeError for a name that is not a field, and UserError if the file
    is not a JSON object or contains a value of a wrong type.
    """
    dataclasses.replace(Facts(), **changes)
    record: dict[str, Any] = {}
    if path.exists():
        record, is_whole = read_record(path)
        _facts_in(record, path)
        if not is_whole:
            warn_of_damage(path)
    for name, value in changes.items():
        record[_KEYS[name]] = dataclasses.asdict(value) if isinstance(value, Resolved) else value
    write_record(path, {**record, "updated": time.strftime("%Y-%m-%d %H:%M:%S")})


def _facts_in(record: dict[str, Any], path: Path) -> Facts:
    for field in dataclasses.fields(Facts):
        _check(record, _KEYS[field.name], field.metadata["type"], path)
    facts = {name: record[key] for name, key in _KEYS.items() if key in record}
    return Facts(**{**facts, "resolved": _resolved_in(record.get("resolved"), path)})


def _resolved_in(group: dict[str, Any] | None, path: Path) -> Resolved | None:
    """Return the values that replaced `auto` in the settings of a run.

    `group` is the object that run.json has under the key `resolved`, or None if it has no such key. Returns None if `group` is
    None or lacks batch_tokens, micro_batch_size or max_steps. Raises UserError, which names the file `path`, for a value of a
    wrong type.
    """
    known = group or {}
    for field in dataclasses.fields(Resolved):
        _check(known, field.name, field.metadata["type"], path, "resolved.")
    needed = [field.name for field in dataclasses.fields(Resolved) if field.default is dataclasses.MISSING]
    if any(name not in known for name in needed):
        return None
    return Resolved(**{field.name: known[field.name] for field in dataclasses.fields(Resolved) if field.name in known})


def read_config(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the settings in `config.json` with `~` expanded, and whether its checksum is correct.

    If the file lacks a key whose default was changed in a later version, the key gets its former default. Raises UserError if a
    setting of the model, the tokenizer or the data is missing or has a wrong type, or if another group of settings is not an
    object.
    """
    config, is_whole = read_record(path)
    config = {key: value for key, value in config.items() if key not in _FORMER_KEYS}
    groups: dict[str, type] = {"model": ModelConfig, "tokenizer": TokenizerConfig, "data": DataConfig}
    for name, kind in groups.items():
        if name not in config:
            raise UserError(
                f"{path} is damaged or was edited: the settings of the {name}, which every run has, are missing; "
                "restore it from a copy"
            )
        if not isinstance(config[name], dict):
            raise UserError(
                f"{path} is damaged or was edited: {name} is {_shown(config[name])} instead of a group of settings; "
                "restore it from a copy"
            )
        known = {field.name for field in dataclasses.fields(kind)}  # a key of another version is ignored
        try:
            from_dict(kind, {key: value for key, value in config[name].items() if key in known}, name)
        except UserError as error:
            raise UserError(
                one_line(
                    f"{path} is damaged or was written by another version of Positron: {without_advice(error)}", 600
                )
                + "; restore it from a copy, or use the version that trained this run"
            ) from error
    for name in ("init_from", "ckpt_path"):
        _check(config, name, _TEXT, path)
    for name in (name for groups in OWN_GROUPS.values() for name in groups):
        if not isinstance(config.get(name), dict | None):
            raise UserError(
                f"{path} is damaged or was edited: {name} is {_shown(config[name])} instead of a group of settings; "
                "restore it from a copy"
            )
    for keys in _PATHS:
        holder = config[keys[0]] if len(keys) == 2 else config
        value = holder.get(keys[-1])
        if isinstance(value, str) and value.startswith("~"):
            holder[keys[-1]] = os.path.expanduser(value)
    for name, values in _FORMER_DEFAULTS.items():
        group: Any = config
        for part in name.split("."):
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict):
            for key, value in values.items():
                group.setdefault(key, value)
    return config, is_whole


def warn_of_damage(path: Path) -> None:
    """Log a warning that the checksum of the file `path` does not match its contents, but only once per file."""
    if path not in _warned:
        _warned.add(path)
        logger.warning(damage(path))


def damage(path: Path) -> str:
    """Return the message about a file that does not match its checksum."""
    return (
        f"{one_line(str(path))} does not match its checksum, so the file is damaged or was edited: restore it from a copy, or, "
        f'to accept the file as it is, replace the value of "{CHECKSUM}" in it by null'
    )


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _check(values: dict[str, Any], name: str, kind: _Type, path: Path, prefix: str = "") -> None:
    if name in values and not kind.holds(values[name]):
        raise UserError(
            f"{path} is damaged or was edited: {prefix}{name} is {_shown(values[name])} instead of {kind.words}; "
            "restore it from a copy"
        )


def _shown(value: Any) -> str:
    """Describe a value, which may be huge, in a few words."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case int() if not -(10**20) < value < 10**20:
            return "a number with more than 20 digits"
        case _:
            return json_line(value, 60)
