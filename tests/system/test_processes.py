"""Which processes are alive."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest
from windows import as_on_windows

from positron.system.processes import is_alive


def test_a_process_is_alive_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_alive(process.pid)
        assert process.poll() is None, "asking ended the process"
        process.kill()
    assert not is_alive(process.pid)


@pytest.mark.parametrize("number", [0, 2**31, 999_999_999_999])
def test_a_number_that_is_no_process_id_is_not_alive(number: int) -> None:
    assert not is_alive(number)


class Kernel:
    """The functions of kernel32 for three processes: a running one, one that ended, and one of another user."""

    RUNNING, ENDED, FOREIGN = 4, 8, 12

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.error = 0

        def open_process(access: int, inherit: bool, pid: int) -> int | None:
            assert access == 0x00100000
            self.error = {self.RUNNING: 0, self.ENDED: 0, self.FOREIGN: 5}.get(pid, 87)
            if self.error:
                return None
            self.open.add(2**40 + pid)
            return 2**40 + pid

        self.OpenProcess: Any = open_process

    def WaitForSingleObject(self, handle: Any, milliseconds: int) -> int:
        assert milliseconds == 0
        return {2**40 + self.RUNNING: 0x102, 2**40 + self.ENDED: 0}[handle.value]

    def CloseHandle(self, handle: Any) -> None:
        self.open.remove(handle.value)


def test_windows_is_asked_by_a_handle_and_no_signal_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, processes = Kernel(), as_on_windows("positron.system.processes")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel.error, raising=False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill ends a process on Windows"))
    assert [processes.is_alive(pid) for pid in (kernel.RUNNING, kernel.ENDED, kernel.FOREIGN, 16)] == [
        True,
        False,
        True,
        False,
    ]
    assert kernel.open == set()
