"""Name the smallest change of a model's options after which another program can compute the model."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

from positron.config import GPTConfig
from positron.system.errors import UserError

CHANGES: tuple[tuple[str, Any], ...] = (
    ("smear", False),
    ("qk_norm", False),
    ("bias", False),
    ("window", None),
    ("head_dim", None),
    ("position", "rope"),
    ("norm", "rmsnorm"),
    ("activation", "gelu"),
    ("activation", "swiglu"),
)
T = TypeVar("T")


class Unsupported(Exception):
    """Report that another program cannot compute a model. The message names the cause, such as "model.smear=true"."""


def chosen(choose: Callable[[GPTConfig], T], config: GPTConfig, lack: str) -> T:
    """Return `choose(config)`, or raise UserError if `choose` raises Unsupported.

    The message begins with `lack`, such as "llama.cpp has no architecture". The message also names the model's options that are
    not supported, and the smallest set of options to change (see `smallest_change`).
    """
    try:
        return choose(config)
    except Unsupported as error:
        change = " ".join(f"model.{name}={_shown(value)}" for name, value in smallest_change(choose, config))
        raise UserError(f"{lack} for {error}: train a run with {change}") from error


def smallest_change(choose: Callable[[GPTConfig], Any], config: GPTConfig) -> tuple[tuple[str, Any], ...]:
    """Return the smallest set of changes, each (option, value), after which `choose` accepts the configuration.

    `choose` refuses a configuration by raising Unsupported or UserError. It must have refused `config` itself. Only the changes
    in `CHANGES` are tried, a fixed list of option values that other programs support. Raises AssertionError if no set of them
    helps.
    """
    for count in range(1, len(CHANGES) + 1):
        for changes in itertools.combinations(CHANGES, count):
            try:
                choose(dataclasses.replace(config, **dict(changes)))
            except (Unsupported, UserError):  # UserError: the options contradict each other
                continue
            return changes
    raise AssertionError(f"no combination of {CHANGES} helps {config}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
