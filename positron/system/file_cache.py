"""Cache values that are computed from files, until one of the files changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class FileCache(Generic[T]):
    """Hold the `most` most recently used values. Several threads may use an object at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[tuple[Path, ...], tuple[list[tuple[int, int, int] | None], T]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, files: tuple[Path, ...], compute: Callable[[], T]) -> T:
        """Return the cached result of `compute` for these files, or call `compute` if one of the files has changed.

        A file counts as changed if its modification time, size or inode number differs, or if it was created or deleted.
        An exception of `compute` is not cached.
        """
        identities = [_identity(path) for path in files]
        with self._guard:
            known = self._values.get(files)
            if known is not None and known[0] == identities:
                self._values.move_to_end(files)
                return known[1]
        value = compute()
        with self._guard:
            self._values[files] = (identities, value)
            self._values.move_to_end(files)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
