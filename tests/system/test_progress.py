"""Work that takes long shows how far it is; work that does not shows nothing."""

from __future__ import annotations

import errno
import io
import sys
import time

import pytest

from positron.system.console import say
from positron.system.progress import Meter, clock, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the module sees; each look at it takes a second."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    return now


@pytest.mark.parametrize(("count", "lines"), [(3, 0), (10, 1), (40, 3)])
def test_a_file_gets_a_line_now_and_then_after_three_seconds(
    clock_at: list[float], monkeypatch: pytest.MonkeyPatch, count: int, lines: int
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress(range(count), "scoring")) == list(range(count))
    said = stream.getvalue().splitlines()
    assert len(said) == lines
    assert all(line.startswith("scoring: ") and line.endswith(" left") and "%" in line for line in said)


def test_a_terminal_gets_a_bar_that_is_taken_away(clock_at: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    list(progress(list("abcdefghij"), "writing"))
    text = stream.getvalue()
    assert "writing [##" in text
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")


def test_an_unknown_total_is_shown_as_an_amount(clock_at: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Meter("tokenizing", None, unit=1e-6) as meter:
        for done in range(1, 9):
            meter.show(done * 3_000_000)
    assert stream.getvalue() == "tokenizing: 12 MB\n"


def test_work_that_is_continued_foretells_by_what_was_done_since(
    clock_at: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Meter("tokenizing", 100.0, amount=90.0) as meter:
        for done in range(91, 97):
            meter.show(done)
    assert stream.getvalue() == "tokenizing: 94%, 0:06 left\n"
    assert clock(3723) == "1:02:03"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_closed_terminal_does_not_end_the_work(
    clock_at: list[float], monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    """As after `ssh HOST positron ...` whose connection has ended."""

    class Closed(stream):  # type: ignore[valid-type]
        def write(self, _: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert list(progress(range(10), "scoring")) == list(range(10))
    monkeypatch.setattr(sys, "stderr", Closed())
    say("and a line")
