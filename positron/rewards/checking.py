"""Check each call of a reward: turn a failure into a one-line error that shows the prompt and the completion."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from positron.rewards.limits import TooSlow, call_within
from positron.rewards.reward import Reward
from positron.system.console import one_line
from positron.system.errors import UserError

EXCERPT = 80  # characters of a prompt or a completion that a message shows


def checked(reward: Callable[[str, str], Any], name: str, max_seconds: float) -> Reward:
    """Return a reward that calls `reward` for at most `max_seconds` and returns a finite float.

    A call that takes longer is repeated once, because the process may have been paused during the call (Ctrl-Z). If the call
    fails, takes too long twice, or does not return a finite number, the returned reward raises UserError with `name`, the
    prompt and the completion in the message. The error of the user's function is the cause of the UserError, so that
    POSITRON_DEBUG=1 shows the traceback of the function. KeyboardInterrupt is passed on unchanged.
    """

    def call(prompt: str, completion: str) -> float:
        try:
            try:
                result = call_within(max_seconds, lambda: reward(prompt, completion))
            except TooSlow:
                result = call_within(max_seconds, lambda: reward(prompt, completion))
        except TooSlow as error:
            fault = f"took longer than reward.max_seconds={max_seconds:g}, also when it was called again"
            remedy = "make this reward faster, or give a larger reward.max_seconds="
            raise UserError(_message(name, fault, prompt, completion, remedy)) from error
        except (Exception, SystemExit) as error:  # a function of the user may fail in any way
            fault = one_line(f"raised {type(error).__name__}: {error}", 300)
            remedy = "correct the function, which must accept a prompt and a completion (POSITRON_DEBUG=1 shows the traceback)"
            raise UserError(_message(name, fault, prompt, completion, remedy)) from error
        value = _number(result)
        if value is None or not math.isfinite(value):
            fault = f"returned {_described(result) if value is None else value}, which is not a finite number"
            raise UserError(_message(name, fault, prompt, completion, "correct the function"))
        return value

    return call


def _number(result: Any) -> float | None:
    """Convert a Python number, a NumPy scalar, or a 0-dimensional array or tensor to a float; return None for anything else."""
    if getattr(result, "shape", None) == () and callable(getattr(result, "item", None)):
        result = result.item()  # a scalar or 0-dimensional array of NumPy, or a 0-dimensional tensor
    if not isinstance(result, numbers.Real):
        return None
    try:
        return float(result)
    except OverflowError:  # an integer above 1e308
        return math.inf


def _described(result: Any) -> str:
    kind = type(result)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if result is None:
        return "None"
    if (shape := getattr(result, "shape", None)) is not None:
        return one_line(f"a {name} of shape {tuple(shape)}", 100)
    return f"a {name} of length {len(result)}" if isinstance(result, list | tuple) else f"a {name}"


def _message(name: str, fault: str, prompt: str, completion: str, remedy: str) -> str:
    return f"reward {name} {fault}, for the prompt {excerpt(prompt)} and the completion {excerpt(completion)}: {remedy}"


def excerpt(text: str) -> str:
    """Return a text in quotes as one line; only the beginning and the end of a long text are kept."""
    if len(text) > EXCERPT:
        half = EXCERPT // 2
        text = f"{text[: half - 2]} ... {text[-(half - 3) :]}"
    return f'"{one_line(text)}"'
