"""Name the validation metric that says how well a run learned its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from positron.run.folder import PREFERENCE, REINFORCE


@dataclass(frozen=True)
class Measure:
    """Describe a metric of metrics.jsonl by which the runs of a sweep are ranked."""

    key: str  # in metrics.jsonl
    title: str  # of a column, or of an axis of a plot
    is_higher_better: bool = False

    def score(self, value: float) -> float:
        """Return the score of a value of this metric: the value, or its negative if a higher value is better.

        A lower score is better. The score of a score is the value again.
        """
        return -value if self.is_higher_better else value

    def curve(self, rows: list[dict[str, Any]], every: int = 1) -> dict[int, float]:
        """Return a dict from step to score for the validations at multiples of `every` steps.

        `rows` are the rows of metrics.jsonl. A run is also validated at the step at which it is stopped. With
        `every=train.val_every`, this validation is left out, unless its step is a multiple of `every`. So a run that was
        stopped and continued has the same curve as a run that was never stopped.
        """
        validated = [row for row in rows if row.get(self.key) is not None and row["step"] % every == 0]
        return {row["step"]: self.score(row[self.key]) for row in validated}


BITS_PER_BYTE = Measure("val/bpb", "val bits per byte")
# These runs learn from rewards or preferences. The loss on the pretraining text, which they measure too, only says how much
# they have forgotten, and is lowest for the run that has learned nothing.
_OF_KIND = {
    PREFERENCE: Measure("preference/accuracy", "val accuracy", is_higher_better=True),
    REINFORCE: Measure("val/reward", "val reward", is_higher_better=True),
}


def measure_of(kind: str | None) -> Measure:
    """Return the measure of the runs of a kind, such as `reinforce`; None is the kind of the runs of older versions."""
    return _OF_KIND.get(kind or "", BITS_PER_BYTE)
