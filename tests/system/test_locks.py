"""Locks between processes, with flock and with the byte ranges of Windows."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from conftest import PATIENCE, PROJECT
from windows import as_on_windows

from positron.system import locks as posix_locks
from positron.system.errors import UserError

LOCKS = "positron.system.locks"


@pytest.fixture(params=["this system", "windows"])
def locks(request: pytest.FixtureRequest) -> ModuleType:
    return posix_locks if request.param == "this system" else as_on_windows(LOCKS)


HOLDER = f"""
import sys
from pathlib import Path
from windows import as_on_windows
import {LOCKS}
locks = as_on_windows("{LOCKS}") if sys.argv[2] == "windows" else sys.modules["{LOCKS}"]
with locks.lock(Path(sys.argv[1]), lambda: print("busy", flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, locks: ModuleType) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock until its input ends."""
    kind = "this system" if locks is posix_locks else "windows"
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PROJECT, PROJECT / "tests")))}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def fail() -> None:
    pytest.fail("nobody holds the lock")


def test_a_lock_creates_its_file_and_is_free_after_the_block(locks: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert locks.is_locked(path) is False
    for _ in range(2):
        with locks.lock(path, fail):
            assert path.exists()
            assert locks.is_locked(path) is True
        assert locks.is_locked(path) is False


def test_one_process_excludes_another_until_it_is_killed(locks: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def refuse() -> None:
        raise UserError("busy")

    with holder(path, locks) as first:
        assert line(first) == "held"
        assert locks.is_locked(path) is True
        with locks.try_lock(path) as succeeded:
            assert not succeeded
        with pytest.raises(UserError, match="busy"), locks.lock(path, refuse):
            pytest.fail("two processes hold the lock")
        first.kill()
        first.wait(PATIENCE)
        with locks.lock(path, fail):
            pass


def test_a_process_waits_for_a_lock_that_another_holds(locks: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.lock(path, fail):
        waiting = holder(path, locks)
        second = waiting.__enter__()
        assert line(second) == "busy"
    try:
        assert line(second) == "held"
    finally:
        waiting.__exit__(None, None, None)


def test_two_threads_of_a_process_exclude_each_other(locks: ModuleType, tmp_path: Path) -> None:
    count, path = [0], tmp_path / "lock"

    def add() -> None:
        for _ in range(20):
            with locks.lock(path, lambda: None):
                before = count[0]
                threading.Event().wait(0.0005)
                count[0] = before + 1

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert count == [60]


def test_a_locked_file_keeps_its_note(locks: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("7", encoding="ascii")
    with locks.lock(path, fail):
        assert path.read_text(encoding="ascii") == "7"
    assert path.read_bytes() == b"7"


def test_a_lock_of_a_missing_file_cannot_be_tried(locks: ModuleType, tmp_path: Path) -> None:
    with locks.try_lock(tmp_path / "missing") as succeeded:
        assert not succeeded
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_and_nothing_is_known_about_its_locks(
    locks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if sys.platform == "win32" or locks is not posix_locks:
        monkeypatch.setattr(locks.msvcrt, "locking", refuse)
    else:
        monkeypatch.setattr("fcntl.flock", refuse)
    path = tmp_path / "lock"
    with (
        pytest.raises(UserError, match=r"cannot lock \S+lock \(.+\): use a folder on a local disk"),
        locks.lock(path, fail),
    ):
        pytest.fail("nothing can be locked")
    with locks.try_lock(path) as succeeded:
        assert not succeeded
    assert locks.is_locked(path) is None


def test_a_lock_file_is_removed_only_if_no_process_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with posix_locks.lock(path, fail):
        assert not posix_locks.remove_unless_locked(path)
        assert path.exists()
    assert posix_locks.remove_unless_locked(path)
    assert not path.exists()


def test_on_windows_a_lock_file_that_is_open_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks, path = as_on_windows(LOCKS), tmp_path / "lock"
    monkeypatch.setattr(sys, "platform", "win32")

    def refuse(self: Path, missing_ok: bool) -> None:
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    assert locks.remove_unless_locked(path)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert not locks.remove_unless_locked(path)
