"""The policy of waiting threads, and what other programs take of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from positron.system import threads
from positron.system.threads import OtherPrograms, describe_others


def environment_after(package: str, then: str = "", **given: str) -> dict[str, str]:
    """Return the variables that a fresh process has after importing `package` and the statement `then`."""
    code = f"import os, json, {package}; {then}\nprint(json.dumps(dict(os.environ)))"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "OPENBLAS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True, timeout=300
    )
    import json

    values: dict[str, str] = json.loads(done.stdout)
    return values


def test_threads_wait_briefly_unless_the_user_chose_otherwise() -> None:
    assert environment_after("positron")["GOMP_SPINCOUNT"] == str(threads.SPIN_TRAINING)
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "200")):
        after = environment_after("positron", **{name: value})
        assert after[name] == value
        assert after.get("GOMP_SPINCOUNT") in (None, "7")


def test_writing_waits_longer_than_training_and_never_against_the_user() -> None:
    write = "from positron.system.threads import *; spin(SPIN_WRITING)"
    assert environment_after("positron", write)["GOMP_SPINCOUNT"] == str(threads.SPIN_WRITING)
    assert environment_after("positron", write, GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"


def test_the_numpy_reference_multiplies_in_one_thread_unless_the_user_chose_otherwise() -> None:
    assert environment_after("numpy_ref")["OPENBLAS_NUM_THREADS"] == "1"
    assert environment_after("numpy_ref", OPENBLAS_NUM_THREADS="2")["OPENBLAS_NUM_THREADS"] == "2"
    assert "OPENBLAS_NUM_THREADS" not in environment_after("numpy_ref", OMP_NUM_THREADS="2")


@pytest.mark.parametrize(
    ("before", "after", "cores"),
    [
        ((0.0, 0.0, 0.0), (10.0, 15.0, 12.0), 0.3),  # 15 CPU seconds in 10 s, 12 of them our own
        ((0.0, 0.0, 0.0), (10.0, 12.0, 12.5), 0.0),  # rounding never makes others negative
        (None, (10.0, 12.0, 2.0), None),
        ((0.0, 0.0, 0.0), None, None),
        ((0.0, 0.0, 0.0), (0.01, 1.0, 0.0), None),  # clock ticks are too coarse for this
    ],
)
def test_cores_of_other_programs_are_what_is_busy_without_our_own(monkeypatch, before, after, cores) -> None:
    readings = iter([before, after])
    monkeypatch.setattr(threads, "_busy_seconds", lambda: next(readings))
    found = OtherPrograms().cores()
    assert found == (None if cores is None else pytest.approx(cores))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_a_busy_program_beside_this_one_is_seen() -> None:
    others = OtherPrograms()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)  # long enough for the clock ticks that the system counts in
        found = others.cores()
    finally:
        busy.kill()
        busy.wait()
    assert found is not None
    assert found > 0.05


def test_little_company_is_not_mentioned() -> None:
    assert describe_others(None) == describe_others(0.2) == ""
    assert describe_others(1.3, 2) == "other programs keep 1.3 of 2 cores busy"
    assert describe_others(2.4, 2) == "other programs keep 2.0 of 2 cores busy"
