"""Set how long idle threads spin, before torch or NumPy is loaded, and measure how busy other programs keep the cores.

A parallel region ends when its slowest thread does. By default a thread that has finished spins (waits in a busy loop) for
milliseconds, in case the next region begins soon. If another program is busy, the finished thread spins on the core that the
slower thread needs, and training becomes three to six times slower than necessary (scripts/bench/contention.py). A short spin
keeps the speed of an idle machine and frees the core soon when another thread needs it.

This module imports only the standard library.
"""

from __future__ import annotations

import os
import sys
import time

# Iterations of libgomp's waiting loop before a thread sleeps; its default is 300,000 (table: docs/LOG.md). A training step
# keeps its threads busy, so a short wait costs nothing on idle cores. Generating a token consists of many small regions
# with Python in between, where a short wait costs a fifth of the speed.
SPIN_TRAINING = 2000
SPIN_WRITING = 10_000
_IS_USERS_CHOICE = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"))


def usable_cores() -> int:
    """Return the number of cores that this process may use. Only Linux tells how `taskset` and job schedulers restrict it."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spin(count: int) -> None:
    """Set for how many iterations an idle OpenMP thread of this process or its children spins before it sleeps.

    Call this before torch is loaded. It does nothing if the user has set OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME. Only
    GNU's OpenMP library (libgomp) uses the number.
    """
    if not _IS_USERS_CHOICE:
        os.environ["GOMP_SPINCOUNT"] = str(count)


class OtherPrograms:
    """Measure how many cores other programs keep busy, from one call of `cores` to the next."""

    def __init__(self) -> None:
        self._last = _busy_seconds()

    def cores(self) -> float | None:
        """Return the average number of cores that other programs have used since the last call.

        The first call measures from the creation of the object. Returns None if the system does not report it, or if less
        than 0.05 seconds have passed.
        """
        before, now = self._last, _busy_seconds()
        self._last = now
        if before is None or now is None or now[0] - before[0] < 0.05:
            return None
        wall, total, own_seconds = (b - a for a, b in zip(before, now, strict=True))
        return max(0.0, total - own_seconds) / wall


def describe_others(cores: float | None, n_cores: int | None = None) -> str:
    """Return a text such as "other programs keep 1.3 of 2 cores busy", or "" if `cores` is None or less than 0.25.

    `cores`: the mean number of cores that other programs use. `n_cores`: the total number of cores (None: all of this machine).
    """
    if cores is None or cores < 0.25:
        return ""
    total = n_cores or os.cpu_count() or 1
    return f"other programs keep {min(cores, total):.1f} of {total} cores busy"


def _busy_seconds() -> tuple[float, float, float] | None:
    """Return (wall-clock time, CPU time of all programs, CPU time of this program and its finished children), in seconds.

    Only differences between two calls have a meaning. Returns None if the system does not report these times.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):  # a sandbox may hide it
        return None
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, sum(os.times()[:4])
