"""Ask the system how much main memory the machine has, how much of it is free, and how much this process has used at most.

This module imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import sys

if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """Declare the structure MEMORYSTATUSEX of the Windows header sysinfoapi.h."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "total_page", "available_page")),
            *((name, ctypes.c_uint64) for name in ("total_virtual", "available_virtual", "available_extended")),
        )

    class _MemoryCounters(ctypes.Structure):
        """Declare the structure PROCESS_MEMORY_COUNTERS of the Windows header psapi.h."""

        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak", ctypes.c_size_t),
            *((f"other_{i}", ctypes.c_size_t) for i in range(7)),
        )

    def _status() -> _MemoryStatus | None:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        return status if ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)) else None

    def physical_memory() -> int | None:
        """Return the memory of the machine in bytes, or None if the system does not report it."""
        status = _status()
        return None if status is None else int(status.total)

    def available_memory() -> int | None:
        """Return the bytes that programs can use without swapping, or None if the system does not report it."""
        status = _status()
        return None if status is None else int(status.available)

    def peak_memory() -> int | None:
        """Return the largest memory that this process has had, in bytes, or None if the system does not report it."""
        kernel, counters = ctypes.WinDLL("kernel32"), _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
        this_process = ctypes.c_void_p(-1)  # what GetCurrentProcess returns
        asked = kernel.K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.size)
        return int(counters.peak) if asked else None

else:
    import resource

    def physical_memory() -> int | None:
        """Return the memory of the machine in bytes, or None if the system does not report it."""
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None

    def available_memory() -> int | None:
        """Return the bytes that programs can use without swapping, or None if the system does not report it."""
        if sys.platform != "linux":
            return None
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                values = dict(line.split(":", 1) for line in file)
            return int(values["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError):  # a sandbox may hide it
            return None

    def peak_memory() -> int | None:
        """Return the largest memory that this process has had, in bytes, or None if the system does not report it."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
