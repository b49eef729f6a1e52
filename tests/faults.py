"""Faults of a machine that tests bring about."""

import sys

import pytest


def full_disk(limit):
    """Files of this process cannot grow beyond `limit` bytes: what a full disk does to a large file."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limit for the size of a file")
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
