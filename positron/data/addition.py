"""Make the built-in sums: every sum of two two-digit numbers, as texts to train on and as questions with their answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from positron.config import DataConfig
from positron.data.sources import Document, is_validation

FIRST, LAST = 10, 99  # the two-digit numbers


class Sum(NamedTuple):
    """Hold a question such as `12+34=`, its answer `46`, and whether it is for validation."""

    question: str
    answer: str
    is_val: bool


def sums(seed: int, val_fraction: float) -> Iterator[Sum]:
    """Yield the sums of all 8,100 pairs of two-digit numbers, in a random order that depends on the seed.

    Two sums of the same numbers, such as 12+34 and 34+12, are either both for training or both for validation.
    """
    numbers = range(FIRST, LAST + 1)
    pairs = [(a, b) for a in numbers for b in numbers]
    random.Random(f"addition {seed}").shuffle(pairs)
    for a, b in pairs:
        yield Sum(f"{a}+{b}=", str(a + b), is_validation(f"{min(a, b)}+{max(a, b)}", seed, val_fraction))


class AdditionSource:
    """Provide each sum as a document, such as `12+34=46`. A sum that is used for validation never occurs in training."""

    limit_bytes = None

    def __init__(self, config: DataConfig) -> None:
        self.seed, self.val_fraction = config.seed, config.val_fraction
        texts = [document.text for document in self.read(0)]
        self.total_bytes = sum(map(len, texts))
        facts = f"addition {self.seed} {self.val_fraction} {' '.join(texts)}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.earlier_fingerprint = self.fingerprint
        self.name = f"addition-{self.fingerprint[:8]}"

    def tasks(self, skip: int = 0) -> Iterator[int]:
        """Yield 0, the number of the only task; if `skip` is at least 1, yield nothing.

        A task is a part of a corpus that is read at once. This task contains all sums.
        """
        yield from range(skip, 1)

    def read(self, task: int) -> list[Document]:
        """Return all sums as documents. `task` is always 0, the number of the only task."""
        return [Document(each.question + each.answer, each.is_val) for each in sums(self.seed, self.val_fraction)]

    def summary(self) -> str:
        """Return an empty string: there is nothing to report."""
        return ""

    def release(self, tasks_done: int | None) -> None:
        """Do nothing: the sums are computed, so no downloaded file has to be deleted."""
