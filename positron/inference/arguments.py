"""Check the arguments of generation, and read text from the command line and from standard input.

A function that checks an argument raises UserError for a wrong type or range; the message names the argument. This module
imports only the standard library, so that commands can check their options before they import torch.
"""

from __future__ import annotations

import difflib
import numbers
import operator
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from positron.system.errors import UserError

WEIGHTS = ("fp32", "bf16", "int8")
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1  # the seeds that torch.Generator.manual_seed accepts


def shown(value: Any) -> str:
    """Return `ascii(value)` for a str and `repr(value)` for other types, cut to 60 characters, for use in a message."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def whole_number(name: str, value: Any, minimum: int | None = None) -> int:
    """Return an int or a NumPy integer as an int.

    Raises UserError, with the argument's `name` in the message, for all other types, including bool and float (even 40.0), and
    for a number below `minimum`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, not {shown(value)}") from None
    if minimum is not None and number < minimum:
        raise UserError(f"{name} must be at least {minimum}, not {shown(number)}")
    return number


def real_number(name: str, value: Any) -> float:
    """Return an int, a float or a NumPy number as a float; NaN is accepted.

    Raises UserError, with the argument's `name` in the message, for all other types, including bool, and for an int that is too
    large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{name} must be at most 1e308, not {shown(value)}") from None


def seed_of(value: Any, texts: int = 1) -> int:
    """Convert `value`, a seed, to an int, and check it.

    If several texts are generated (`texts`), the first one has the seed `value`, the second one `value` + 1, and so on. Raises
    UserError if `value` is not a whole number, or if the seed of one of the texts is outside the range that torch accepts.
    """
    seed = whole_number("seed", value)
    if not SMALLEST_SEED <= seed <= LARGEST_SEED - (texts - 1):
        limit = LARGEST_SEED - (texts - 1)
        raise UserError(f"seed must be between {SMALLEST_SEED} and {limit}, not {shown(seed)}" + _for_each(texts))
    return seed


def _for_each(texts: int) -> str:
    return "" if texts == 1 else f": the {texts} texts use the seeds from seed to seed + {texts - 1}"


def text_of(name: str, value: Any) -> str:
    """Return `value` if it is a str that can be encoded as UTF-8.

    Raises UserError, with the argument's `name` in the message, for other types, and for a str that contains a lone surrogate
    (one half of a UTF-16 surrogate pair).
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text (str), not {shown(value)}")
    for place, character in enumerate(value):
        if "\ud800" <= character <= "\udfff":
            raise UserError(
                f"{name}: character {place} is {ascii(character)[1:-1]}, half of a surrogate pair, which is not a character: "
                "read the text as UTF-8, or remove the character"
            )
    return value


def texts_of(name: str, values: Any) -> list[str]:
    """Return the items of `values`, an iterable of str, as a list.

    Raises UserError, with the argument's `name` in the message, for any other value. A single str is refused, too, because
    iterating over it would give its characters.
    """
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise UserError(f"{name} must be a list of texts, not {shown(values)}")
    return [text_of(f"{name}[{i}]", value) for i, value in enumerate(values)]


def stops_of(value: Any) -> tuple[str, ...]:
    """Return the stop strings as a tuple. `value` is one string or an iterable of strings.

    Raises UserError for other types, and if a stop string is empty.
    """
    stops = tuple(texts_of("stop", [value] if isinstance(value, str) else value))
    if "" in stops:
        raise UserError("an empty stop string would end each text at its beginning: leave it out")
    return stops


def weights_of(value: Any, label: str = "weights=") -> str:
    """Return `value` if it is the name of a number format for weights: fp32, bf16 or int8; raises UserError otherwise.

    `label` is written before the value in the message; a command gives "--weights ".
    """
    if not isinstance(value, str) or value not in WEIGHTS:
        raise UserError(f"{label}{value} is not a weight precision: choose from {', '.join(WEIGHTS)}")
    return value


def unknown(noun: str, name: Any, known: Sequence[str]) -> UserError:
    """Return the UserError for an unknown `name`. The message lists all `known` names, and suggests the most similar one.

    `noun` says what the name should denote, such as "preset".
    """
    similar = difflib.get_close_matches(str(name), known, 1, 0.6)
    hint = f"did you mean {similar[0]}? Choose" if similar else "choose"
    return UserError(f"there is no {noun} {name}: {hint} from {', '.join(known)}")


def decoded(data: bytes, label: str) -> str:
    """Decode `data` as UTF-8 text, remove a byte order mark, and convert line ends to LF.

    If the data is not UTF-8, raises UserError. The message contains `label`, a description of the data, and the first invalid
    byte.
    """
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        hint = (
            "it looks like UTF-16: save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "give it as UTF-8"
        )
        raise UserError(f"{label} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; {hint}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def argument(text: str, label: str) -> str:
    """Return a command-line argument without a byte order mark.

    If the argument is not UTF-8, raises UserError. The message contains `label`, a description of the argument, and the first
    invalid byte.
    """
    if any("\udc80" <= character <= "\udcff" for character in text):  # how Python represents bytes that are not UTF-8
        decoded(os.fsencode(text), label)
    return text_of(label, text).removeprefix("\ufeff")


def standard_input_lines(label: str) -> Iterator[tuple[str, str]]:
    """Yield (text, name) for each line of standard input when it arrives. The text includes the line end.

    `name` identifies the line in messages. For example, if `label` is "the prompt", the name of the third line is
    `line 3 of the prompt`. Raises UserError if standard input cannot be read or a line is not UTF-8.
    """
    source = getattr(sys.stdin, "buffer", sys.stdin)
    try:
        for number, line in enumerate(source, 1):
            name = f"line {number} of {label}"
            yield (decoded(line, name) if isinstance(line, bytes) else line), name
    except (OSError, ValueError) as error:  # standard input is closed, a folder, or open for writing only
        raise UserError(f"cannot read {label}: {getattr(error, 'strerror', None) or error}") from error


def read_standard_input(label: str) -> str:
    """Return all of standard input as text.

    If standard input cannot be read or is not UTF-8, raises UserError with `label`, a description of the input, in the message.
    """
    source = getattr(sys.stdin, "buffer", sys.stdin)
    try:
        content = source.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {label} from standard input: {reason}") from error
    return decoded(content, label) if isinstance(content, bytes) else content
