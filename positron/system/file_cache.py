"""Cache values that are computed from files, until one of the files changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
Identity = tuple[int, int, int] | None  # None: the file does not exist


class FileCache(Generic[T]):
    """Cache at most `max_values` values that are computed from files: those that were used last.

    Several threads may use an object at once.
    """

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._values: OrderedDict[tuple[Path, ...], tuple[list[Identity], T]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, files: tuple[Path, ...], compute: Callable[[], T]) -> T:
        """Return the cached result of `compute` for these files, or call `compute` if there is none or a file has changed.

        An exception of `compute` is not cached.
        """
        current_identities = identities(files)
        with self._guard:
            known = self._values.get(files)
            if known is not None and known[0] == current_identities:
                self._values.move_to_end(files)
                return known[1]
        value = compute()
        with self._guard:
            self._values[files] = (current_identities, value)
            self._values.move_to_end(files)
            while len(self._values) > self._max_values:
                self._values.popitem(last=False)
        return value


def identities(files: tuple[Path, ...]) -> list[Identity]:
    """Return (modification time in nanoseconds, size in bytes, inode number) of each file.

    The item is None for a file that does not exist.
    """
    return [_identity(path) for path in files]


def _identity(path: Path) -> Identity:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
