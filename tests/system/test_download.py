"""Downloads come from https, or over http from this machine, and from nowhere else."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from conftest import Loopback

from positron.config import DataConfig
from positron.data.files import FileSource
from positron.system import disk
from positron.system.download import check_address, fetch
from positron.system.errors import UserError


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://example.org/a.txt",
        "http://example.org/a.txt",
        "http://127.0.0.1.example.org/a.txt",
        "http://localhost@example.org/a.txt",
        "data:text/plain,abc",
        "/etc/passwd",
        "https:///etc/passwd",
        "http://[::1",
        "",
    ],
)
def test_only_https_and_this_machine_are_asked(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="cannot be fetched: give an https:// address") as error:
        FileSource(DataConfig("text", url=url or " "))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_addresses_that_are_allowed() -> None:
    for url in ("https://example.org/a.txt", "HTTPS://example.org/a", "http://localhost:8000/a", "http://[::1]:80/a"):
        check_address(url)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://example.org/a.txt", "ftp://127.0.0.1/a.txt"])
def test_a_redirect_leads_nowhere_else(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirecting(Loopback):
        def answer(self, request: Any) -> None:
            request.send_response(302)
            request.send_header("Location", target)
            request.send_header("Content-Length", "0")
            request.end_headers()

    server = Redirecting()
    with pytest.raises(UserError, match="cannot download"):
        fetch(f"{server.url}/a.txt", tmp_path / "a.txt", None, instead="nothing")
    assert not (tmp_path / "a.txt").exists()
    server.close()


def test_a_folder_in_the_place_of_a_download_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot read \S+a\.txt: .*; or give another file$"):
        fetch("https://example.org/a.txt", tmp_path / "a.txt", None, instead="or give another file")


@pytest.mark.parametrize("fault", ["folder", "file"])
def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(
    tmp_path: Path, loopback: Loopback, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.files["/a.txt"] = b"text"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(*((Path, "mkdir") if fault == "folder" else (disk, "open_inside")), refuse)
    with pytest.raises(UserError, match=r"Permission denied.* set the environment variable POSITRON_CACHE to a folder"):
        fetch(f"{loopback.url}/a.txt", tmp_path / "text" / "a.txt", None, instead="nothing")


def test_files_of_one_name_from_two_addresses_are_two_files(
    tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path))
    found = []
    for folder in ("one", "two"):
        loopback.files[f"/{folder}/input.txt"] = f"text of {folder}\n".encode() * 20
        found.append(FileSource(DataConfig("text", url=f"{loopback.url}/{folder}/input.txt")).files[0].read_bytes())
    assert found[0] != found[1]
    strange = FileSource(DataConfig("text", url=f"{loopback.url}/two/input.txt?x=../../y"))
    assert strange.files[0].parent == tmp_path / "text"
