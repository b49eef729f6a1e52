"""Where lines go: each to the screen and to the log of its own run, whatever happens to either."""

import contextvars
import io
import logging
import queue
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PROJECT, tiny
from tqdm import tqdm

from positron.cli import MODULES
from positron.data.hub_download import BackgroundCall
from positron.system.errors import UserError
from positron.system.log import log_received, log_to_queue, run_log, screen_log
from positron.training.resume import open_session

logger = logging.getLogger("positron.tests")


def kept(path: Path) -> list[str]:
    """Return the lines of a log without their times."""
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in path.read_text().splitlines()]


def fail(error: Exception) -> None:
    raise error


def test_a_line_is_shown_and_kept_with_its_time_and_a_warning_says_so(tmp_path, capsys):
    with run_log(tmp_path / "train.log", prefix="job 3: "):
        logger.info("100% done")
        logger.warning("nearly")
        logger.debug("not for the user")
    assert capsys.readouterr().err == "job 3: 100% done\njob 3: WARNING: nearly\n"
    assert kept(tmp_path / "train.log") == ["100% done", "WARNING: nearly"]
    written = time.strptime((tmp_path / "train.log").read_text()[:19], "%Y-%m-%d %H:%M:%S")
    assert abs(time.mktime(written) - time.time()) < 3600


def test_text_from_files_cannot_forge_a_line(tmp_path, capsys):
    with run_log(tmp_path / "train.log"):
        logger.info("a\n2026-01-01 00:00:00 forged\x1b[2J")
    assert capsys.readouterr().err == "a\\n2026-01-01 00:00:00 forged\\x1b[2J\n"
    assert len(kept(tmp_path / "train.log")) == 1


def test_only_the_first_rank_shows_and_writes(tmp_path, capsys):
    with run_log(tmp_path / "train.log", is_first_rank=False):
        logger.warning("of another rank")
    with pytest.raises(UserError), run_log(tmp_path / "train.log", is_first_rank=False):
        fail(UserError("no"))
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "train.log").exists()


def test_lines_of_two_runs_in_two_threads_reach_their_own_logs(tmp_path):
    meet = threading.Barrier(2, timeout=60)

    def train(name: str) -> None:
        with open_session(tmp_path / name, tiny(tmp_path), time.monotonic()):
            for i in range(50):
                meet.wait()
                logger.info(f"{name} {i}")

    threads = [threading.Thread(target=train, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        lines = kept(tmp_path / name / "train.log")
        assert lines[-51:] == [f"fresh start in {tmp_path / name}", *(f"{name} {i}" for i in range(50))]


def test_lines_of_a_background_fetch_reach_the_log_of_its_run(tmp_path):
    def fetch():
        logger.info("fetching a.parquet")
        return Path("a.parquet")

    with run_log(tmp_path / "train.log"):
        assert BackgroundCall(fetch).result() == Path("a.parquet")
    assert kept(tmp_path / "train.log") == ["fetching a.parquet"]


def test_what_another_process_logs_is_logged_by_the_one_that_started_it(logged):
    lines = queue.SimpleQueue()
    process = contextvars.copy_context()
    process.run(log_to_queue, lines)
    process.run(logger.warning, "the disk is nearly full")
    assert logged == []
    log_received(lines.get_nowait())
    assert logged == ["WARNING: the disk is nearly full"]


def test_outside_of_runs_and_commands_only_warnings_are_shown(capsys):
    logger.info("loading")
    logger.warning("best.ckpt is damaged")
    assert capsys.readouterr().err == "WARNING: best.ckpt is damaged\n"


def test_a_configured_root_logger_does_not_double_lines_and_a_handler_of_ones_own_receives_them(capsys):
    package, root = logging.getLogger("positron"), logging.getLogger()
    own, of_the_program = (logging.StreamHandler(io.StringIO()) for _ in range(2))
    root.addHandler(of_the_program)
    package.addHandler(own)
    try:
        with screen_log():
            logger.info("one")
    finally:
        root.removeHandler(of_the_program)
        package.removeHandler(own)
    assert (capsys.readouterr().err, own.stream.getvalue(), of_the_program.stream.getvalue()) == ("one\n", "one\n", "")


def test_a_terminal_that_was_closed_does_not_end_the_run(tmp_path, monkeypatch):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    monkeypatch.setattr("sys.stderr", Gone())
    with run_log(tmp_path / "train.log"):
        logger.info("one")
        logger.info("two")
    assert kept(tmp_path / "train.log") == ["one", "two"]


def test_a_log_that_cannot_be_written_is_told_once(tmp_path, capsys):
    path = tmp_path / "gone" / "train.log"
    with run_log(path):
        logger.info("first")
        logger.info("second")
        assert capsys.readouterr().err.count("WARNING: cannot write") == 1
        path.parent.mkdir()
        logger.info("third")
        assert kept(path) == ["third"]
        path.unlink()
        path.parent.rmdir()
        logger.info("fourth")
        assert capsys.readouterr().err.count("WARNING: cannot write") == 1


def test_the_reason_why_a_run_ended_is_in_its_log(tmp_path, capsys):
    with pytest.raises(UserError), run_log(tmp_path / "expected.log"):
        fail(UserError("give another name="))
    assert kept(tmp_path / "expected.log") == ["positron: give another name="]
    with pytest.raises(ZeroDivisionError), run_log(tmp_path / "unexpected.log"):
        fail(ZeroDivisionError("by nothing\nat all"))
    first, *trace = kept(tmp_path / "unexpected.log")
    assert first == "positron: ZeroDivisionError: by nothing at all (POSITRON_DEBUG=1 shows the traceback)"
    assert any(line.endswith("in fail") for line in trace)
    assert all(line.startswith("    ") for line in trace)
    assert capsys.readouterr().err == ""  # the command says it, at its end


def test_a_line_stands_above_the_progress_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with screen_log(), tqdm(total=2, desc="training", ncols=40) as bar:
        bar.update()
        logger.info("half of it")
        shown = sys.stderr.getvalue()
    before, after = shown.split("half of it\n")
    assert before.rpartition("\r")[2].strip() == ""  # the bar was wiped first
    assert "training" in after  # and drawn again


def test_every_module_logs_under_the_name_of_the_package():
    """A command that `python -m` runs is called `__main__`."""
    for path in (PROJECT / "positron").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        is_command = path.parent.name == "positron" and path.stem in MODULES
        if is_command and "logging.getLogger(" in source:
            assert f'logging.getLogger("positron.{path.stem}")' in source, path
