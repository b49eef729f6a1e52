"""A run folder may come from a stranger: links are not followed, what is read is checked, damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from positron import disk
from positron.config import UserError


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside.txt"
    file.write_text("untouched")
    return file


@pytest.mark.parametrize("mode", ["rb", "wb", "ab"])
@pytest.mark.parametrize("where", ["train.log", "checkpoints/x.ckpt"])
def test_a_link_below_a_run_folder_is_never_opened(tmp_path: Path, outside: Path, mode: str, where: str) -> None:
    run = tmp_path / "run"
    (run / where).parent.mkdir(parents=True)
    (run / where).symlink_to(outside)
    with pytest.raises(UserError, match="symbolic link"):
        disk.open_inside(run / where, mode, run)  # type: ignore[arg-type]
    assert outside.read_text() == "untouched"


def test_a_linked_folder_below_a_run_folder_is_not_entered_but_the_run_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="symbolic link"):
        disk.write_text(tmp_path / "run" / "model" / "x", "text", below=tmp_path / "run")
    with pytest.raises(UserError, match="symbolic link"):
        disk.make_folder(tmp_path / "link" / "model", below=tmp_path / "link")
    with pytest.raises(UserError, match="symbolic link"):
        disk.refuse_links_in(tmp_path / "link")
    disk.write_text(tmp_path / "link" / "run.json", "{}")
    assert disk.read_json(tmp_path / "link" / "run.json") == {}
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_pipe_in_the_place_of_a_file_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UserError, match="not a regular file"):
        disk.read_json(tmp_path / "run.json")
    with pytest.raises(UserError, match="not a regular file"):
        disk.append_text(tmp_path / "run.json", "x")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'{"step": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"{} {}", "Extra data"),
    ],
)
def test_json_that_cannot_be_read_is_one_line_with_the_name_of_the_file(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=why) as error:
        disk.read_json(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(error.value)


def test_a_file_beyond_its_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match="1,000,000,000,000 bytes, more than"):
        disk.read_json(tmp_path / "run.json")


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = [tmp_path / f".run.json.{2**30}.tmp", tmp_path / "checkpoints" / ".step-000010.ckpt.999999999999.tmp"]
    alive = [tmp_path / f".run.json.{os.getppid()}.tmp", tmp_path / ".notes.tmp"]
    (tmp_path / "checkpoints").mkdir()
    for path in (*dead, *alive):
        path.write_text("half")
    disk.sweep_temporary_files(tmp_path)
    assert [path.exists() for path in (*dead, *alive)] == [False, False, True, True]
