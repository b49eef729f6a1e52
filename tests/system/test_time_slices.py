"""A thread that asks for short slices gets them from Linux, and keeps its priority and its policy."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable

import pytest

from positron.system.time_slices import SLICE_NS, ask_for_short_slices

GETATTR = {"x86_64": 315, "aarch64": 275}
VERSION = tuple(int(part) for part in platform.release().split(".")[:2]) if sys.platform == "linux" else (0, 0)


def attributes() -> tuple[int, ...]:
    """Return policy, flags, nice, priority and slice of the calling thread."""
    buffer = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(GETATTR[platform.machine()], 0, buffer, 48, 0) == 0
    return struct.unpack("IIQiIQQQ", buffer.raw)[1:6]


def in_thread(call: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.skipif(VERSION < (6, 12) or platform.machine() not in GETATTR, reason="needs Linux 6.12 or later")
@pytest.mark.parametrize("policy", ["SCHED_OTHER", "SCHED_BATCH"])
def test_a_thread_gets_short_slices_and_keeps_its_policy_and_priority(policy: str) -> None:
    def ask() -> None:
        if sys.platform != "linux":  # for mypy
            raise AssertionError
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        before = attributes()
        ask_for_short_slices()
        assert attributes() == (*before[:4], SLICE_NS)
        assert before[0] == getattr(os, policy)
        assert before[2] == 7

    before = attributes()
    in_thread(ask)
    assert attributes() == before  # other threads are not affected


def test_a_system_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("a system call"))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    ask_for_short_slices()
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "darwin")
    ask_for_short_slices()
