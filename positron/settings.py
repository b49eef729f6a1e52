"""Convert nested dicts of settings, from `conf/` or from a run folder, to the dataclasses of `config.py`.

Names and types are checked only here; the message about a wrong name suggests the most similar one. Like `config.py`, this
module needs only the standard library. The library pydantic would save few lines and add 0.5 s to the start of every command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from positron.config import Asked, RunConfig
from positron.ranges import complaint_about
from positron.system.commands import command
from positron.system.errors import UserError

T = TypeVar("T")
MISSING = "???"  # OmegaConf's mark for a value that the user must give
BESIDE_VALUES = ("auto_size",)  # keys of `Asked` that a user sets like the keys of `RunConfig`
Recipe = Literal[
    "train", "distill", "sft", "prefer", "reinforce"
]  # the commands that start runs; each has a file in conf/
OWN_GROUPS: dict[Recipe, tuple[str, ...]] = {  # settings that only this command reads
    "train": (),
    "distill": ("distill",),
    "sft": ("sft",),
    "prefer": ("preference",),
    "reinforce": ("reinforce", "reward"),
}
SHORT_KEYS = {"teachers": "distill.teachers"}  # short names of keys, also as options: teachers=A,B or --teachers A,B
COMMANDS_FROM_TEXT: tuple[Recipe, ...] = ("train", "distill")  # the commands that train a new model on a text
BASE_GROUPS = ("model", "tokenizer")  # groups that a fine-tuned run takes from its base run
# groups whose keys are most often sought in other groups
MAIN_GROUPS = (*BASE_GROUPS, "data", "optimizer", "schedule", "train", "device")
BUDGET_KEYS = ("budget", "auto_size")
_TAKEN_KEYS: dict[Recipe, tuple[str, ...]] = {  # top-level keys that are taken from other runs or have no effect
    "train": (),
    "distill": ("tokenizer",),
    "sft": (*BASE_GROUPS, *BUDGET_KEYS, "ckpt_path"),
    "prefer": (*BASE_GROUPS, *BUDGET_KEYS, "ckpt_path"),
    "reinforce": (*BASE_GROUPS, "auto_size", "ckpt_path"),
}
NOT_READ_BY: dict[Recipe, tuple[str, ...]] = {  # top-level keys
    recipe: (
        *(group for other, groups in OWN_GROUPS.items() if other != recipe for group in groups),
        *_TAKEN_KEYS[recipe],
    )
    for recipe in OWN_GROUPS
}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Return the command that trains a run with these settings: train, distill, sft, prefer or reinforce."""
    return next((recipe for recipe, groups in OWN_GROUPS.items() if groups and groups[0] in values), "train")


