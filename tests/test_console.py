"""Streams that a parent left closed or in another encoding, and text that a terminal would obey."""

from __future__ import annotations

import subprocess
import sys

import pytest

from positron.console import one_line, printable


@pytest.mark.parametrize("redirection", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_become_the_null_device(redirection: str) -> None:
    code = (
        "import sys; from positron.console import open_streams; open_streams();"
        "print('x', file=sys.stderr); print('y'); sys.stdin.isatty(); sys.stderr.isatty()"
    )
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" {redirection}'], timeout=60, check=False)
    assert done.returncode == 0


def test_characters_outside_the_encoding_are_replaced() -> None:
    code = "from positron.console import open_streams; open_streams(); print('كتاب ok')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "cp1252", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.strip() == b"???? ok"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Tom had a kite.\n\tIt flew.", "Tom had a kite.\n\tIt flew."),
        ("größe 漢字 👩\u200d🚀", "größe 漢字 👩\u200d🚀"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x9b31m\u202e\u2028\ud83d", "a\\rb\\x9b31m\\u202e\\u2028\\ud83d"),
    ],
)
def test_printable_keeps_text_and_escapes_what_a_terminal_obeys(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_cannot_forge_lines_and_is_cut() -> None:
    assert one_line("prompt\nimport os\t;") == "prompt\\nimport os\\t;"
    assert one_line("x" * 50, limit=10) == "xxxxxxx..."
