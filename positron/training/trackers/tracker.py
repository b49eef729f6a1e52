"""Define the protocol of trackers, which show a run in another program; a failing tracker cannot stop the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from positron.run.samples import Sample
from positron.system.errors import UserError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receive the metrics and samples of a run."""

    def log(self, row: dict[str, Any], step: int) -> None:
        """Record a row of metrics.jsonl."""

    def sample(self, sample: Sample) -> None:
        """Record a sample: a text that the model wrote during training, and its scores.

        The run folder already contains a picture of the model's attention at this step (`RunPaths.attention_picture`).
        """

    def finish(self, exit_code: int) -> None:
        """Complete the record of the run. `exit_code` is 0 unless the run failed or diverged."""


class GuardedTracker:
    """Pass all calls to a tracker, and disable it after its first error, with one warning. A UserError is not suppressed.

    `make` creates the tracker; an error in `make` disables it, too. `name` is the tracker's name in the warning.
    """

    def __init__(self, make: Callable[[], Tracker], name: str) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self.tracker = self._try(make)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning(f"{self.name} failed and is disabled for this run: {reason}")
            self.tracker = None
            return None

    def log(self, row: dict[str, Any], step: int) -> None:
        """Pass a row of metrics to the tracker. Do nothing if an earlier error has disabled the tracker."""
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.log(row, step))

    def sample(self, sample: Sample) -> None:
        """Pass a sample to the tracker, unless it is disabled."""
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.sample(sample))

    def finish(self, exit_code: int) -> None:
        """Complete the record of the run, unless the tracker is disabled."""
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.finish(exit_code))
