"""Divide examples (conversations, pairs of answers or prompts) into those for training and those for validation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from positron.config import DataConfig
from positron.data.sources import is_balanced, is_validation
from positron.system.console import one_line
from positron.system.errors import UserError

logger = logging.getLogger(__name__)


class Example(Protocol):
    """Hold an example that belongs to training or to validation."""

    @property
    def is_val(self) -> bool:
        """Tell whether the example belongs to validation."""
        ...


ExampleT = TypeVar("ExampleT", bound=Example)
ContentT = TypeVar("ContentT")
RowT = TypeVar("RowT")
ItemT = TypeVar("ItemT")


def divide(
    contents: Sequence[ContentT],
    texts_of: Callable[[ContentT], tuple[str, str]],
    build: Callable[[ContentT, bool], ExampleT],
    config: DataConfig,
    noun: str,
    began_with: Callable[[list[ExampleT]], bool],
) -> list[ExampleT]:
    """Decide for each example whether it is used for training or for validation, and return the examples.

    `texts_of` returns two texts of a content: the first question, and the whole content. `build` makes an example of a content
    and of the decision `is_val`. A hash of the first question decides, so that no question is in both. If many examples begin
    with the same question, the share of validation may be far from `config.val_fraction` (see `is_balanced`). A hash of the
    whole content then decides, if this gives a better share. `began_with` tells whether the run began with the given examples:
    earlier versions of Positron always used the first question, and a run keeps its division when it continues. `noun` is the
    name of an example in messages, in the singular.
    """
    questions, wholes = zip(*map(texts_of, contents), strict=True)
    by_question, by_whole = (
        [
            build(content, is_validation(text, config.seed, config.val_fraction))
            for content, text in zip(contents, texts, strict=True)
        ]
        for texts in (questions, wholes)
    )
    n_val, n_val_instead = (sum(example.is_val for example in examples) for examples in (by_question, by_whole))
    total = len(contents)
    ((question, count),) = Counter(questions).most_common(1)
    is_needed = count > 1 and 0 < n_val < total and not is_balanced([total - n_val, n_val], config.val_fraction)
    is_better = is_balanced([total - n_val_instead, n_val_instead], config.val_fraction)
    if not is_needed or not is_better or began_with(by_question):
        return by_question
    logger.warning(
        f"{count:,} of {total:,} {noun}s have the same first question ({one_line(question, 40)!r}), so a hash of the whole "
        f"{noun} decides what is used for validation: {n_val_instead:,} {noun}s instead of {n_val:,}; a question may be in "
        "training and validation"
    )
    return by_whole


def usable_splits(
    examples: Sequence[ExampleT],
    convert: Callable[[ExampleT], RowT | None],
    noun: str,
    *,
    unusable: str,
    remedy: str,
    instead: str,
) -> tuple[list[tuple[ExampleT, RowT]], list[tuple[ExampleT, RowT]]]:
    """Divide examples by their attribute `is_val`, and return two lists: for training and for validation.

    An item of the lists is a pair: an example, and the row to which `convert` converted it. If `convert` returned None, the
    example is left out, and the number of these examples is logged with the reason `unusable`, such as "have no answer". If one
    of the two lists would be empty, both contain all usable examples. The text `instead` is then logged; it explains what the
    validation measures in this case. `noun` is the name of an example in messages, in the singular. Raises UserError if no
    example can be used; the message ends with the advice `remedy`.
    """
    train: list[tuple[ExampleT, RowT]] = []
    val: list[tuple[ExampleT, RowT]] = []
    for example in examples:
        row = convert(example)
        if row is not None:
            (val if example.is_val else train).append((example, row))
    total, usable = len(examples), len(train) + len(val)
    if not usable:
        raise UserError(f"all {total:,} {noun}s {unusable}: {remedy}")
    if left_out := total - usable:
        level = logging.WARNING if left_out > 0.05 * total else logging.INFO
        logger.log(level, f"{left_out:,} of {total:,} {noun}s {unusable}")
    if not train or not val:
        empty_split, other_split, reason = (
            ("validation", "training", "0") if train else ("training", "validation", "large")
        )
        logger.info(
            f"no {noun} is left for {empty_split} (data.val_fraction is {reason}, or there are too few different questions), "
            f"so the {noun}s for {other_split} are used for training and validation: {instead}"
        )
        train = val = train or val
    return train, val


def first_up_to(items: Sequence[ItemT], length: Callable[[ItemT], int], limit: int) -> list[ItemT]:
    """Return items from the beginning until their lengths add up to at least `limit`; return all if the total is smaller.

    If `limit` is 0, the first item is returned.
    """
    first_items: list[ItemT] = []
    total = 0
    for item in items:
        if first_items and total >= limit:
            break
        first_items.append(item)
        total += length(item)
    return first_items
