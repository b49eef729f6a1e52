"""The main memory of the machine and of this process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from windows import as_on_windows

from positron.system import memory
from positron.training.device import is_out_of_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not report the available memory")
def test_this_process_fits_into_what_the_machine_has() -> None:
    physical, available, peak = memory.physical_memory(), memory.available_memory(), memory.peak_memory()
    assert physical is not None
    assert available is not None
    assert peak is not None
    assert 0 < available < physical
    assert 1e6 < peak < physical


# Linux counts the peak of the process that called exec as that of the new program: only a grandchild has a small one.
RUN_IN_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
NEEDS_MORE = """
import mmap
from positron.system import memory
before = memory.peak_memory()
with mmap.mmap(-1, before + 50_000_000) as block:  # more than ever before
    for start in range(0, len(block), 4096):
        block[start] = 1
    print(before, memory.peak_memory())
"""


def test_the_peak_counts_bytes() -> None:
    """In a small process, because the block is larger than all that the process has had."""
    command = [sys.executable, "-c", RUN_IN_CHILD, NEEDS_MORE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    assert before + 50_000_000 <= peak <= 3 * before + 200_000_000


class Kernel:
    """The functions of kernel32 that report memory; their structures are written byte by byte, at documented offsets."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers

    def GlobalMemoryStatusEx(self, pointer: Any) -> bool:
        raw = (ctypes.c_char * 64).from_address(ctypes.addressof(pointer._obj))
        assert int.from_bytes(raw[:4], "little") == 64, "the caller says how long the structure is"
        raw[8:16], raw[16:24] = (32 * 2**30).to_bytes(8, "little"), (5 * 2**30).to_bytes(8, "little")
        return self.answers

    def K32GetProcessMemoryInfo(self, process: Any, pointer: Any, size: int) -> bool:
        assert process.value == 2**64 - 1
        raw = (ctypes.c_char * 72).from_address(ctypes.addressof(pointer._obj))
        assert size == int.from_bytes(raw[:4], "little") == 72
        raw[8:16] = (3 * 2**30).to_bytes(8, "little")
        return self.answers


def test_windows_is_asked_for_each_number(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = as_on_windows("positron.system.memory")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel(), raising=False)
    assert windows.physical_memory() == 32 * 2**30
    assert windows.available_memory() == 5 * 2**30
    assert windows.peak_memory() == 3 * 2**30
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel(answers=False), raising=False)
    assert [windows.physical_memory(), windows.available_memory(), windows.peak_memory()] == [None, None, None]


def test_the_message_of_a_full_memory_is_known_on_every_system() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
