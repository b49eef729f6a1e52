"""Faults of a machine that tests bring about."""

import resource


def full_disk(limit):
    """Files of this process cannot grow beyond `limit` bytes: what a full disk does to a large file."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
