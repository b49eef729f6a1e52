"""How errors become one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from positron.system.errors import UserError
from positron.system.exits import ABANDONED, describe, end_despite_threads, errors_as_one_line

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


def test_a_full_disk_that_a_library_reports_is_named_with_the_remedy():
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    said = "positron: No space left on device (/tmp/x): free disk space, and give the same command again"
    assert describe(full) == (2, said)
    code, line = describe(OSError("no number"))
    assert (code, line.startswith("positron: OSError: no number")) == (1, True)


def on_full_disk(work: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose output goes to a file on a full disk, and wait for it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [sys.executable, "-c", "from positron.system.exits import *\n" + work],
            cwd=ROOT,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file of Linux")
@pytest.mark.parametrize("end", ["", "    raise SystemExit(0)\n", "    print('x' * 100_000)\n"])
def test_a_result_that_does_not_fit_on_the_disk_is_named_in_one_line(end):
    """Python writes a short text only when the command ends."""
    done = on_full_disk(f"with errors_as_one_line():\n    print('result')\n{end}")
    assert done.stderr == "positron: No space left on device: free disk space, and give the same command again\n"
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file of Linux")
def test_what_follows_an_output_does_not_depend_on_it():
    done = on_full_disk("with despite_closed_output():\n    print('result')\nraise SystemExit(3)\n")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_machine_without_a_folder_for_temporary_files_has_another_exit_code_than_a_verdict(monkeypatch):
    """`positron floor` and `reproduce` exit with 1 for a negative result."""
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/x"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError) as raised:
        tempfile.mkdtemp()
    code, line = describe(raised.value)
    assert (
        code,
        line.endswith("['/dev/null/x']: free disk space, or set the variable TMPDIR to a folder that can be written"),
    ) == (2, True)


def test_a_command_does_not_wait_for_a_thread_whose_result_nobody_needs(monkeypatch):
    codes, ended = [], threading.Event()
    monkeypatch.setattr(os, "_exit", codes.append)

    def fail():
        with pytest.raises(SystemExit), end_despite_threads(), errors_as_one_line():
            raise UserError("wrong")

    fail()
    assert codes == []
    thread = threading.Thread(target=ended.wait, name=ABANDONED)
    thread.start()
    fail()
    with end_despite_threads(), errors_as_one_line():
        pass
    ended.set()
    thread.join()
    assert codes == [2, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_after_its_cleanup_and_leaves_the_handler_of_the_caller(capsys, name):
    events, signum = [], getattr(signal, name)

    def work():
        try:
            os.kill(os.getpid(), signum)
            events.append("not interrupted")
        finally:
            events.extend(["cleanup", signal.getsignal(signum)])

    previous = signal.signal(signum, signal.SIG_DFL)  # the program that runs the tests may ignore SIGHUP
    try:
        with pytest.raises(SystemExit) as left, errors_as_one_line():
            work()
        assert left.value.code == 128 + signum
        assert events == ["cleanup", signal.SIG_DFL]  # so a second signal ends the process
        assert capsys.readouterr().err == ""
        assert signal.getsignal(signum) is signal.SIG_DFL
    finally:
        signal.signal(signum, previous)


SENT_TWICE = """
import os, signal, threading, time
from positron.system.exits import errors_as_one_line

with errors_as_one_line():
    try:
        threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGTERM]).start()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        time.sleep(0.1)
        print("cleanup")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_a_sigterm_that_is_sent_twice_at_once_as_by_timeout_leaves_time_for_the_cleanup():
    result = subprocess.run(
        [sys.executable, "-c", SENT_TWICE], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (128 + signal.SIGTERM, "cleanup\n", "")


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to other processes")
@pytest.mark.parametrize("start", ["from positron.cli import main; main()", "-m"])
def test_ctrl_c_while_a_command_is_imported_prints_one_line(tmp_path, start):
    """A module that the command imports first stands in for the moment of the signal."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'positron.cli.hydra_app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt)\n"
    )
    words = ["-m", "positron.train"] if start == "-m" else ["-c", start, "train"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.stderr == "positron: interrupted\n"
    assert result.returncode == -signal.SIGINT  # a shell reports 130
