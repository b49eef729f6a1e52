"""Decide which runs were validated on the same text, so that their validation losses can be compared.

A run is validated on the beginning of the validation part of its text. How long this beginning is depends on train.val_tokens,
which budget= and model=auto choose, and on the tokenizer. A run records the length in bytes at its first validation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from positron.run.facts import Facts
from positron.run.measure import BITS_PER_BYTE, Measure

# settings of the data that change training only; all others could change the validation text
DATA_OF_TRAINING = ("packing", "document_mask", "window_tokens")
SAME_LENGTH = 1.01  # ratio of two lengths up to which they count as the same, because tokenizers end at different bytes


@dataclass(frozen=True)
class ValidationText:
    """Hold on which text a run is validated, and on how much of it."""

    text: str  # identifies the text and its split into training and validation text
    n_bytes: int | None  # the recorded length; None before the first validation, and in runs of older versions
    limit: str  # identifies the settings that decide the length


def validation_text(facts: Facts, config: dict[str, Any], measure: Measure = BITS_PER_BYTE) -> ValidationText:
    """Return the text on which a run is validated with `measure`.

    `facts` is the content of the run's run.json. `config` holds its settings as nested dicts; groups and keys that are missing
    or damaged count as unknown. The accuracy of `prefer` and the reward of `reinforce` are measured on pairs and prompts. Only
    the bits per byte of these runs are measured on the pretraining text, which the base run decides. Two runs of `reinforce`
    with another number of prompts answer different prompts.
    """
    groups = (config.get(name) for name in ("data", "train", "reinforce"))
    data, train, reinforce = (group if isinstance(group, dict) else {} for group in groups)
    text = [facts.data_fingerprint or data, data.get("seed"), data.get("val_fraction")]
    if measure != BITS_PER_BYTE:
        text.append(reinforce.get("val_prompts"))
        return ValidationText(_identity(text), None, "")
    text.append(facts.validated_on)
    limit = [train.get("val_tokens"), config.get("tokenizer")]
    return ValidationText(_identity(text), facts.val_bytes, _identity(limit))


def _identity(values: list[Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def comparable(texts: Sequence[ValidationText]) -> list[ValidationText]:
    """Return one of `texts` for each of them: the same one for runs whose validation losses can be compared.

    The losses can be compared if the text is the same and if its recorded lengths differ by at most 1 % (SAME_LENGTH). A text
    without a recorded length counts as being as long as a text with the same settings (`ValidationText.limit`).
    """
    known = sorted((each for each in texts if each.n_bytes is not None), key=lambda each: (each.text, _length(each)))
    representatives: dict[ValidationText, ValidationText] = {}
    by_settings: dict[ValidationText, ValidationText] = {}
    shortest: ValidationText | None = None
    for each in known:
        if shortest is None or each.text != shortest.text or _length(each) > SAME_LENGTH * _length(shortest):
            shortest = each
        representatives[each] = shortest
        by_settings.setdefault(dataclasses.replace(each, n_bytes=None), shortest)
    return [by_settings.get(each, each) if each.n_bytes is None else representatives[each] for each in texts]


def _length(text: ValidationText) -> int:
    return text.n_bytes or 0


def are_comparable(a: ValidationText, b: ValidationText) -> bool:
    """Tell whether the validation losses of two runs, measured on `a` and `b`, can be compared (see `comparable`)."""
    first, second = comparable([a, b])
    return first == second
