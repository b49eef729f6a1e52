"""Ask the operating system to run a thread in short slices, so that it runs soon after it is woken.

A thread that is woken on the core of a busy program waits several milliseconds, until that program's slice ends. If the thread
has asked for shorter slices, Linux 6.12 and later run it at once, as long as it has not used its share of the core. The share
itself does not change. Source: Documentation/scheduler/sched-eevdf.rst of the Linux kernel.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SLICE_NS = 100_000  # the shortest that Linux allows
_KEEP_POLICY = 0x08  # SCHED_FLAG_KEEP_POLICY
_SCHED_SETATTR = {
    "x86_64": 314,
    "aarch64": 274,
}  # number of the system call by processor; the C library may lack a function


def ask_for_short_slices() -> None:
    """Ask the scheduler for time slices of 0.1 ms (SLICE_NS) for the calling thread, so that it runs soon after it is woken.

    Has no effect on systems other than Linux, on processors other than x86_64 and aarch64, and on a Linux that refuses or
    ignores the request.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    # struct sched_attr: size, policy, flags, nice, priority, runtime (here the slice), deadline, period
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("IIQiIQQQ", 48, 0, _KEEP_POLICY, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)
