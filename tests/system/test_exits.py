"""How errors become one line and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from positron.system.exits import errors_as_one_line

ROOT = Path(__file__).parents[2]


def test_a_python_without_the_packages_is_named_with_the_remedy():
    """-S hides the installed packages, as a Python does in which Positron is not installed."""
    result = subprocess.run(
        [sys.executable, "-S", "-m", "positron.train"], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{sys.executable} has no module " in line
    assert "activate the environment" in line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_sigterm_ends_a_command_after_its_cleanup_and_leaves_the_handler_of_the_caller(capsys):
    events = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("not interrupted")
        finally:
            events.extend(["cleanup", signal.getsignal(signal.SIGTERM)])

    with pytest.raises(SystemExit) as left, errors_as_one_line():
        work()
    assert left.value.code == 128 + signal.SIGTERM
    assert events == ["cleanup", signal.SIG_DFL]  # so a second signal ends the process
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_handler_of_the_caller_is_kept(handler):
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with errors_as_one_line():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)
