"""Keep freed memory in the process instead of returning it to the system.

By default glibc returns large buffers to the system after each use. Each training step would then request hundreds of
megabytes again, and the system would map every page again (page faults).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def tune_allocator() -> bool:
    """Make glibc keep all freed memory in this process; return whether it worked (False on systems without glibc).

    The memory use of the process stays at its peak. On 2 CPU cores, a model with 15M parameters and 8 x 512 tokens per step
    trained 1.2 to 1.3 times as fast.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    # M_MMAP_THRESHOLD is not used, because glibc before 2.35 refuses more than 32 MiB, and a chunk of logits is larger.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never
