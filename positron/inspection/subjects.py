"""Load the runs of a server when they are looked at for the first time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from positron.inspection.subject import Subject
from positron.run.folder import Run


class Subjects(Mapping[str, Subject]):
    """Map the names of runs to subjects. The `keep` most recently used subjects stay in memory.

    Looking up a run raises UserError if it cannot be loaded. Several threads may look up runs at the same time.
    """

    def __init__(self, runs: Mapping[str, Run], keep: int = 4) -> None:
        """Keep a reference to the mapping `runs`, which may change later."""
        self._runs, self._keep = runs, keep
        self._loaded: OrderedDict[str, Subject] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Subject:
        """Return the subject of a run, loaded if necessary."""
        run = self._runs[name]
        with self._lock:
            if name not in self._loaded or self._loaded[name].run != run:
                self._loaded[name] = Subject(run)
            self._loaded.move_to_end(name)
            while len(self._loaded) > self._keep:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a run of this name, without loading it."""
        return name in self._runs

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the runs."""
        return iter(self._runs)

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self._runs)
