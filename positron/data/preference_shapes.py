"""Convert rows with a chosen and a rejected answer to messages. The names of a row's fields determine its format.

The prompt may have any format of `conversation_shapes.py`. The parser of conversations is called twice for each row: with the
prompt and the chosen answer, and with the prompt and the rejected answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from positron.data.conversation_shapes import (
    ANSWERS,
    ROLE_NAMES,
    SHAPES,
    SYSTEM_FIELDS,
    TURNS,
    Malformed,
    ParsedConversation,
    fields_of,
    parse_conversation,
    parsed_turns,
    shape_of,
)
from positron.text.conversation import Message, is_learned

CHOSEN, REJECTED = "chosen", "rejected"
_SIDES = (CHOSEN, REJECTED)
_ANSWER = "completion"  # the field in which an answer is given to the parser of conversations
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # how HH-RLHF (arXiv:2204.05862) marks the turns in a text
_FORMATS = "give `prompt`, `chosen` and `rejected`, or only `chosen` and `rejected`, each with a whole conversation"


@dataclass(frozen=True)
class ParsedPair:
    """Hold a parsed row: its format, the messages before the answers, the two answers, and the names of unused fields."""

    shape: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    unused: tuple[str, ...]


def parse_pair(value: Any) -> ParsedPair:
    """Convert a row, as parsed from JSON, to a prompt with a chosen and a rejected answer.

    The fields `chosen` and `rejected` are texts, messages or lists of messages. Either both contain at least the last message
    of the prompt and differ only in the answer, or the prompt is in other fields. Raises Malformed if the row is not a pair of
    answers.
    """
    if not isinstance(value, dict):
        raise Malformed(
            "that are not an object",
            "is not an object with fields, such as prompt, chosen and rejected: correct or remove it",
        )
    row = {name: parsed_turns(cell) for name, cell in fields_of(value).items()}
    for side in _SIDES:
        if row.get(side) in (None, "", []):
            raise Malformed(f"without `{side}`", f"has no answer in the field `{side}`: {_FORMATS}")
    sides = [_as_turns(row[side]) for side in _SIDES]
    if all(_is_whole(side) for side in sides):
        earlier = _earlier_turns(row.get("prompt"), sides)
        sides = [[*(earlier or ()), *side] for side in sides]
        shape, parsed = "chosen and rejected conversations", _whole(row, sides)
        unread = row.keys() - {*_SIDES, *SYSTEM_FIELDS, *(() if earlier is None else ("prompt",))}
    else:
        parsed = _answers(row, sides)
        shape = f"{parsed[0].shape.removesuffix(f' and {_ANSWER}')}, chosen and rejected"
        unread = {*parsed[0].unused, *ANSWERS} - {*_SIDES}
    prompt, chosen, rejected = _split(parsed[0].messages, parsed[1].messages)
    unused = tuple(name for name, cell in row.items() if name in unread and cell not in (None, "", [], {}))
    return ParsedPair(shape, prompt, chosen, rejected, unused)


def is_pair(value: Any) -> bool:
    """Tell whether a JSON value is one pair of a chosen and a rejected answer, and not a collection of several pairs."""
    return isinstance(value, dict) and all(
        isinstance(side, str | dict)
        or (isinstance(side, list) and bool(side) and all(isinstance(t, dict) for t in side))
        for side in map(fields_of(value).get, _SIDES)
    )


def _as_turns(side: Any) -> Any:
    """Convert an answer to a list of messages if the answer is a message or a transcript; return any other answer unchanged.

    A transcript is a text in which each turn begins with Human: or Assistant:.
    """
    if isinstance(side, dict):
        return [side]
    if isinstance(side, str) and (marks := list(_TRANSCRIPT.finditer(side))) and marks[0].start() == 0:
        ends = [*(mark.start() for mark in marks[1:]), len(side)]
        return [
            {"role": mark[1].lower(), "content": side[mark.end() : end].strip()}
            for mark, end in zip(marks, ends, strict=True)
        ]
    return side


def _is_whole(side: Any) -> bool:
    """Tell whether the content of `chosen` or `rejected` is a conversation that also contains the prompt."""
    if not isinstance(side, list) or not all(isinstance(turn, dict) for turn in side):
        return False
    roles = {str(name).lower(): str(cell).lower() for turn in side for name, cell in turn.items()}
    speakers = [str(turn.get("role", turn.get("from", ""))).lower() for turn in side]
    return any(ROLE_NAMES.get(speaker) == "user" for speaker in speakers) or "user" in roles


def _earlier_turns(prompt: Any, sides: Sequence[Any]) -> list[dict[str, str]] | None:
    """Return the messages of the field `prompt` that come before the conversations `sides`.

    Usually, `prompt` repeats the beginning of both conversations, so that no message comes before them. If both begin with only
    the last messages of `prompt`, the others are returned. Returns None if not even its last message is the first of both.
    White space around a text is not compared.
    """
    turns = _as_turns(prompt)
    try:
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
        messages = list(parse_conversation({"messages": turns}).messages)
    except Malformed:
        return None
    if messages[-1].role == "assistant" and not messages[-1].content.strip():  # a transcript that ends in "Assistant:"
        messages.pop()
    texts = [(message.role, message.content.strip()) for message in messages]
    parsed = [parse_conversation({"messages": side}).messages for side in sides]
    starts = [[(message.role, message.content.strip()) for message in side] for side in parsed]
    for first in range(len(texts)):
        if all(start[: len(texts) - first] == texts[first:] for start in starts):
            return [{"role": message.role, "content": message.content} for message in messages[:first]]
    return None


def _whole(row: dict[str, Any], sides: Sequence[Any]) -> list[ParsedConversation]:
    """Parse the conversations `sides`, the contents of the fields `chosen` and `rejected`, which both contain the prompt.

    A system message in another field of `row` is added to both conversations.
    """
    system = {name: row[name] for name in SYSTEM_FIELDS if name in row}
    return [parse_conversation({"messages": side, **system}) for side in sides]


def _answers(row: dict[str, Any], sides: Sequence[Any]) -> list[ParsedConversation]:
    """Parse each of the two answers together with the prompt, which is in the other fields of the row.

    `sides`: the contents of `chosen` and `rejected`. Other fields that contain an answer, such as `completion`, are not read.
    """
    fields = {name: cell for name, cell in row.items() if name not in (*_SIDES, *ANSWERS)}
    if not {name for shape in SHAPES for name in shape.fields if name not in ANSWERS} & fields.keys():
        raise Malformed("without a prompt", f"has `chosen` and `rejected`, but no prompt: {_FORMATS}")
    shape = shape_of({**fields, _ANSWER: ""})
    if shape is not None and shape.fields[0] in TURNS and isinstance(fields[shape.fields[0]], list):
        fields["prompt"] = fields.pop(shape.fields[0])
        shape = shape_of({**fields, _ANSWER: ""})
    asked = None if shape is None else shape.fields[0]
    if asked in fields:
        prompt = _without_answer(fields[asked], sides)
        if isinstance(fields[asked], str) and prompt != fields[asked]:  # the answers continue a transcript: " Yes."
            sides = [side.strip() if isinstance(side, str) else side for side in sides]
        fields[asked] = prompt
    parsed = []
    for name, side in zip(_SIDES, sides, strict=True):
        try:
            parsed.append(parse_conversation({**fields, _ANSWER: side}))
        except Malformed as error:
            label, message = (text.replace(f"`{_ANSWER}`", f"`{name}`") for text in (error.label, str(error)))
            raise Malformed(label, message) from error
    return parsed


def _without_answer(prompt: Any, sides: Sequence[Any]) -> Any:
    """Convert a transcript or a list of messages to messages that end with a question; return any other prompt unchanged.

    An answer at the end of the prompt is left out if it is empty, like the `Assistant:` at the end of a transcript, or if it is
    one of the two answers `sides`, because some datasets also have the whole conversation with the chosen answer. Raises
    Malformed if the prompt ends with another answer: the model would learn to give two answers in a row.
    """
    turns = _as_turns(prompt)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return prompt
    try:
        messages = list(parse_conversation({"messages": turns}).messages)
    except Malformed:  # the caller parses the prompt again, and then names its field
        return prompt
    contents = [
        cell for side in sides for turn in (side if isinstance(side, list) else [side]) for cell in _cells(turn)
    ]
    answers = {"", *(content.strip() for content in contents)}
    if messages[-1].role == "assistant" and messages[-1].content.strip() in answers:
        messages.pop()
    if messages and messages[-1].role == "assistant":
        raise Malformed(
            "with a prompt that ends with an answer",
            "has a prompt that ends with an answer of the assistant: let it end with the question that `chosen` and `rejected` "
            "answer",
        )
    return [{"role": message.role, "content": message.content} for message in messages]


def _cells(turn: Any) -> list[str]:
    """Return the texts of a message, or a list with the text itself if `turn` is a text."""
    return [cell for cell in (turn.values() if isinstance(turn, dict) else [turn]) if isinstance(cell, str)]


def _split(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Split two conversations into their common beginning, which is not a target of training, and the two endings.

    Raises Malformed if the conversations are equal, or if an ending does not begin with an answer or contains only empty
    answers.
    """
    texts = [[(message.role, message.content) for message in side] for side in (chosen, rejected)]
    if texts[0] == texts[1]:
        raise Malformed("with identical sides", "has the same text in `chosen` and `rejected`: remove the pair")
    common = 0
    while common < min(map(len, texts)) and texts[0][common] == texts[1][common]:
        common += 1
    endings = chosen[common:], rejected[common:]
    for side, ending in zip(_SIDES, endings, strict=True):
        if not ending or ending[0].role != "assistant":
            raise Malformed(
                "with different prompts",
                "has different prompts in `chosen` and `rejected`: the two must differ only in the answers",
            )
        if not any(map(is_learned, ending)):
            raise Malformed(
                f"with an empty `{side}`", f"has an empty answer in `{side}`: write one, or remove the pair"
            )
    prompt = tuple(Message(message.role, message.content, learn=False) for message in chosen[:common])
    return prompt, *endings
