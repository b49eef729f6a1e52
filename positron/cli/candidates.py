"""Read the file of candidates of `positron research`, and check all recipes before the first run.

A recipe is a list of settings of `positron train`. A candidate is a named list of settings that changes the base recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from positron.cli.overrides import given_keys
from positron.cli.request import compose_request
from positron.config import RunConfig
from positron.evaluation.research import BASE, Plan, merged, repeated
from positron.evaluation.sequential import FIRST_ADOPTION
from positron.run.differences import decides_a_new_run
from positron.run.validated import DATA_OF_TRAINING
from positron.settings import flat
from positron.system.disk import is_number, read_text
from positron.system.errors import UserError, why_not_yaml
from positron.system.paths import fault_of_name

PAIRS, MIN_GAIN = 10, 0.001
_MAX_NAME = 60  # characters of a candidate's name
_KEYS = ("base", "candidates", "pairs", "min_gain")
_FIXED_STEPS = "positron research compares runs of a fixed number of steps"
_LENGTH = ", and set the length by train.max_steps="


def read_plan(path: Path, configure: Callable[[dict[str, Any]], RunConfig]) -> Plan:
    """Read the base recipe, the candidates and the settings of the tests from a YAML file, check them, and return them.

    A recipe is a list of settings of `positron train`. A candidate is a change of the base recipe that is tested by pairs of
    runs, one with the change and one without it. The settings of the tests are `pairs`, the largest number of pairs for a
    candidate, and `min_gain`, the smallest gain worth having in bits per byte. `configure` builds the configuration of a run
    from its settings as nested dicts. Raises UserError, which names the file and the wrong key, if a value is wrong or if a
    recipe cannot be trained.
    """
    content = _read_yaml(path)
    for key in content:
        if key not in _KEYS:
            similar = difflib.get_close_matches(str(key), _KEYS, 1, 0.6)
            hint = f"did you mean {similar[0]}?" if similar else f"the keys are {', '.join(_KEYS)}"
            raise UserError(f"{path}: unknown key {key}: {hint}")
    for key, example in (("base", "[model=debug, train.max_steps=300]"), ("candidates", "{high: [optimizer.lr=3e-3]}")):
        if key not in content:
            raise UserError(f'{path} has no key "{key}": add a line such as {key}: {example}')
    base = _settings(content["base"], f"{path}, base")
    candidates = content["candidates"]
    if not isinstance(candidates, dict) or not candidates:
        raise UserError(
            f"{path}: the key candidates needs at least one name with a list of settings, such as "
            "candidates: {high: [optimizer.lr=3e-3]}"
        )
    for name in candidates:
        if fault := _fault_of_candidate(name):
            raise UserError(f"{path}: {name!r} cannot be the name of a candidate, because it {fault}")
    by_folder = {name.casefold(): name for name in candidates}
    for name in candidates:
        if by_folder[name.casefold()] != name:
            raise UserError(
                f"{path}: the candidates {name!r} and {by_folder[name.casefold()]!r} differ only in case: rename one of them"
            )
    pairs, min_gain = content.get("pairs", PAIRS), content.get("min_gain", MIN_GAIN)
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < FIRST_ADOPTION:
        raise UserError(f"{path}: pairs must be a whole number of at least {FIRST_ADOPTION}, not {pairs!r}")
    if isinstance(min_gain, str) and re.fullmatch(r"\d+(\.\d*)?[eE]-?\d{1,2}", min_gain):
        raise UserError(
            f"{path}: YAML reads min_gain: {min_gain} as a text and not as a number: write min_gain: {Decimal(min_gain):f}"
        )
    if not is_number(min_gain) or min_gain <= 0:
        raise UserError(
            f"{path}: min_gain must be a number above 0, in bits per byte, such as {MIN_GAIN}, not {min_gain!r}"
        )
    named = {name: _settings(words, f"{path}, candidate {name!r}") for name, words in candidates.items()}
    config = _configured(f"{path}, base", base, configure)
    for name, overrides in named.items():
        place = f"{path}, candidate {name!r}"
        changed = _configured(place, merged(base, overrides), configure)
        if changed == config:
            raise UserError(f"{place}: base has these settings already: remove the candidate, or give other values")
        if _learned(changed) == _learned(config):
            raise UserError(
                f"{place}: {' '.join(overrides)} does not change what a run learns, so its runs would be the same as those of "
                "base: remove the candidate"
            )
        _refuse_other_judgement(place, config, changed, overrides)
    return Plan(base, named, pairs, float(min_gain), config.seed)


def _learned(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what a run learns, as a dict from dotted key to value."""
    return {key: value for key, value in flat(dataclasses.asdict(config)).items() if decides_a_new_run(key)}


