"""Names that every system can have, and home folders of Windows."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from positron.system.paths import fault_of_name, without_home


@pytest.mark.parametrize("name", ["con", "NUL", "nul.txt", "com1", "LPT9.tar.gz", "aux .x", "COM¹", "conin$"])
def test_a_device_of_windows_is_no_name(name: str) -> None:
    assert fault_of_name(name) == "is the name of a device on Windows"
    assert PureWindowsPath(name).is_reserved()


@pytest.mark.parametrize("name", ["a:b", "what?", "a*", 'say "hi"', "a|b", "<s>", "a\\b", "a/b", "a\tb", "a\x7f"])
def test_a_character_that_windows_refuses_is_named(name: str) -> None:
    assert str(fault_of_name(name)).startswith("has one of the characters")


@pytest.mark.parametrize("name", ["a ", " a", "a.", "...", " "])
def test_spaces_at_an_end_and_dots_at_the_end_are_refused(name: str) -> None:
    assert fault_of_name(name) == "begins or ends with a space, or ends with a dot"


@pytest.mark.parametrize(
    "name", ["first", "my_text-2.5", "größe 日本", "console", "com10", "nuls", "lr=0.1,seed=2", ".a"]
)
def test_a_name_of_every_system_has_no_fault(name: str) -> None:
    assert fault_of_name(name) is None
    assert not PureWindowsPath(name).is_reserved()


def test_a_home_folder_of_windows_is_replaced_in_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: PureWindowsPath(r"C:\Users\ann"))
    texts = [r"C:\Users\ann\my.txt", "C:/Users/ann/my.txt", r"'C:\\Users\\ann\\my.txt'", r"C:\Users\anna\my.txt"]
    assert without_home(texts) == [r"~\my.txt", "~/my.txt", r"'~\\my.txt'", r"C:\Users\anna\my.txt"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/home/ann", "~"),
        ("/home/ann/my.txt", "~/my.txt"),
        ("/home/ann@work/my.txt", None),
        ("/home/ann (old)/my.txt", None),
        ("/home/ann,b/my.txt", None),
        ("/home/ann+backup", None),
        ("/home/anna/my.txt", None),
        ("/home/ann.txt", None),
        ("/backup/home/ann/my.txt", None),
        ("data.path=/home/ann/my.txt", "data.path=~/my.txt"),
        ("data.path=/home/ann@work/my.txt", None),
        ("cannot read /home/ann: it is a folder", "cannot read ~: it is a folder"),
        ("'/home/ann', (/home/ann) or /home/ann, or /home/ann", "'~', (~) or ~, or ~"),
        ("train 'data.path=/home/ann/a b.txt' --out /home/ann", "train 'data.path=~/a b.txt' --out ~"),
    ],
)
def test_only_what_is_in_the_home_folder_is_written_with_a_tilde(
    text: str, masked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: PurePosixPath("/home/ann"))
    assert without_home({"value": [text]}) == {"value": [masked or text]}
