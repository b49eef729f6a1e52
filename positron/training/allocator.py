"""Keep freed memory in the process instead of returning it to the system, and let it consist of huge pages.

By default glibc returns large buffers to the system after each use. Each training step would then request hundreds of
megabytes again, and the system would map every page again (page faults).

Many Linux systems use pages of 4 KiB unless a program asks for larger ones. A training step reads and writes hundreds of
megabytes, and so looks up a hundred thousand pages. A huge page has 2 MiB.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Literal

from positron.system.memory import physical_memory

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MADV_HUGEPAGE = 14  # asm-generic/mman-common.h
HUGE_PAGE = 2 << 20
MAX_IN_HUGE_PAGES = 4 << 30
STEPS_FOR_HUGE_PAGES = 100  # with fewer steps, the time that they save is less than what the first steps take longer


def tune_allocator(max_steps: int | Literal["auto"] = "auto") -> bool:
    """Make glibc keep all freed memory in this process; return whether it worked (False on systems without glibc).

    The memory use of the process stays at its peak. On 2 CPU cores, a model with 15M parameters and 8 x 512 tokens per step
    trained 1.2 to 1.3 times as fast.

    A training of many optimizer steps, `max_steps`, uses huge pages. Where Linux has pages of 4 KiB unless a program asks for
    others, steps took 4 to 8 % less time, but the first two steps took 0.1 to 1.7 s more.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    # M_MMAP_THRESHOLD is not used, because glibc before 2.35 refuses more than 32 MiB, and a chunk of logits is larger.
    is_kept = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never
    if is_kept and (max_steps == "auto" or max_steps >= STEPS_FOR_HUGE_PAGES) and not _counts_unused_memory():
        _use_huge_pages(libc, min(MAX_IN_HUGE_PAGES, (physical_memory() or 0) // 4))
    return is_kept


def _use_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Let the next `size` bytes that glibc takes from the system consist of huge pages, if the system has them.

    A block of this size is allocated and freed, so that the addresses belong to the process and can be given the advice
    MADV_HUGEPAGE. The system assigns memory to an address only when it is used, so the block itself needs no memory.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block is None:
        return
    first, last = -(-block // HUGE_PAGE), (block + size) // HUGE_PAGE
    if first < last:
        # the result does not matter: without huge pages, the memory is the same
        libc.madvise(first * HUGE_PAGE, (last - first) * HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(block)


def _counts_unused_memory() -> bool:
    """Tell whether a limit counts memory that a process has allocated and not yet used.

    Such limits are vm.overcommit_memory=2, `ulimit -v` and `ulimit -d`.
    """
    if sys.platform == "win32":
        return False
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    if not sys.platform.startswith("linux"):
        return False
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return True