def _fault_of_candidate(name: Any) -> str | None:
    """Return None if a candidate can have this name, else what is wrong, such as "is empty: give the candidate a name"."""
    if not isinstance(name, str):
        kind = type(name).__name__
        remark = " (YAML reads yes, no, on and off as True and False)" if isinstance(name, bool) else ""
        return f"is not a text but a YAML value of type {kind}{remark}: write the name in quotation marks"
    if not name:
        return "is empty: give the candidate a name"
    if len(name) > _MAX_NAME:
        return f"has {len(name)} characters, more than {_MAX_NAME}: give a shorter name"
    fault = "is the name of the base recipe" if name.casefold() == BASE else fault_of_name(name)
    return fault and f"{fault}: rename the candidate"


def _read_yaml(path: Path) -> dict[Any, Any]:
    if not path.exists():
        raise UserError(f"cannot read {path}: there is no such file; check the spelling of the path")
    try:
        text = read_text(path)
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f", line {mark.line + 1}," if mark else ""
        raise UserError(f"{path}{place} {why_not_yaml(error)}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must contain the keys base and candidates, each on a line of its own, such as "
            "base: [model=debug, train.max_steps=300] and candidates: {high: [optimizer.lr=3e-3]}"
        )
    return content


def _refuse_repeated_keys(node: Any, path: Path) -> None:
    """Raise UserError if a YAML mapping has a key twice, because PyYAML would silently take the second value.

    `node` is the mapping as a PyYAML node; the mappings among its values are checked, too. `path` is the YAML file, which the
    message names. Also raises UserError for a key that is a list or a mapping.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    known = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):  # which Python cannot use as a key
            raise UserError(
                f"{path}, line {line}: a key must be a name, not a list or a mapping: write single braces, not double "
                "ones: {NAME: [...]}"
            )
        if key.value in known:
            raise UserError(f"{path}, line {line}: the key {key.value} is given twice: rename or remove one")
        known.add(key.value)
        _refuse_repeated_keys(value, path)


def _settings(words: Any, place: str) -> list[str]:
    """Return `words` if it is a list of settings, such as ["model=debug", "train.max_steps=300"].

    Raises UserError, whose message begins with `place`, if `words` is empty or not a list of texts, if a key occurs twice, or
    if name= is given.
    """
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{place}: give a list of at least one setting, such as [model=debug, train.max_steps=300]")
    if repeated_key := repeated(words):
        raise UserError(f"{place}: {repeated_key}= is given twice: leave one out")
    if len(merged(words, ["name="])) == len(words):  # because it replaced another one
        raise UserError(f"{place}: leave name= out, because positron research names the runs")
    return words


def _configured(place: str, words: list[str], configure: Callable[[dict[str, Any]], RunConfig]) -> RunConfig:
    """Return the configuration of a run with the settings `words`.

    Raises UserError, whose message begins with `place`, if a setting is wrong or not allowed in `positron research`.
    """
    try:
        request = compose_request("train", [*words, "name=research"])
        if request.asked.auto_size or request.values["budget"] is not None:
            # a budget chooses the steps and the amount of validation text of each run anew, by the speed that it measures
            budget = "model=auto" if request.asked.auto_size else "budget="
            raise UserError(f"{_FIXED_STEPS}: leave {budget} out{_LENGTH}")
        config = request.configured(configure)
        request.refuse_unread()
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    for key in ("max_time", "stop_at"):
        if getattr(config.train, key) is not None:
            raise UserError(f"{place}: {_FIXED_STEPS}: leave train.{key}= out{_LENGTH}")
    for key in ("devices", "num_nodes"):
        if getattr(config.device, key) > 1:
            raise UserError(f"{place}: positron research trains each run on one device: leave device.{key}= out")
    return config


def _refuse_other_judgement(place: str, base: RunConfig, config: RunConfig, overrides: list[str]) -> None:
    """Raise UserError if a candidate would get another seed or another validation text than the base recipe.

    `base` is the configuration of a run with the base recipe, and `config` is that of a run with the candidate. `overrides` are
    the settings that the candidate changes. The message begins with `place` and names the setting that causes the difference.
    """
    changed = ["seed"] if config.seed != base.seed else []
    for group in ("data", "tokenizer"):
        values, known = (dataclasses.asdict(getattr(side, group)) for side in (config, base))
        changed += [f"{group}.{key}" for key in values if values[key] != known.get(key) and key not in DATA_OF_TRAINING]
    if config.train.val_tokens != base.train.val_tokens:
        changed.append("train.val_tokens")
    if changed:
        key, given = changed[0], given_keys(overrides)
        setter = next((name for name in (key, key.split(".")[0], "experiment") if name in given), key)
        change = (
            f"{key}= differs from its value in base" if setter == key else f"{setter}={given[setter]} changes {key}"
        )
        remedy = "remove this candidate" if len(overrides) == 1 else f"leave {setter}= out of the candidate"
        raise UserError(
            f"{place}: {change}, but a candidate can be compared with base only with the same seed and the same validation "
            f"text: {remedy}, or set {setter}= in base, for all runs"
        )
