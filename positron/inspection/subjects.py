"""Load the runs that a server offers, each when a request names it for the first time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from positron.inspection.subject import Subject
from positron.run.folder import Run
from positron.run.load import model_files
from positron.system.file_cache import FileCache


class Subjects(Mapping[str, Subject]):
    """Map the names of runs to `Subject` objects, of which the `keep` most recently used ones stay in memory.

    A `Subject` holds a loaded run. A run that has been trained further since it was loaded is loaded again. Several threads may
    look up runs at the same time.
    """

    def __init__(self, runs: Mapping[str, Run], keep: int = 4) -> None:
        """Keep a reference to `runs`, a mapping from names to runs.

        The caller may change this mapping later. `keep` is the largest number of `Subject` objects in memory.
        """
        self._runs = runs
        self._loaded: FileCache[Subject] = FileCache(keep)
        self._lock = threading.Lock()  # so that a run is not loaded by two threads at the same time

    def __getitem__(self, name: str) -> Subject:
        """Return the `Subject` of the run `name`, and load it if it is not in memory.

        Raises KeyError if there is no run of this name, and UserError if the run cannot be loaded.
        """
        run = self._runs[name]
        with self._lock:
            return self._loaded.get(model_files(run), lambda: Subject(run))

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a run of this name, without loading it."""
        return name in self._runs

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the runs."""
        return iter(self._runs)

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self._runs)
