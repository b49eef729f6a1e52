"""metrics.jsonl has one writer, and one idea of a damaged line for who reads it whole and for who follows it."""

import errno
import json
import math
from pathlib import Path

import pytest

from positron.dashboard.curves import Metrics
from positron.run import lines
from positron.run.metrics import append_row, read_metrics
from positron.system.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_rows_are_read_back_as_they_were_written_to_the_last_bit(path: Path) -> None:
    rows = [{"step": step, "train/loss": 1 / 3 / step, "n": 2**53 + step, "val/bpb": 5e-324} for step in range(1, 9)]
    for row in rows:
        append_row(path, row)
    assert read_metrics(path) == rows


def test_numbers_that_json_does_not_have_are_written_as_null(path: Path) -> None:
    append_row(path, {"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": 0.0})
    assert read_metrics(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": None, "e": 0.0}]
    json.loads(path.read_text(), parse_constant=pytest.fail)


DAMAGED = {
    "not json": b"train/loss 3",
    "two objects": b'{"step": 2} {"step": 3}',
    "empty": b"",
    "not utf-8": b'{"step": 2, "\xff": 1}',
    "nested": b'{"step": ' + b"[" * 100_000,
    "a list": b'["step", 2]',
    "no step": b'{"train/loss": 1.0}',
    "a step with a fraction": b'{"step": 2.5}',
    "a step that was before": b'{"step": 1}',
    "a negative step": b'{"step": -2}',
    "a value that is text": b'{"step": 2, "train/loss": "low"}',
    "a value that is NaN": b'{"step": 2, "train/loss": NaN}',
    "a value that no float holds": b'{"step": 2, "train/loss": 1e999}',
    "a value that is a flag": b'{"step": 2, "train/loss": true}',
    "a value that is an object": b'{"step": 2, "train/loss": {}}',
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_who_reads_all_and_who_follows_name_the_same_damaged_line(path: Path, damage: bytes) -> None:
    path.write_bytes(b'{"step": 1, "a": 0.5}\n' + damage + b'\n{"step": 3, "a": 1.5}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is damaged") as error:
        read_metrics(path)
    followed = Metrics(path)
    followed.read()
    assert followed.trouble == str(error.value)
    assert list(followed.values("a")) == [0.5, 1.5]  # one who only looks shows what is left


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2, "a": 1', b'{"step": 2, "a": "\xc3', b"\0\0\0"])
def test_a_torn_last_line_is_no_row_and_no_damage(path: Path, torn: bytes) -> None:
    path.write_bytes(b'{"step": 1, "a": 0.5}\n' + torn)
    assert read_metrics(path) == [{"step": 1, "a": 0.5}]
    followed = Metrics(path)
    followed.read()
    assert (followed.trouble, list(followed.values("a"))) == ("", [0.5])


def test_a_whole_last_line_without_its_newline_is_a_row_and_followed_when_that_comes(path: Path) -> None:
    path.write_bytes(b'{"step": 1, "a": 0.5}\n{"step": 2, "a": 1.5}')
    assert [row["a"] for row in read_metrics(path)] == [0.5, 1.5]
    followed = Metrics(path)
    followed.read()
    assert list(followed.values("a")) == [0.5]
    with path.open("ab") as file:
        file.write(b"\n")
    followed.read()
    assert (followed.trouble, list(followed.values("a"))) == ("", [0.5, 1.5])


def test_lines_that_come_one_by_one_are_counted_like_those_of_a_whole_file(path: Path) -> None:
    followed = Metrics(path)
    for step in range(1, 6):
        append_row(path, {"step": step, "a": 1.0})
        followed.read()
    with path.open("a") as file:
        file.write('{"step": 5, "a": 2.0}\n')
    followed.read()
    assert "line 6 is damaged (its step 5 is not greater than the step before, 5)" in followed.trouble


def test_a_full_disk_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lines, "append_text", fill)
    with pytest.raises(
        UserError, match=r"cannot write \S+: No space left on device; free disk space, and give the same"
    ):
        append_row(tmp_path / "metrics.jsonl", {"step": 1})
