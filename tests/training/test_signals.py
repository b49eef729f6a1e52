"""Signals end a run with what was learnt saved, or at once, and never as a failure; ranks of others do not concern it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FAST, PATIENCE, CommandProcess
from traces import trace, weights
from windows import as_on_windows

from positron.system.errors import Interrupted, LeftAtOnce
from positron.system.exits import ECHO_S
from positron.system.ranks import first_rank
from positron.training import signals
from positron.training.loop import Steps
from positron.training.signals import Signals

if sys.platform == "win32":
    pytest.skip("Windows sends no signals to other processes", allow_module_level=True)

ENDLESS = ("train.max_steps=100000", "train.save_every=100000", "train.val_every=100000", "train.log_every=7")


def command(name: str, *more: str) -> tuple[str, ...]:
    return ("model=debug", f"name={name}", *FAST, *more)


def under_way(training, folder: Path, rows: int = 5) -> None:
    """Wait until the run has written `rows` rows."""
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < rows:
        assert training.process.is_alive(), "it ended before it was interrupted"
        time.sleep(0.005)


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGTERM", 143)])
def test_a_signal_saves_the_last_whole_step_and_says_how_to_continue(tmp_path, start, name, code):
    folder = tmp_path / "outputs" / "long"
    training = start("train", *command("long", *ENDLESS))
    under_way(training, folder)
    os.kill(training.process.pid, getattr(signal, name))
    result = training.wait()
    assert result.code == code
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["status"], facts["error"]) == ("stopped", name)
    assert (folder / "checkpoints" / f"step-{facts['step']:06d}.ckpt").exists()
    assert trace(folder)[-1][0] == facts["step"]  # although rows are otherwise written at every seventh step
    assert result.err.splitlines()[-1] == f"saved at step {facts['step']}; the same command continues the run"
    assert "Traceback" not in result.err + (folder / "train.log").read_text()


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("once")
    assert CommandProcess("train", command("once", *SHORT), folder, "", {}).wait().code == 0
    return folder / "outputs" / "once"


SHORT = ("train.max_steps=60", "train.log_every=1", "train.save_every=7", "train.micro_batch_size=2")
TWICE = [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGHUP", "SIGTERM")]


@pytest.mark.slow
@pytest.mark.parametrize("names", TWICE)
def test_a_second_signal_leaves_at_once_and_the_next_start_is_identical(tmp_path, start, run_command, once, names):
    folder = tmp_path / "outputs" / "twice"
    running = start("train", *command("twice", *SHORT))
    under_way(running, folder)
    first, second = (getattr(signal, name) for name in names)
    os.kill(running.process.pid, first)
    while "a second signal ends the training" not in (folder / "train.log").read_text():
        assert running.process.is_alive(), "it ended before it had noted the first signal"
        time.sleep(0.001)
    # the message is written after the time in which the same signal would count as the first one
    os.kill(running.process.pid, second)
    result = running.wait()
    assert result.code in {128 + getattr(signal, name) for name in names}
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert "the same command" in result.err.splitlines()[-1]
    assert run_command("train", *command("twice", *SHORT)).code == 0
    assert trace(folder) == trace(once)
    mine, theirs = weights(folder), weights(once)
    assert all(mine[key].equal(theirs[key]) for key in theirs)


def test_signals_are_noted_first_and_obeyed_at_once_the_second_time(logged):
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        signals.can_save = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert logged == ["SIGTERM: saving the last complete step (a second signal ends the training without saving)"]
        with pytest.raises(Interrupted) as first:
            signals.leave()
        assert first.value.exit_code == 143
        with pytest.raises(LeftAtOnce) as second:
            os.kill(os.getpid(), signal.SIGINT)
        assert second.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_sent_twice_at_once_as_by_timeout_counts_once(monkeypatch):
    with Signals() as received:
        received.can_save = True
        again = threading.Timer(ECHO_S / 10, os.kill, [os.getpid(), signal.SIGTERM])
        again.start()
        os.kill(os.getpid(), signal.SIGTERM)
        again.join()
        with pytest.raises(Interrupted):
            received.leave()
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(signals, "PATIENCE_S", 0)
    mine, other = socket.socketpair()
    received = Signals(has_others=True)
    received._numbers = mine
    received._handled, received._handled_at = 1, time.monotonic()
    mine.sendall(bytes([signal.SIGTERM, signal.SIGTERM]))
    mine.close()
    received._end_without_answer(other)
    assert ended == []


def test_a_signal_before_the_first_step_is_obeyed_at_once_but_not_while_run_json_is_written():
    with Signals() as signals:
        with pytest.raises(LeftAtOnce):
            os.kill(os.getpid(), signal.SIGINT)
        written = []

        def write():
            with signals.held():
                os.kill(os.getpid(), signal.SIGINT)
                written.append("run.json")

        with pytest.raises(LeftAtOnce):
            write()
        assert written == ["run.json"]


def wait_in_python() -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_signal_in_a_finalizer_is_obeyed_after_it_and_prints_nothing(capsys):
    """Python cannot raise an exception out of the callback of a weak reference; it would print it and continue."""

    class Held:
        pass

    held = [Held()]
    called = weakref.ref(held[0], lambda _: os.kill(os.getpid(), signal.SIGINT))
    with Signals():
        held.clear()
        assert called() is None
        with pytest.raises(LeftAtOnce) as left:
            wait_in_python()
    assert left.value.exit_code == 130
    assert capsys.readouterr().err == ""


def batches(signals: Signals, batch, world_size: int = 1):
    trainer = SimpleNamespace(
        global_step=3,
        global_rank=0,
        world_size=world_size,
        strategy=SimpleNamespace(root_device=SimpleNamespace(type="cpu")),
    )
    return iter(Steps(SimpleNamespace(batch=batch), trainer, 9, signals))


def test_the_first_signal_ends_the_wait_for_a_batch_which_a_silent_network_may_never_give():
    def wait(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_in_python()

    with Signals() as signals:
        signals.can_save = True
        with pytest.raises(Interrupted) as first:
            next(batches(signals, wait))
        assert first.value.exit_code == 143
        with pytest.raises(Interrupted):  # also if the signal came before the wait
            next(batches(signals, lambda *_: wait_in_python()))


def test_a_signal_while_one_of_several_processes_waits_for_a_batch_leaves_the_others_in_step():
    with Signals() as signals:
        signals.can_save = True
        assert next(batches(signals, lambda *_: os.kill(os.getpid(), signal.SIGTERM) or [], world_size=2)) == []
        assert signals.received == signal.SIGTERM


def test_a_signal_in_a_finalizer_during_the_wait_for_a_batch_counts_as_the_first():
    class Held:
        pass

    held = [Held()]
    called = weakref.ref(held[0], lambda _: os.kill(os.getpid(), signal.SIGINT))

    def wait(*_):
        held.clear()
        wait_in_python()

    with Signals() as signals:
        signals.can_save = True
        with pytest.raises(Interrupted):
            next(batches(signals, wait))
    assert called() is None


BLOCKED = """
import hashlib
import threading

