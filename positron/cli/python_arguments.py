"""Convert arguments of the Python functions, such as `lr=1e-3`, to words of a command line, such as `optimizer.lr=0.001`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from positron.cli.hydra_app import conf_folder
from positron.cli.other_tools import question, same_option, why_not_needed
from positron.cli.overrides import UNCHECKED_KEYS, groups_of, quoted
from positron.settings import Recipe, all_keys, is_text, keys_read_by, unknown_key
from positron.system.errors import UserError


def full_name(key: str, recipe: Recipe) -> str:
    """Return the full key of a setting: `lr` becomes `optimizer.lr`, and a key that is full already is returned unchanged.

    If only settings of other commands end in the word `key`, return the first of them. A later check refuses this setting with
    a message that names the command to which it belongs, and such a message helps more than "unknown key" would. Raises
    UserError if no setting ends in the word `key`, or if several settings of this command end in this word.
    """
    if key in keys_read_by(recipe) or key in groups_of(conf_folder()) or "." in key:
        return key

    def spelling(known: str) -> str:
        return _argument(known, recipe)

    match matches := _ending_in(key, recipe):
        case []:
            if other_keys := [known for known in all_keys() if known.rpartition(".")[2] == key]:
                return other_keys[0]
            if reason := why_not_needed(key, recipe):
                raise UserError(f"unknown key {key}: there is no setting for it, because {reason}: leave it out")
            other = same_option(key, recipe)
            if other is None:
                raise UserError(unknown_key(key, recipe, spelling))
            raise UserError(f"unknown key {key}: {question(other, None, spelling)}")
        case [only]:
            return only
        case _:
            options = ", ".join(map(spelling, matches))
            raise UserError(f"{key}= could mean {' or '.join(matches)}: give one of {options}")


def _ending_in(word: str, recipe: Recipe) -> list[str]:
    """Return the full keys that end in `word`, such as ["optimizer.lr"] for `lr`."""
    matches = [key for key in keys_read_by(recipe) if key.rpartition(".")[2] == word]
    # device.KEY is only the default of train.KEY
    return [key for key in matches if not key.startswith("device.") or f"train.{word}" not in matches]


def _argument(key: str, recipe: Recipe) -> str:
    """Return the text by which a Python call sets the setting `key`: `max_steps=...` for train.max_steps.

    If several settings of the command end in the same word, the text has the full key: `**{"optimizer.kind": ...}`.
    """
    word = key.rpartition(".")[2]
    return f"{word}=..." if word == key or _ending_in(word, recipe) == [key] else f'**{{"{key}": ...}}'


def as_word(key: str, value: Any) -> str:
    """Return the value of a setting as the command line writes it: None as `null`, a dict as `{key:value}`.

    A text gets quotation marks where Hydra would read something else, as for "1.10" in a list. Raises UserError, which names
    `key`, for a value that the command line cannot express.
    """
    if not isinstance(value, str | Path) or key.startswith(UNCHECKED_KEYS):
        return _inner_word(key, value)
    text = str(value)
    is_misread = text.startswith(("'", '"')) or text.strip().lower() == "null"
    return quoted(text) if is_misread and key in all_keys() and is_text(key) else text


def _inner_word(key: str, value: Any) -> str:
    """Return a value as `as_word` does, in the form in which it is an item of a list or dict."""
    if getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str() | Path():
            return str(value) if _is_plain(str(value)) else quoted(str(value))
        case Mapping():
            items = (f"{_dict_key(key, name)}:{_inner_word(key, inner)}" for name, inner in value.items())
            return "{" + ",".join(items) + "}"
        case Iterable():
            return "[" + ",".join(_inner_word(key, inner) for inner in value) + "]"
    if key.endswith(("_target_", "function", "reward", "optimizer")) and isinstance(value, type | FunctionType):
        name = f"{value.__module__}.{value.__qualname__}"
        example = "my_module.my_function" if "<" in name or name.startswith("__main__.") else name
        if key == "optimizer":
            raise UserError(
                f'{key}= takes the name of a choice, not a class: give optimizer="custom", _target_="{example}"'
            )
        raise UserError(f'{key}= takes the name of a function or class, such as "{example}", not the object itself')
    raise UserError(
        f"{key}= cannot hold an object of type {type(value).__name__}: give a Python str, int, float or bool, or a list or "
        "dict of these"
    )


def _dict_key(key: str, name: Any) -> str:
    """Return the key `name` of a dict. Raises UserError for a text that Hydra would not read as this text."""
    if isinstance(name, str) and not _is_plain(name):  # Hydra has no quotation marks for keys
        raise UserError(
            f"{key}= cannot hold a dict with the key {name!r}: give a key of letters, digits and _ that begins with a letter"
        )
    return str(name)


def _is_plain(text: str) -> bool:
    """Tell whether Hydra reads a text as itself without quotation marks."""
    is_word = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) is not None
    return is_word and text.lower() not in {"null", "true", "false", "inf", "nan"}
