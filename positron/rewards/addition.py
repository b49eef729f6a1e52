"""Reward the correct sum of two numbers. No text is executed as code: the answer is compared with the digits of the sum."""

from __future__ import annotations

import re

# numbers of up to 18 digits, as in `12+34=`, `12 + 34 =` or `What is 12 + 34?`
_PROMPT = re.compile(r"\s*(?:What is )?([0-9]{1,18}) ?\+ ?([0-9]{1,18})(?: ?=|\?)?\s*")
_ANSWER = re.compile(r"\s*0*([0-9]+)\s*")


def addends(prompt: str) -> tuple[int, int] | None:
    """Return the two numbers of a prompt such as `12+34=` or `What is 12 + 34?`, or None for any other prompt."""
    match = _PROMPT.fullmatch(prompt)
    return None if match is None else (int(match[1]), int(match[2]))


def addition(prompt: str, completion: str) -> float:
    """Return 1 if the completion is the sum of the prompt's two numbers, in digits, else 0.

    White space around the digits and zeros before them are allowed; with any other character, the result is 0. Raises
    ValueError if the prompt does not ask for a sum.
    """
    numbers = addends(prompt)
    if numbers is None:
        raise ValueError("the prompt does not ask for a sum")
    answer = _ANSWER.fullmatch(completion)
    return float(answer is not None and answer[1] == str(sum(numbers)))
