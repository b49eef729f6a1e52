"""What tells a run's progress to another program. No tracker can stop a run: its faults become one warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from positron.run.samples import Sample
from positron.system.errors import UserError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a run tells each of them."""

    def log(self, row: dict[str, Any], step: int) -> None: ...

    def sample(self, sample: Sample) -> None:
        """Its picture of the attention is a file already."""

    def finish(self, exit_code: int) -> None: ...


class GuardedTracker:
    """Any error of a tracker turns it off, with one line that says so."""

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
            why = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning(f"{self.name} failed and is off for this run: {why}")
            self.tracker = None
            return None

    def log(self, row: dict[str, Any], step: int) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.log(row, step))

    def sample(self, sample: Sample) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.sample(sample))

    def finish(self, exit_code: int) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.finish(exit_code))
