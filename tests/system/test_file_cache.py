"""Values that were computed from files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from positron.system.errors import UserError
from positron.system.file_cache import FileCache


def test_a_value_is_computed_again_only_when_a_file_has_changed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    cache = FileCache[str](2)
    computed = list[str]()

    def compute() -> str:
        computed.append(first.read_text() + (second.read_text() if second.exists() else ""))
        return computed[-1]

    def get() -> str:
        return cache.get((first, second), compute)

    assert [get(), get()] == ["a", "a"]
    second.write_text("b")
    assert [get(), get()] == ["ab", "ab"]
    stamp = second.stat().st_mtime_ns
    second.write_text("bc")
    os.utime(second, ns=(stamp, stamp))  # only the size differs
    assert [get(), get()] == ["abc", "abc"]
    second.write_text("de")
    os.utime(second, ns=(stamp + 1, stamp + 1))  # only the time differs
    assert [get(), get()] == ["ade", "ade"]
    (tmp_path / "other").write_text("fg")
    os.utime(tmp_path / "other", ns=(stamp + 1, stamp + 1))
    os.replace(tmp_path / "other", second)  # only the file differs
    assert [get(), get()] == ["afg", "afg"]
    second.unlink()
    assert [get(), get()] == ["a", "a"]
    assert computed == ["a", "ab", "abc", "ade", "afg", "a"]


def test_the_value_used_last_stays_and_an_error_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(3)]
    cache = FileCache[int](2)
    computed = list[int]()

    def get(i: int) -> None:
        def compute() -> int:
            computed.append(i)
            return i

        assert cache.get((paths[i],), compute) == i

    for i in (0, 1, 0, 2, 0, 1):
        get(i)
    assert computed == [0, 1, 2, 1]

    def fail() -> int:
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        cache.get((tmp_path / "4",), fail)
    assert cache.get((tmp_path / "4",), lambda: 4) == 4
