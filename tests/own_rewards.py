"""Rewards that tests name as `reward.function`."""

from __future__ import annotations

import os
import signal

calls_until_signal = 0  # the call number that sends SIGTERM to this process; 0: none


def short(prompt: str, completion: str) -> float:
    """Return more for shorter texts."""
    return 1 / (1 + len(completion))


def interrupted(prompt: str, completion: str) -> float:
    """Return the same as `short`, and send SIGTERM in one of the calls."""
    global calls_until_signal
    calls_until_signal -= 1
    if calls_until_signal == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return short(prompt, completion)
