"""Faults of a machine that tests bring about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def full_disk(limit):
    """Files of this process cannot grow beyond `limit` bytes: what a full disk does to a large file."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limit for the size of a file")
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def interrupted_at_the_end(generate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return the generator function `generate`, whose generators are interrupted by Ctrl-C while they are closed."""

    def generate_interrupted(*arguments: Any) -> Iterator[Any]:
        try:
            yield from generate(*arguments)
        finally:
            raise KeyboardInterrupt

    return generate_interrupted
