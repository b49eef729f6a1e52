"""Every call of a reward ends in a finite number, or in one line that names the reward and shows the texts."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from positron.config import RewardConfig
from positron.rewards import open_reward
from positron.rewards.checking import checked
from positron.rewards.limits import TooSlow, call_within
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line

BRIEF = 0.05  # seconds: a limit that the test reaches on purpose
LONG = 60.0  # seconds: a limit that is never reached


def message(reward, prompt="a prompt", completion="a completion", seconds=LONG) -> str:
    with pytest.raises(UserError) as error:
        checked(reward, "mine.my_reward", seconds)(prompt, completion)
    text = str(error.value)
    assert text.startswith("reward mine.my_reward ")
    assert "\n" not in text
    return text


# Results


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        0.5,
        -3.0,
        Fraction(1, 2),
        np.float32(0.5),
        np.int64(2),
        np.bool_(True),
        np.array(0.5),
        torch.tensor(0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_number_of_any_library_becomes_a_float(value):
    result = checked(lambda prompt, completion: value, "r", LONG)("", "")
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned None"),
        (float("nan"), "returned nan"),
        (float("inf"), "returned inf"),
        (10**400, "returned inf"),
        (np.float64("-inf"), "returned -inf"),
        ("1.0", "returned a str"),
        ([0.5], "returned a list of length 1"),
        ((1, 2), "returned a tuple of length 2"),
        (1j, "returned a complex"),
        (np.complex128(1), "returned a numpy.complex128 of shape ()"),
        (np.zeros((2, 3)), "returned a numpy.ndarray of shape (2, 3)"),
        (np.zeros(1), "returned a numpy.ndarray of shape (1,)"),
        (np.array("1"), "returned a numpy.ndarray of shape ()"),
        (torch.zeros(1), "returned a torch.Tensor of shape (1,)"),
    ],
    ids=str,
)
def test_anything_else_is_refused_with_what_it_is(value, said):
    text = message(lambda prompt, completion: value)
    assert f"{said}, which is not a finite number" in text
    assert '"a prompt"' in text
    assert '"a completion"' in text


# Errors


def divide(prompt: str, completion: str) -> float:
    return 1 / len(completion)


@pytest.mark.parametrize("debug", ["0", "1"])
def test_an_error_is_one_line_and_with_positron_debug_a_traceback_of_the_function(debug, monkeypatch, capsys):
    monkeypatch.setenv("POSITRON_DEBUG", debug)
    with pytest.raises(SystemExit) as left, errors_as_one_line():
        checked(divide, "mine.divide", LONG)("a prompt", "")
    assert left.value.code == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert (
        'mine.divide raised ZeroDivisionError: division by zero, for the prompt "a prompt" and the completion ""'
        in line
    )
    assert any("in divide" in text for text in before) == (debug == "1")
    assert bool(before) == (debug == "1")


def test_the_wrong_number_of_arguments_is_named():
    assert "takes 1 positional argument but 2 were given" in message(lambda prompt: 1.0)


def test_a_function_that_ends_the_program_does_not_end_it():
    def leave(prompt, completion):
        raise SystemExit(3)

    assert "raised SystemExit: 3" in message(leave)


def test_ctrl_c_is_not_an_error_of_the_function():
    def interrupted(prompt, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(interrupted, "r", LONG)("", "")


def test_errors_with_several_lines_and_long_texts_are_shortened():
    def fails(prompt, completion):
        raise ValueError("first\nsecond\x1b[31m" + "x" * 1000)

    text = message(fails, "begin " + "p" * 5000 + " end", "one\ntwo")
    assert len(text) < 800
    assert '"begin ppp' in text
    assert 'ppp end"' in text
    assert r'"one\ntwo"' in text
    assert "\x1b" not in text


# Time


def endless(prompt: str = "", completion: str = "") -> float:
    while True:
        pass


def test_an_endless_loop_ends():
    assert f"took longer than reward.max_seconds={BRIEF}" in message(endless, seconds=BRIEF)


def test_an_endless_loop_that_catches_exceptions_ends():
    def stubborn(prompt, completion):
        while True:
            with contextlib.suppress(Exception):
                endless()

    assert "took longer" in message(stubborn, seconds=BRIEF)


def test_an_exponential_regular_expression_ends():
    reward = open_reward(RewardConfig("regex", pattern="(a+)+b", max_seconds=BRIEF), [])
    assert reward("", "aab") == 1
    with pytest.raises(UserError, match="reward regex took longer"):
        reward("", "a" * 60)


def test_a_wait_ends():
    assert "took longer" in message(lambda prompt, completion: time.sleep(3600), seconds=BRIEF)


def test_a_call_during_which_the_process_was_paused_is_repeated():
    times = iter([2 * BRIEF, 0])
    reward = checked(lambda prompt, completion: time.sleep(next(times)) or 3, "slow_once", BRIEF)
    assert reward("", "") == 3


def test_a_call_that_outlasts_the_limit_in_c_code_is_refused_when_it_returns(monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("positron.rewards.limits._interrupted_after", lambda seconds, function: function())
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(TooSlow):
        call_within(99.0, lambda: 1)


def test_in_another_thread_the_time_is_measured_and_no_timer_is_set(monkeypatch):
    monkeypatch.setattr(signal, "setitimer", lambda *_: pytest.fail("no timer in a thread"))
    caught: list[BaseException] = []

    def work():
        try:
            assert call_within(LONG, lambda: 2) == 2
            call_within(BRIEF, lambda: time.sleep(2 * BRIEF))
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [TooSlow]


@pytest.mark.parametrize("function", [lambda: 1, endless, lambda: 1 / 0], ids=["returns", "too slow", "raises"])
def test_no_thread_no_timer_and_no_handler_is_left(function):
    if sys.platform == "win32":
        pytest.skip("Windows has no timer that interrupts Python")
    handler, threads = signal.getsignal(signal.SIGALRM), threading.active_count()
    with contextlib.suppress(TooSlow, ZeroDivisionError):
        call_within(BRIEF, function)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert threading.active_count() == threads


def test_a_timer_of_the_calling_program_goes_off_after_the_call():
    if sys.platform == "win32":
        pytest.skip("Windows has no timer that interrupts Python")
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: rung.append(signum))
    try:
        signal.setitimer(signal.ITIMER_REAL, BRIEF)
        assert call_within(LONG, lambda: time.sleep(2 * BRIEF) or not rung)
        while not rung:
            signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == [signal.SIGALRM]


# Functions of the user


def test_a_function_of_the_user_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "reward_module_of_a_user.py").write_text(
        "def ends(prompt, completion):\n    return completion.endswith('.')\n\nCONSTANT = 3\n"
    )
    (tmp_path / "broken_module_of_a_user.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    reward = open_reward(RewardConfig("custom", function="reward_module_of_a_user.ends"), ["any prompt"])
    assert reward("", "It ends.") == 1
    assert reward.terms[0].name == "reward_module_of_a_user.ends"
    for name, said in (
        ("reward_module_of_a_user.CONSTANT", "is of type int"),
        ("reward_module_of_a_user.begins", "has no attribute begins"),
        (
            "no_such_module.reward",
            "No module named 'no_such_module'): correct the name, or start this command in the folder that contains the module",
        ),
        ("broken_module_of_a_user.reward", "No module named 'no_such_module'): install the missing module, or correct"),
        ("reward", "must name a module"),
    ):
        with pytest.raises(UserError, match=re.escape(f"reward.function={name}")) as error:
            open_reward(RewardConfig("custom", function=name), [])
        assert said in str(error.value)
