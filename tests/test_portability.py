"""The package and its scripts call nothing that Windows lacks, and read and write text in UTF-8 on every system."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PROJECT
from portability import posix_only, without_encoding

FILES = sorted(
    path for folder in ("positron", "numpy_ref", "scripts", "docs") for path in (PROJECT / folder).rglob("*.py")
)
# file: what it does only where the system has it, by another condition than one on sys.platform
ALLOWED: dict[str, set[str]] = {}


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def test_no_code_that_windows_runs_needs_a_posix_system() -> None:
    assert len(FILES) > 200
    found = {name_of(path): posix_only(path.read_text(encoding="utf-8")) for path in FILES}
    reasons = {file: {line.split(": ", 1)[1] for line in lines} for file, lines in found.items() if lines}
    assert reasons == ALLOWED, {file: lines for file, lines in found.items() if lines}


def test_every_text_file_has_its_encoding_and_line_ends() -> None:
    found = {name_of(path): without_encoding(path.read_text(encoding="utf-8")) for path in FILES}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("import os\nos.kill(1, 0)", ["2: os.kill"]),
        ("import fcntl", ["1: import fcntl"]),
        ("from resource import getrusage", ["1: from resource import"]),
        ("from os import rename", ["1: os.rename"]),
        ("def f():\n    return signal.SIGHUP", ["2: signal.SIGHUP"]),
        (
            "for x in y:\n    try:\n        os.nice(1)\n    except OSError:\n        os.fork()",
            ["3: os.nice", "5: os.fork"],
        ),
        ("with open('/proc/stat', encoding='ascii') as f: pass", ["1: the path '/proc/stat'"]),
        ("run('ls', shell=True)", ["1: shell=True"]),
        ("subprocess.run(['bash', 'x.sh'])", ["1: the program bash"]),
        ("Popen(x, start_new_session=True)", ["1: start_new_session="]),
        ("multiprocessing.get_context('fork')", ["1: get_context('fork')"]),
        ("x = hasattr(os, 'nice')", ["1: hasattr of os.nice, which mypy cannot check: compare sys.platform"]),
        ("if sys.platform != 'win32':\n    os.nice(1)\nelse:\n    os.fork()", ["4: os.fork"]),
        ("if sys.platform == 'win32' or x:\n    os.nice(1)", ["2: os.nice"]),
        ("def f():\n    if sys.platform == 'win32':\n        x = 1\n    os.nice(1)", ["4: os.nice"]),
    ],
)
def test_a_posix_only_construct_is_found(source: str, reasons: list[str]) -> None:
    assert posix_only(source) == reasons


@pytest.mark.parametrize(
    "source",
    [
        "if sys.platform == 'linux':\n    os.sched_getaffinity(0)",
        "if sys.platform != 'win32' and x:\n    os.nice(1)",
        "if sys.platform == 'win32':\n    pass\nelif x:\n    os.nice(1)",
        "def f():\n    if not sys.platform.startswith('linux'):\n        return None\n    return open('/proc/stat')",
        "def f():\n    if sys.platform != 'linux':\n        raise SystemExit\n    os.fork()",
        "x = os.nice(1) if sys.platform == 'linux' else 0",
        "x = sys.platform == 'linux' and os.nice(1)",
        "os.replace(a, b); signal.SIGINT; '/docs/x'; subprocess.run([sys.executable])",
    ],
)
def test_what_windows_has_or_does_not_reach_is_left_out(source: str) -> None:
    assert posix_only(source) == []


@pytest.mark.parametrize(
    ("call", "reasons"),
    [
        ("path.read_text()", ["1: no encoding"]),
        ("path.write_text('a')", ["1: no encoding", "1: no newline"]),
        ("path.write_text('a', encoding='utf-8')", ["1: no newline"]),
        ("open(path)", ["1: no encoding"]),
        ("open(path, 'a', encoding='utf-8')", ["1: no newline"]),
        ("path.open('r')", ["1: no encoding"]),
        ("subprocess.run(x, text=True)", ["1: text= without encoding"]),
        ("open(path, 'rb'); path.open('wb'); archive.open(name); read_text(path)", []),
        ("path.write_text('a', encoding='utf-8', newline='\\n'); open(path, encoding='ascii')", []),
    ],
)
def test_a_file_without_encoding_or_line_ends_is_found(call: str, reasons: list[str]) -> None:
    assert without_encoding(call) == reasons
