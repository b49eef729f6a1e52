"""Child processes: they do not run the script of the user that starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from positron.system.children import worker_processes

SCRIPT = """
print("the script runs")

from positron.system.children import CHILDREN

process = CHILDREN.Process(target=print, args=("the child runs",))
process.start()
process.join()
print("exit code", process.exitcode)
"""

WATCHING = """
import os, time

from positron.system.children import end_with

end_with(os.getppid())
print("watching", flush=True)
time.sleep(30)
print("still here")
"""

TRAINING = """
import positron
from positron.data import shards

shards.SMALL_CORPUS_BYTES = 0  # so that processes write the text as tokens
run = positron.train("debug", data=["a text of some words. " * 20] * 400, max_steps=1, tokenizer="char", name="script")
print(run.folder.name)
"""


def test_a_child_does_not_run_a_script_that_has_no_main_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert sorted(result.stdout.splitlines()) == ["exit code 0", "the child runs", "the script runs"], result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_child_of_subprocess_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(WATCHING)
    start = "import subprocess, sys; subprocess.run([sys.executable, 'child.py'])"
    command = [sys.executable, "-c", start]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "watching\n"
    parent.kill()
    assert parent.stdout.read() == ""  # the child has closed it, too; without `end_with`, it would print a line
    assert parent.wait() == -9


def test_no_more_processes_than_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    for system, number in (("linux", 2), ("darwin", 96), ("win32", 61)):
        monkeypatch.setattr(sys, "platform", system)
        assert worker_processes() == number


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_train(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TRAINING)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["script"], result.stderr
