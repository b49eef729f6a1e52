"""Run the decoding steps of `CompiledDecoder` with several threads: the caller's, and helpers that sleep if there is no step.

OpenMP is not used, for two reasons. Numba and torch would each have a pool of threads in the same process. And at each of the
about 30 matrix products of a step, the caller would wait for every thread, even for a thread whose core is used by another
program. In this module, a helper takes part in a step if it is ready in time (see `compiled_step.py`). The caller only waits
for helpers that are already computing a part of the step.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any, Protocol

import numpy as np
import torch

from positron.inference import compiled_step as kernel
from positron.system.time_slices import ask_for_short_slices

PATIENCE_S = 5.0  # maximum time to wait for each helper when the program ends
MAX_THREADS = 8  # the matrices of a small model are too small for more threads


class Steps(Protocol):
    """Define what `Team` needs of a decoder: the data of its next decoding step, and a method to divide the step."""

    owner: int  # number of the decoder, different for each decoder of the process
    arrays: tuple[Any, ...]  # the last arguments of `compiled_step.work`: all that follow the parameter `sync`

    def plan(self, threads: int) -> None:
        """Divide the step into chunks for this number of threads."""


class _Helper:
    """Hold a thread that helps to compute the decoding steps of a team, and sleeps if there is no step."""

    def __init__(self, team: Team, number: int) -> None:
        self.sleeps, self.wake = False, threading.Semaphore(0)
        self.thread = threading.Thread(target=self._help, args=(team, number), daemon=True, name=f"decoding-{number}")
        self.thread.start()

    def _help(self, team: Team, number: int) -> None:
        ask_for_short_slices()  # beside busy programs, a helper would often come too late for the step
        helped, spins = 0, kernel.SPINS
        while not team.ended:
            work, n_begun = team.work, team.begun
            if work is None or n_begun == helped:
                del work  # do not keep the arrays of a decoder that nobody else uses
                self.sleeps = True
                asleep = time.perf_counter()
                self.wake.acquire()
                in_time = time.perf_counter() - asleep < kernel.SPIN_S  # a longer spin would not have needed the sleep
                spins = kernel.SPINS if in_time else kernel.SPINS_ON_BUSY_CORES
            else:
                helped = n_begun
                kernel.work(
                    number, spins, work.owner, team.sync, *work.arrays
                )  # returns when there has been no work for a while
                del work


class Team:
    """Hold the threads that compute the decoding steps of all `CompiledDecoder`s of this process."""

    def __init__(self) -> None:
        self.size = min(os.cpu_count() or 1, MAX_THREADS)
        self._forget()
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._end)

    def _forget(self) -> None:
        """Set all attributes to their initial values, for a team without helper threads.

        This is also called in a child process after a fork, because the helper threads of the parent process do not exist
        there.
        """
        self.sync = np.zeros(kernel.SYNC, dtype=np.int64)
        self.helpers: list[_Helper] = []
        self.work: Steps | None = None
        self.begun = 0  # number of steps that were started
        self.ended = False
        self._free = threading.Lock()

    def _end(self) -> None:
        """Stop the helper threads when the interpreter exits.

        A helper thread that still computed at that time would abort the process.
        """
        self.ended, self.sync[kernel.OWNER] = True, kernel.NOBODY
        for helper in self.helpers:
            helper.wake.release()
        for helper in self.helpers:
            helper.thread.join(PATIENCE_S)

    def run(self, steps: Steps) -> None:
        """Compute the next decoding step of the decoder `steps` with as many threads as torch uses, at most `self.size`.

        `size` is the number of cores, but at most 8 (MAX_THREADS). If another thread of the program is inside `run`, the caller
        computes the step with its own thread alone; the result is the same.
        """
        threads = min(torch.get_num_threads(), self.size)
        if threads == 1 or not self._free.acquire(blocking=False):
            steps.plan(1)
            kernel.work(0, 0, steps.owner, np.zeros(kernel.SYNC, dtype=np.int64), *steps.arrays)
            return
        try:
            steps.plan(threads)
            self.work, self.begun = steps, self.begun + 1
            while len(self.helpers) < threads - 1:
                self.helpers.append(_Helper(self, len(self.helpers) + 1))
            for helper in self.helpers[: threads - 1]:
                if helper.sleeps:
                    helper.sleeps = False
                    helper.wake.release()
            kernel.work(0, 0, steps.owner, self.sync, *steps.arrays)
        finally:
            self.work = None
            self._free.release()


TEAM = Team()
