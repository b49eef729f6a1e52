"""run.json and config.json of a run folder: written with a checksum and without the user's home, checked when read.

The folder may come from a stranger or from a damaged disk: whatever is wrong is a UserError with the file and the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from positron.config import DataConfig, ModelConfig, TokenizerConfig
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.disk import is_number, read_json, write_json
from positron.system.errors import UserError
from positron.system.paths import without_home

CHECKSUM = "checksum"
_COUNTS = ("step", "tokens", "best/step")
_NUMBERS = ("time_s", "val/bpb", "val/loss", "best/bpb", "floor_bpb", "base/bpb_before", "base/bpb_after")
_TEXTS = ("name", "status", "error", "updated", "forked_from", "data_fingerprint")
_RESOLVED_COUNTS = ("batch_tokens", "micro_batch_size", "max_steps", "threads")
_RESOLVED_TEXTS = ("accelerator", "precision")
_PATHS = (("data", "path"), ("data", "dir"), ("init_from",), ("ckpt_path",))  # of config.json
_warned: set[Path] = set()


def write_record(path: Path, record: dict[str, Any], *, mask_home: bool = True) -> None:
    """Write a JSON object with its checksum; paths below the user's home begin with `~`, so that it can be shared."""
    record = {key: value for key, value in record.items() if key != CHECKSUM}
    record = without_home(record) if mask_home else record
    write_json(path, {**record, CHECKSUM: _checksum(record)})


def read_record(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the JSON object without its checksum, and whether the checksum is right or absent (an older version)."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it holds {_shown(record)} instead of an object")
    checksum = record.pop(CHECKSUM, None)
    try:
        return record, checksum is None or checksum == _checksum(record)
    except (ValueError, RecursionError):  # text that is no Unicode
        return record, False


def read_facts(path: Path) -> tuple[dict[str, Any], bool]:
    """Return run.json and whether its checksum is right. Raises UserError for a value of another type than it has."""
    facts, is_whole = read_record(path)
    for names, test, kind in (
        (_COUNTS, _is_count, "a whole number"),
        (_NUMBERS, _is_number_or_null, "a number"),
        (_TEXTS, _is_text_or_null, "a text"),
    ):
        _check(facts, names, test, kind, path)
    if "resolved" in facts:
        if not isinstance(facts["resolved"], dict):
            raise UserError(f"{path} is damaged: resolved is {_shown(facts['resolved'])} instead of an object")
        _check(facts["resolved"], _RESOLVED_COUNTS, _is_count, "a whole number", path, "resolved.")
        _check(facts["resolved"], _RESOLVED_TEXTS, _is_text_or_null, "a text", path, "resolved.")
    return facts, is_whole


def resolved_of(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what `auto` was resolved to. Raises UserError if run.json does not have all of it."""
    resolved = facts.get("resolved")
    missing = [name for name in _RESOLVED_COUNTS[:3] if not resolved or name not in resolved]
    if resolved is None or missing:
        raise UserError(
            f"{path} is damaged: it has no resolved.{missing[0]}; restore it from a copy, or train under another name="
        )
    return dict(resolved)


def read_config(path: Path) -> tuple[dict[str, Any], bool]:
    """Return config.json with paths of this machine, and whether its checksum is right. UserError for a wrong one."""
    config, is_whole = read_record(path)
    groups: dict[str, type] = {"model": ModelConfig, "tokenizer": TokenizerConfig, "data": DataConfig}
    for name, kind in groups.items():
        if name not in config:
            raise UserError(f"{path} is not the configuration of a run: it has no {name}")
        if not isinstance(config[name], dict):
            raise UserError(f"{path} is damaged: {name} is {_shown(config[name])} instead of a group of settings")
        known = {field.name for field in dataclasses.fields(kind)}  # a key of another version is ignored
        try:
            from_dict(kind, {key: value for key, value in config[name].items() if key in known}, name)
        except UserError as error:
            raise UserError(one_line(f"{path}: {error}", 600)) from error
    for name in ("init_from", "ckpt_path"):
        _check(config, (name,), _is_text_or_null, "a text", path)
    if not isinstance(config.get("sft"), dict | None):
        raise UserError(f"{path} is damaged: sft is {_shown(config['sft'])} instead of a group of settings")
    for keys in _PATHS:
        holder = config[keys[0]] if len(keys) == 2 else config
        value = holder.get(keys[-1])
        if isinstance(value, str) and value.startswith("~"):
            holder[keys[-1]] = os.path.expanduser(value)
    return config, is_whole


def warn_of_damage(path: Path) -> None:
    """Say once per file that it is not what Positron wrote."""
    if path not in _warned:
        _warned.add(path)
        print(f"WARNING: {damage(path)}", file=sys.stderr)


def damage(path: Path) -> str:
    return (
        f"{one_line(str(path))} does not match its checksum: it is damaged, or was edited (to accept it as it is, "
        f'delete its line "{CHECKSUM}")'
    )


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _check(values: dict[str, Any], names: tuple[str, ...], test: Any, kind: str, path: Path, prefix: str = "") -> None:
    for name in names:
        if name in values and not test(values[name]):
            raise UserError(f"{path} is damaged: {prefix}{name} is {_shown(values[name])} instead of {kind}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18


def _is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _shown(value: Any) -> str:
    """A short form of a value that may be huge."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case int() if not -(10**20) < value < 10**20:
            return "a number with more than 20 digits"
        case _:
            return one_line(repr(value), 60)
