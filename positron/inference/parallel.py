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

    A task is called as `task(check)`, and must often call the function `check()`. `check` calls `pause`, which may raise an
    error to end the task. When a task has raised an error, `check` raises an error in all other tasks, so that they end, too.
    Then `in_threads` raises the error of the failed task. If several tasks failed, it raises the error of the first of them in
    `tasks`. If there is only one task, it runs in the thread of the caller.
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
