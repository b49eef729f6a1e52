"""Run independent computations at the same time, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


class _EndedError(Exception):
    """Tell a task that it must end, because another task has raised an error."""


def in_threads(tasks: Sequence[Callable[[Callable[[], None]], None]], pause: Callable[[], None]) -> None:
    """Run all tasks at the same time, and wait until all have ended. The threads of torch are divided among the tasks.

    Each task is called with one argument, a function that the task must call often. Let `check` be this function. `check` calls
    `pause`, which may raise an error to end the task. After a task has failed with an error, the next call of `check` in each
    other task raises an error, too, so that all tasks end. Then the error of the failed task (of the first one in `tasks`, if
    several failed) is raised again in the thread of the caller. A single task runs in the thread of the caller.
    """
    if len(tasks) == 1:
        tasks[0](pause)
        return
    threads = torch.get_num_threads()
    must_end = threading.Event()

    def pause_or_end() -> None:
        if must_end.is_set():
            raise _EndedError
        pause()

    def run(task: Callable[[Callable[[], None]], None]) -> None:
        torch.set_num_threads(max(1, threads // len(tasks)))  # for the operators of this thread
        try:
            task(pause_or_end)
        except BaseException:
            must_end.set()
            raise

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = [pool.submit(run, task) for task in tasks]
            try:
                errors = [future.exception() for future in futures]
            finally:
                must_end.set()  # Ctrl-C can raise an error in the thread of the caller, where no task runs
    finally:
        torch.set_num_threads(threads)  # some libraries have one number for all threads of the process
    for error in errors:
        if error is not None and not isinstance(error, _EndedError):
            raise error
