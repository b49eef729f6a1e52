"""Streams that a parent left closed or in another encoding, and text that a terminal would obey."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import PATIENCE

from numpy_ref import command_line
from positron.system import console
from positron.system.command_parser import CommandParser
from positron.system.console import Screen, one_line, printable
from positron.system.errors import UserError


@pytest.mark.parametrize("open_streams", [console.open_streams, command_line.open_streams])
def test_on_windows_pipes_and_files_are_utf_8(
    open_streams: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", write_through=True, newline="\n"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größe 日本".encode()), encoding="cp1252"))
    open_streams()
    if open_streams is console.open_streams:  # numpy_ref reads no input
        assert sys.stdin.read() == "größe 日本"
    print("größe 日本")
    assert written.getvalue() == "größe 日本\n".encode()


@pytest.mark.parametrize("redirection", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_become_the_null_device(redirection: str) -> None:
    if sys.platform == "win32":
        pytest.skip("needs a Unix shell")
    code = (
        "import sys; from positron.system.console import open_streams; open_streams();"
        "print('x', file=sys.stderr); print('y'); sys.stdin.isatty(); sys.stderr.isatty()"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" {redirection}'], timeout=PATIENCE, check=False
    )
    assert done.returncode == 0


def test_characters_outside_the_encoding_are_replaced() -> None:
    if sys.platform == "win32":
        pytest.skip("streams are UTF-8 on Windows")
    code = "from positron.system.console import open_streams; open_streams(); print('كتاب ok')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "cp1252", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        timeout=PATIENCE,
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wrapped(pieces: list[str], monkeypatch: pytest.MonkeyPatch, columns: int = 12) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    screen = Screen(terminal)
    for piece in pieces:
        screen.write(piece)
    screen.flush()
    return terminal.getvalue()


def test_lines_break_between_words_however_the_text_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Once upon a time there was a kite.\n\nIt flew  away, high"
    wanted = "Once upon a\ntime there\nwas a kite.\n\nIt flew \naway, high".replace("flew \n", "flew\n")
    for size in (1, 2, 3, 7, 100):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert wrapped(pieces, monkeypatch) == wanted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("twelve chars", "twelve chars"),  # exactly as wide as the terminal
        ("a incomprehensibilities b", "a\nincomprehensibilities b"),  # too long for any line
        ("漢字漢字漢字漢字", "漢字漢字漢字\n漢字"),  # two columns each, and no spaces
        ("the end \x1b[31m", "the end\n\\x1b[31m"),
        ("", ""),
    ],
)
def test_words_of_every_kind_stay_whole(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrapped(list(text), monkeypatch) == shown


def test_a_pipe_gets_every_piece_at_once_and_no_line_breaks_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    pipe = io.StringIO()
    screen = Screen(pipe)
    screen.write("a long text that stays on one lin")
    assert pipe.getvalue() == "a long text that stays on one lin"
    screen.write("e\r")
    screen.write("\nb")
    screen.line()
    assert pipe.getvalue() == "a long text that stays on one line\nb\n"


def test_ctrl_c_while_a_command_is_imported_is_one_line():
    code = "import sys; sys.argv = ['-m']; import positron; raise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.stderr == "positron: interrupted\n"
    assert result.returncode != 0


def test_the_doctor_explains_itself(run_command):
    result = run_command("doctor", "--help")
    assert result.code == 0
    assert "one line per check" in result.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "a b"], "--port 'a b' is not a possible value: give a whole number"),
        (["--heat", "x"], "--heat 'x' is not a possible value: give a number"),
        (["--to", "ggu"], "--to 'ggu' is not a possible value: choose from .*hf.*, .*gguf.*"),
    ],
)
def test_a_wrong_value_of_an_option_is_named_with_the_possible_values(options, said):
    parser = CommandParser("export", "")
    parser.add_argument("--port", type=int)
    parser.add_argument("--heat", type=float)
    parser.add_argument("--to", choices=("hf", "gguf"))
    with pytest.raises(UserError, match=f"^{said}$"):
        parser.parse_args(options)


def test_a_wrong_option_is_one_line_with_the_nearest_right_one(run_command):
    result = run_command("generate", "Tom", "--max-token=5", "--tempratur", "0")
    assert result.code == 2
    assert result.err == "positron: unrecognized arguments: --tempratur 0; did you mean --temperature?\n"
    for option in ("--html", "-x"):
        result = run_command("compare", "a", option)
        assert result.err.startswith(f"positron: unrecognized arguments: {option}; python -m positron.compare --help")


@pytest.mark.slow
def test_a_reader_that_ends_early_is_no_error():
    import subprocess
    import sys

    for arguments in (["positron.train", "--help"], ["positron", "--help"]):
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