from positron.training import signals

signals.PATIENCE_S = 0.1
with signals.Signals(has_others=True) as received:
    received.can_save = True
    threading.Timer(0.5, print, ["blocked"], {"flush": True}).start()  # while the main thread is in the next line
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as in a collective, no handler is called
"""


def test_of_several_processes_one_that_waits_for_another_forever_ends_at_the_second_signal(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # not SIGINT, because the system may join two equal signals
    try:
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_signals_that_python_handles_do_not_end_one_of_several_processes_without_a_report(monkeypatch):
    read, ended = [], []

    def monotonic():
        read.append(threading.current_thread())  # the thread that receives the signals calls it for each of them
        return time.monotonic()

    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=monotonic, sleep=lambda _: None))
    monkeypatch.setattr(os, "_exit", ended.append)
    mine, other = socket.socketpair()
    mine.setblocking(False)
    previous_fd, previous = signal.set_wakeup_fd(mine.fileno()), signal.signal(signal.SIGUSR2, lambda *_: None)
    threads = set(threading.enumerate())
    try:
        with Signals(has_others=True) as received:
            received.can_save = True
            (thread,) = set(threading.enumerate()) - threads
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(LeftAtOnce):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)  # is received after it is decided what the second signal does
            while read.count(thread) < 3:
                time.sleep(0.005)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert ended == []
    finally:
        assert signal.set_wakeup_fd(previous_fd) == mine.fileno()
        signal.signal(signal.SIGUSR2, previous)
        mine.close()
        other.close()


def test_nohup_keeps_its_promise():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_on_windows_ctrl_break_saves_a_training_as_ctrl_c_does(monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)  # a signal that this system has
    before = signal.getsignal(signal.SIGUSR1)
    with as_on_windows("positron.training.signals").Signals() as signals:
        signals.can_save = True
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
}
ELASTIC = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize("left", [{"RANK": "1"}, {"NODE_RANK": "3", "LOCAL_RANK": ""}, ELASTIC, SLURM])
def test_one_device_is_the_only_process_whatever_the_environment_says(tmp_path, run_command, left):
    result = run_command("train", *command("one", "train.max_steps=2", "device=cpu"), **left)
    assert result.code == 0, result.err
    assert "finished at step 2" in result.out
    assert (tmp_path / "outputs/one/checkpoints/step-000002.ckpt").exists()
    assert "fresh start" in (tmp_path / "outputs/one/train.log").read_text()


def test_of_several_devices_the_first_rank_speaks(monkeypatch):
    for key in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    assert first_rank(2)
    monkeypatch.setenv("RANK", "1")  # of another program, because there is no torchrun
    assert first_rank(2)
    for key in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(key, "1")
        assert not first_rank(2)
        assert first_rank(1)
        monkeypatch.delenv(key)