class WrongSetting(UserError):
    """Report a setting whose key does not exist, or whose value has a wrong type. `key` is its full key."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Build dataclass `cls` from plain nested dicts, refusing unknown keys, missing keys and wrong types.

    `path` is the dotted key of `values` in the whole configuration. Raises UserError, which names the wrong key and a remedy.
    """
    if not isinstance(values, dict):
        raise WrongSetting(_not_a_group(path, values), path)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            if "[" in prefix:  # an entry of a list, whose keys `unknown_key` does not know
                raise UserError(f"unknown key {prefix}{key}: choose from {', '.join(fields)}")
            raise WrongSetting(unknown_key(f"{prefix}{key}"), f"{prefix}{key}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        is_entry = "[" in prefix  # of a list
        advice = f"add {missing[0]}:VALUE to the entry" if is_entry else f"give {prefix}{missing[0]}=VALUE"
        raise UserError(f"{prefix}{missing[0]} is missing: {advice}")
    return cls(**{key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Return `value` as the type `hint`, or raise UserError.

    An int is accepted as a float, but a string is not accepted as a number, a number not as a bool, and 2.0 not as an int.
    """
    options = _alternatives(hint)
    if value == MISSING:  # no chosen file gives the value
        raise UserError(f"{key} is missing: give {key}=VALUE, or add it to the file of your own that you chose")
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_dict(typing.cast(type, option), value, key)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(option)
            kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
            if len(kinds) == len(value):
                return tuple(_convert(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
        if typing.get_origin(option) is dict and isinstance(value, dict):
            return {str(name): inner for name, inner in value.items()}
        if option is float and type(value) in (int, float):
            try:
                return float(value)
            except OverflowError:
                raise UserError(f"{key}={value} is too large: give a smaller number") from None
        if isinstance(option, type) and type(value) is option:
            return value
        if typing.get_origin(option) is Literal and value in typing.get_args(option) and type(value) is str:
            return value
    if any(dataclasses.is_dataclass(option) for option in options):
        raise WrongSetting(_not_a_group(key, value), key)
    if int in options and type(value) is float and value.is_integer():
        raise WrongSetting(f"{key}={value} is not written as a whole number: give {key}={int(value)}", key)
    typed = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    raise WrongSetting(f"{key}={typed} is not a possible value: {_describe(options, value)}", key)


def _not_a_group(key: str, value: Any) -> str:
    """Return the message for a `value` that is not a group of settings; `key` is empty for the whole configuration."""
    if not key:
        return f"the configuration must be a dict of settings, not {value!r}"
    fault = f"{key}={value!r} is not a group of settings"
    if key.endswith("]"):  # an entry of a list such as reward.terms, whose braces bash would expand
        return f"{fault}: give {{NAME:VALUE,...}}, and put the whole list in single quotes for the shell"
    return f"{fault}: give {key}.NAME=VALUE, or in Python {{NAME: VALUE, ...}}"


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return list(typing.get_args(hint))
    return [hint]


def _describe(options: list[Any], value: Any) -> str:
    words: list[str] = []
    for option in options:
        if typing.get_origin(option) is Literal:
            choices = typing.get_args(option)
            words += choices
            similar = difflib.get_close_matches(str(value), choices, 1, 0.7)
            if similar:
                return f"did you mean {similar[0]}?" + (f" ({', '.join(choices)})" if choices[1:] else "")
        elif option is type(None):
            words.append("null")
        elif typing.get_origin(option) is tuple:
            inner = typing.get_args(option)
            words.append("a list" if inner[1:] == (...,) else f"a list of {len(inner)} values")
        elif typing.get_origin(option) is dict:
            words.append("names with values, {name: value}")
        else:
            words.append({int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[option])
    return "give " + " or ".join(words)


def defaults_of(cls: type) -> dict[str, Any]:
    """Return the defaults of a class in `config.py` as nested plain values, with MISSING for a key that has no default.

    An optional group of settings, such as `sft` in RunConfig, is None; for its defaults, call this function with its class.
    """
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        options = _alternatives(hints[entry.name])
        if len(options) == 1 and dataclasses.is_dataclass(options[0]):
            values[entry.name] = defaults_of(typing.cast(type, options[0]))
        elif entry.default is dataclasses.MISSING:
            values[entry.name] = MISSING
        else:
            values[entry.name] = list(entry.default) if isinstance(entry.default, tuple) else entry.default
    return values


def flat(values: dict[str, Any], prefix: str = "", depth: int = 8) -> dict[str, Any]:
    """Return nested settings as one dict from dotted keys, such as optimizer.lr, to values; `prefix` is put before each key.

    Apart from `prefix`, a key has at most `depth` dots; a dict that is nested deeper is kept as a value.
    """
    by_key: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and depth:
            by_key |= flat(value, f"{prefix}{key}.", depth - 1)
        else:
            by_key[f"{prefix}{key}"] = value
    return by_key


def all_keys() -> list[str]:
    """Return every key that a user can set: a single setting, such as `optimizer.lr`, or a group, such as `optimizer`."""
    return [*_keys_of(RunConfig), *BESIDE_VALUES]


def keys_read_by(recipe: Recipe) -> list[str]:
    """Return the keys that a command reads: settings, such as `optimizer.lr`, and groups, such as `optimizer`.

    `recipe` is the name of the command, such as "train".
    """
    return [key for key in all_keys() if key.split(".")[0] not in NOT_READ_BY[recipe]]


def _keys_of(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        inner = [option for option in _alternatives(hint) if dataclasses.is_dataclass(option)]
        keys.append(prefix + name)
        for option in inner:
            keys += _keys_of(typing.cast(type, option), f"{prefix}{name}.")
    return keys


def type_of(key: str, *, with_range: bool = False) -> Any:
    """Return the type hint of a key that users can set, such as `optimizer.lr`. Raises KeyError for an unknown key.

    `with_range`: keep the range of a number (see positron/ranges.py) in the type hint.
    """
    cls: Any = Asked if key in BESIDE_VALUES else RunConfig
    hint: Any = None
    for name in key.split("."):
        hint = typing.get_type_hints(cls, include_extras=with_range)[name]
        inner = [option for option in _alternatives(hint) if dataclasses.is_dataclass(option)]
        cls = inner[0] if inner else object
    return hint


def is_text(key: str) -> bool:
    """Tell whether the value of a key is free text: a name, a path, a prompt."""
    return set(_alternatives(type_of(key))) <= {str, type(None)}


def is_optional(key: str) -> bool:
    """Tell whether the value of a key may be null."""
    return type(None) in _alternatives(type_of(key))


def is_group(key: str) -> bool:
    """Tell whether a key names a group of settings, such as optimizer, and not a single setting."""
    return any(map(dataclasses.is_dataclass, _alternatives(type_of(key))))


def check_value(key: str, value: Any) -> None:
    """Raise UserError if `value` does not have the type of the setting `key`, or if a number is outside of its range."""
    converted = _convert(type_of(key), value, key)
    if complaint := complaint_about(type_of(key, with_range=True), converted):
        raise UserError(f"{key}={value} {complaint}")


def is_possible(key: str, text: str) -> bool:
    """Tell whether `text`, as a user types it, is a number, a truth value, null or a text that the setting `key` accepts."""
    value: Any = {"true": True, "false": False, "null": None}.get(text.lower(), text)
    for number in (float, int):
        with contextlib.suppress(ValueError):
            value = number(text)
    try:
        check_value(key, value)
    except UserError:
        return False
    return True


def is_list(key: str) -> bool:
    """Tell whether the value of a key is a list."""
    return any(typing.get_origin(option) is tuple for option in _alternatives(type_of(key)))


def is_list_of_texts(key: str) -> bool:
    """Tell whether the value of a key is a list of free texts, such as names of runs."""
    return bool(type_of(key) == tuple[str, ...])


def expected(key: str) -> str:
    """Return a phrase that tells the user which values a key accepts."""
    if is_group(key):
        return f"{key} is a group of settings: give its keys one by one, as {key}.NAME=VALUE"
    return _describe(_alternatives(type_of(key)), "")


def _similar_last_word(word: str, keys: Sequence[str], minimum: float) -> list[str]:
    """Return a list with the key whose last word is most similar to `word`, or [] if every similarity is below `minimum`.

    The last word of a key is the part after its last dot: `max_steps` in `train.max_steps`. Similarities are from 0 to 1.
    """
    last_words = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    return [last_words[similar] for similar in difflib.get_close_matches(word, last_words, 1, minimum)]


def unknown_key(key: str, recipe: Recipe = "train", spelling: Callable[[str], str] = str) -> str:
    """Return the error message about a key that the command does not know.

    The group of a key is the part before the last dot, and the last word is the part after this dot.
    If the group exists, the message suggests a key of a main group (such as model or train) that has the same last word.
    If there is none, it suggests a key of the same group with a similar last word, or else lists the keys of the group.
    If the group does not exist, the message suggests a similar key of any group, or else names the command that lists all keys.
    If `key` itself exists, the message says that this command cannot set the key.
    `recipe` is the command whose keys are listed. `spelling` converts the suggested key to the form that the user must type.
    """
    keys = [*all_keys(), "experiment"]
    group, _, last = key.rpartition(".")
    if key in keys:
        return f"{key}= cannot be set by this command: {command(recipe, '--cfg', 'job')} lists all keys"
    siblings = [k for k in keys if group and k.rpartition(".")[0] == group]
    if siblings:  # not compared as a whole: the group in common makes optimizer.wd similar to optimizer.lr
        same_word = [f"{main}.{last}" for main in MAIN_GROUPS]
        similar = [k for k in keys if k in same_word]
        similar = similar or _similar_last_word(last, siblings, 0.6)
        similar = similar or [k for k in siblings if len(last) > 2 and last in k.rpartition(".")[2]]
    else:
        similar = difflib.get_close_matches(key, [k for k in keys if k != group], 1, 0.75)
        similar = similar or _similar_last_word(last, keys, 0.6)
    if similar:
        return f"unknown key {key}: did you mean {spelling(similar[0])}?"
    if siblings:
        return f"unknown key {key}: choose from {', '.join(siblings)}"
    return f"unknown key {key}: {command(recipe, '--cfg', 'job')} lists all keys"
