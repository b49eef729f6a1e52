"""Renames over what exists, with the errors that Windows raises while a file is open; files and folders that are missing."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from positron.system import disk
from positron.system.errors import UserError

IN_USE = PermissionError(13, "The process cannot access the file because it is being used by another process")


class Windows:
    """Make renames fail `times` times, as if a program had the target open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.attempts, rename = 0, Path.replace

        def replace(source: Path, target: Path) -> Path:
            self.attempts += 1
            if self.attempts <= times:
                raise IN_USE
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(sys, "platform", "win32")


def test_on_windows_a_file_that_a_reader_has_open_is_replaced_when_the_reader_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write_text(tmp_path / "run.json", "before")
    windows = Windows(monkeypatch, times=3)
    disk.write_text(tmp_path / "run.json", "after")
    assert windows.attempts == 4
    assert disk.read_text(tmp_path / "run.json") == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_on_windows_a_file_that_stays_open_is_named_and_stays_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write_text(tmp_path / "run.json", "before")
    monkeypatch.setattr(disk, "RENAME_S", 0.05)
    Windows(monkeypatch, times=10**9)
    with pytest.raises(UserError, match=r"cannot write .*run\.json: The process cannot access the file"):
        disk.write_text(tmp_path / "run.json", "after")
    assert (tmp_path / "run.json").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_rename_that_fails_elsewhere_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(monkeypatch, times=1)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="cannot write"):
        disk.write_text(tmp_path / "run.json", "after")
    assert windows.attempts == 1


def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    new, old = tmp_path / ".tokens.partial", tmp_path / "tokens"
    for folder in (new, old):
        folder.mkdir()
        (folder / f"{folder.name}.bin").write_bytes(b"ids")
    return new, old


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    new, old = two_folders(tmp_path)
    disk.replace_folder(new, old)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bin")] == ["tokens/.tokens.partial.bin"]
    assert not new.exists()


def test_a_folder_in_use_is_named_and_the_new_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise IN_USE

    new, old = two_folders(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(UserError, match=r"cannot replace .*tokens: .*end the programs that use the folder"):
        disk.replace_folder(new, old)
    assert new.exists()
    assert old.exists()


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "file.json"
    with pytest.raises(
        UserError, match=r"file\.json: No such file .*; correct the path, or restore the file from a copy$"
    ):
        disk.read_json(file)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="rename the file"):
        disk.make_folder(tmp_path / "file" / "data", instead="give another data.dir=")
    with pytest.raises(UserError, match=r"long/data.*: give another data\.dir=$"):
        disk.make_folder(tmp_path / (300 * "x" + "long") / "data", instead="give another data.dir=")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere: create it, or give another path$"):
        disk.write_text(file, "{}", tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*: it is a folder; give the name of a file$"):
        disk.write_text(tmp_path, "{}")


def test_a_name_that_is_not_utf8_comes_back_from_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    value = {"path": b"/t\xe9xts/caf\xc3\xa9.txt".decode("utf-8", "surrogateescape"), "a \udce9": "😀 \\udce9"}
    disk.write_json(path, value)
    assert disk.read_json(path) == value
    assert "café" in path.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_the_umask_decides_who_may_write_a_file(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        disk.write_text(tmp_path / "run.json", "{}")
        disk.append_text(tmp_path / "train.log", "a line")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o664}


def test_two_writers_of_a_file_with_the_same_process_id_do_not_disturb_each_other(tmp_path: Path) -> None:
    """As two threads, or two containers that share a folder."""
    path = tmp_path / "file"
    with disk.whole_file(path) as first:
        first.write(b"1" * 100_000)
        with disk.whole_file(path) as second:
            second.write(b"2" * 100_000)
        assert path.read_bytes() == b"2" * 100_000
    assert path.read_bytes() == b"1" * 100_000


def test_a_new_folder_removes_what_killed_processes_left_of_others_and_nothing_else(tmp_path: Path) -> None:
    dead, other_machine = f".a.{2**30}-0123abcd.tmp", f".b.{2**30}-0123abcd.tmp"
    kept = [f".a.{os.getpid()}-0123abcd.tmp", f".a.{os.getppid()}-0123abcd.tmp", f".a.{2**30}.tmp", ".a.tmp", "a"]
    for name in (dead, other_machine, *kept):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "weights").write_text("half")
        for old in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(old, (0, 0))
    (tmp_path / other_machine / "model" / "weights").touch()  # a process of another machine writes it
    with disk.whole_folder(tmp_path / "new"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["new", other_machine, *kept])
    os.utime(tmp_path / other_machine / "model" / "weights", (0, 0))
    disk.sweep_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["new", *kept])


def test_a_folder_that_another_command_has_written_meanwhile_is_kept_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "export"

    def of_two_commands() -> None:
        with disk.whole_folder(folder):
            folder.mkdir()
            (folder / "weights").write_text("of the other command")

    with pytest.raises(UserError, match="it exists already: give the path of a new folder"):
        of_two_commands()
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "weights"]


def test_what_is_left_of_one_file_is_removed_and_what_is_left_of_others_stays(tmp_path: Path) -> None:
    for name in (f".rows.{os.getppid()}-0123abcd.tmp", f".rows.1.{2**30}-0123abcd.tmp", "rows"):
        (tmp_path / name).write_text("half")
    disk.sweep_drafts_of(tmp_path / "rows")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".rows.1.{2**30}-0123abcd.tmp", "rows"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r": rename the file \S+file$"):
        disk.make_folder(tmp_path / "file" / "inner")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")
def test_a_file_system_that_cannot_sync_a_folder_is_no_error(tmp_path, monkeypatch):
    original = os.fsync

    def sync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(handle)

    monkeypatch.setattr(os, "fsync", sync)
    disk.write_json(tmp_path / "a.json", {"a": 1})
    assert disk.read_json(tmp_path / "a.json") == {"a": 1}
