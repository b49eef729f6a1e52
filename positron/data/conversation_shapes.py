"""Convert rows of conversations to messages. The format of a row is recognised by the names of its fields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from positron.system.commands import command
from positron.system.console import one_line
from positron.text.conversation import ROLES, Message


@dataclass(frozen=True)
class Shape:
    """Describe a format of conversations: its name, and the fields that a row of this format has.

    `fields` names either one field with the list of messages, or two fields with the question and the answer.
    """

    name: str
    fields: tuple[str] | tuple[str, str]


TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "contents", "items", "data")
_QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "user", "human", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer", "assistant", "target")
# A row has the first of these formats whose fields it contains. Upper and lower case of the names do not matter.
SHAPES = (
    *(Shape({"conversations": "ShareGPT", "data": "UltraChat"}.get(name, name), (name,)) for name in TURNS),
    Shape("Alpaca", ("instruction", "output")),
    Shape("Dolly", ("instruction", "response")),
    *(Shape(f"{question} and {answer}", (question, answer)) for question in _QUESTIONS for answer in ANSWERS),
)
SYSTEM_FIELDS = ("system", "system_prompt")
MATERIAL_FIELDS = ("input", "context")  # text that is appended to the question of a pair, after an empty line
HISTORY = "history"  # the messages before the question of a pair
ROLE_NAMES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "ai", "model", "chatbot"), "assistant"),
}
_ROLE_FIELDS, _CONTENT_FIELDS = ("role", "from", "speaker"), ("content", "value", "parts", "text")
_TOOL_FIELDS = ("tool_calls", "function_call")
_KNOWN_FORMATS = (
    "give messages (role, content), ShareGPT's conversations (from, value), or two fields such as instruction and output, "
    "prompt and completion, question and answer"
)


class Malformed(Exception):
    """Report a row that is not a valid conversation or, in a file of pairs, not a valid pair of answers.

    `message`, the text of the exception, says what is wrong with this row, such as "has a message without `role`". The user
    sees it after the position of the row: "line 3 has a message without `role`".

    `label` names the kind of mistake, such as "with a message without `role`". The user sees it in a summary, between the
    number and the positions of such rows: "2 with a message without `role` (line 3, line 8)".
    """

    def __init__(self, label: str, message: str) -> None:
        super().__init__(message)
        self.label = label


@dataclass(frozen=True)
class ParsedConversation:
    """Hold the messages of a row, the name of its format, and the names of the fields that were not used."""

    shape: str
    messages: tuple[Message, ...]
    unused: tuple[str, ...]


def parse_conversation(value: Any) -> ParsedConversation:
    """Convert a row, as parsed from JSON, to messages. Raises Malformed if the row is not a conversation."""
    if value == []:
        raise Malformed("that are an empty list", "is an empty list, not a conversation: correct or remove it")
    if isinstance(value, list):
        return ParsedConversation("list of messages", tuple(_turns(value, "the list")), ())
    if not isinstance(value, dict):
        raise Malformed(
            "that are not an object",
            f"is not an object with fields but {_kind_of(value)}: {_brief(value)}; correct or remove it",
        )
    row = fields_of(value)
    shape = shape_of(row)
    if shape is None:
        raise _unknown(row)
    used = set(shape.fields)
    if len(shape.fields) == 1:
        messages = _turns(row[shape.fields[0]], f"`{shape.fields[0]}`")
    else:
        messages = list(_pair(row, *shape.fields))
        used |= {HISTORY} if _is_turns(row[shape.fields[0]]) else {HISTORY, *MATERIAL_FIELDS}
    system = [row[name] for name in SYSTEM_FIELDS if row.get(name) not in (None, "")]
    if system and not any(message.role == "system" for message in messages):
        messages.insert(0, Message("system", _text(system[0], "system")))
        used |= set(SYSTEM_FIELDS)
    unused = tuple(name for name, cell in row.items() if name not in used and cell not in (None, "", [], {}))
    return ParsedConversation(shape.name, tuple(messages), unused)


def is_conversation(value: Any) -> bool:
    """Tell whether a JSON value is one conversation, and not a list, a table or an object of several conversations."""
    if isinstance(value, list):
        return bool(value) and (all(map(_is_turn, value)) or all(isinstance(turn, str) for turn in value))
    if not isinstance(value, dict):
        return False
    row = fields_of(value)
    shape = shape_of(row)
    if shape is None:
        return False
    if len(shape.fields) == 1:
        return isinstance(row[shape.fields[0]], list) and is_conversation(row[shape.fields[0]])
    return all(isinstance(row[name], str) or _is_turns(row[name]) for name in shape.fields)


def fields_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the fields of a row with their names in lower case. A cell with NaN, by which pandas marks no value, is None."""
    is_missing = {name: isinstance(cell, float) and math.isnan(cell) for name, cell in row.items()}
    return {str(name).strip().lower(): None if is_missing[name] else cell for name, cell in row.items()}


def shape_of(row: dict[str, Any]) -> Shape | None:
    """Return the format of a row: the first of the known formats (SHAPES) whose fields all have a value in the row.

    None does not count as a value. In a field that should contain a list of messages (one of TURNS), only a list of messages
    counts; if no format fits, any list counts. If still no format fits, return the first format whose fields all exist in the
    row, whatever their values are. If there is no such format either, return None.
    """
    # a list of texts, such as tags beside a question and an answer, is a conversation only if nothing else is
    with_turns = {name for name, cell in row.items() if cell is not None and (name not in TURNS or _is_turns(cell))}
    with_lists = with_turns | {name for name, cell in row.items() if name in TURNS and _is_list(cell)}
    for names in (with_turns, with_lists, set(row)):
        for shape in SHAPES:
            if names >= set(shape.fields):
                return shape
    return None


def _unknown(row: dict[str, Any]) -> Malformed:
    names = one_line(", ".join(row), 200) or "none"
    if "chosen" in row and "rejected" in row:
        return Malformed(
            "with pairs of preferences",
            "has a preferred and a rejected answer (`chosen`, `rejected`), but fine-tuning needs one answer: rename `chosen` "
            "to completion, or to messages if it is a list of messages",
        )
    for shape in SHAPES:
        present = [name for name in shape.fields if name in row]
        if len(shape.fields) == 2 and present:
            (missing,) = (name for name in shape.fields if name not in row)
            return Malformed(
                f"without `{missing}`",
                f"has `{present[0]}` but no field `{missing}`: add it, or rename one of the row's fields ({names})",
            )
    if "text" in row:
        return Malformed(
            "with `text`",
            f"has `text`, which does not separate questions from answers: {_KNOWN_FORMATS}; "
            f"or train on it as plain text with {command('train', 'data=text')}",
        )
    if any(name in row for name in _ROLE_FIELDS):
        return Malformed(
            "with a single message", "is a single message: give the messages of a conversation as one list in one row"
        )
    return Malformed("with unknown fields", f"has the fields {names}, which match no known format: {_KNOWN_FORMATS}")


def _pair(row: dict[str, Any], question_field: str, answer_field: str) -> Iterator[Message]:
    yield from _history(row.get(HISTORY))
    question, material = row[question_field], [name for name in MATERIAL_FIELDS if name != question_field]
    if _is_turns(question):
        for message in _turns(question, f"`{question_field}`"):
            yield Message(message.role, message.content, learn=False)
    else:
        texts = [_text(question, question_field)]
        texts += [_text(row[name], name) for name in material if row.get(name) is not None]
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise Malformed("without a question", f"has no text in `{question_field}`: correct or remove it")
        yield Message("user", "\n\n".join(texts))
    answer = row[answer_field]
    if _is_turns(answer):
        yield from _turns(answer, f"`{answer_field}`")
    else:
        yield Message("assistant", _text(answer, answer_field))


def _history(value: Any) -> Iterator[Message]:
    """Yield the messages of a `history` field, which is a list of messages or of [question, answer] pairs."""
    value = _parsed(value)
    if value in (None, "", []):
        return
    if _is_turns(value):
        yield from _turns(value, "`history`")
        return
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Malformed(
                "with an unknown `history`",
                "has a `history` that is not a list of [question, answer] pairs or messages: correct or remove it",
            )
        yield Message("user", _text(turn[0], "history"))
        yield Message("assistant", _text(turn[1], "history"))


def _turns(value: Any, field: str) -> list[Message]:
    turns = _parsed(value)
    if not isinstance(turns, list) or not turns:
        content = "an empty list" if turns == [] else _kind_of(turns)
        raise Malformed(
            f"without messages in {field}",
            f"has {content} in {field}, not a list of messages with `role` and `content`: correct or remove it",
        )
    if all(isinstance(turn, str) for turn in turns):
        name = field.strip("`")
        return [Message(("user", "assistant")[i % 2], _checked(text, name)) for i, text in enumerate(turns)]
    return [message for turn in turns for message in _turn(turn)]


def _turn(turn: Any) -> Iterator[Message]:
    if not isinstance(turn, dict):
        raise Malformed(
            "with a turn that is not a message",
            f"has a turn that is not a message: {_brief(turn)}; correct or remove it",
        )
    fields = fields_of(turn)
    role_field = next((name for name in _ROLE_FIELDS if name in fields), None)
    if role_field is None and fields and all(name in ROLE_NAMES for name in fields):  # {"user": ..., "assistant": ...}
        for name, cell in fields.items():
            yield Message(ROLE_NAMES[name], _text(cell, name))
        return
    content_field = next((name for name in _CONTENT_FIELDS if name in fields), None)
    calls = any(fields.get(name) for name in _TOOL_FIELDS)
    if role_field is None or (content_field is None and not calls):
        missing = "role" if role_field is None else "content"
        raise Malformed(
            f"with a message without `{missing}`",
            f"has a message without `{missing}` (or {_OTHER_NAMES[missing]}): {_brief(turn)}; correct or remove it",
        )
    role = fields[role_field]
    known_role = ROLE_NAMES.get(role.strip().lower()) if isinstance(role, str) else None
    if known_role is None:
        shown = one_line(str(role), 40)
        raise Malformed(f"with role {shown}", f"has a message with role {shown!r}: use one of {', '.join(ROLES)}")
    if calls:
        raise Malformed(
            "with tool calls", "has a message that calls a tool, which is not supported: remove the conversation"
        )
    weight = fields.get("weight")
    if weight not in (None, 0, 1):
        raise Malformed(f"with weight {_brief(weight)}", f"has a message with weight {_brief(weight)}: use 0 or 1")
    assert content_field is not None
    yield Message(known_role, _text(fields[content_field], content_field), learn=weight != 0)


_OTHER_NAMES = {"role": "`from`", "content": "`value`"}


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    fields = fields_of(value)
    return any(name in fields for name in _ROLE_FIELDS) or (bool(fields) and all(name in ROLE_NAMES for name in fields))


def _is_list(value: Any) -> bool:
    return isinstance(_parsed(value), list)


def _is_turns(value: Any) -> bool:
    value = _parsed(value)
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def parsed_turns(value: Any) -> Any:
    """Parse a string that contains a list of messages, as in a cell of a CSV file; return any other value unchanged."""
    parsed = _parsed(value)
    return parsed if _is_turns(parsed) else value


def _parsed(value: Any) -> Any:
    """Parse a string that contains a list of JSON objects, as in a cell of a CSV file; return any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _text(value: Any, field: str) -> str:
    """Return a text unchanged, or join a list of text parts to one text.

    Raises Malformed for other values, and for a list of several strings, because these are usually alternatives, such as all
    correct answers to a question. Only in a field `parts` are they parts of one text.
    """
    if isinstance(value, str):
        return _checked(value, field)
    if isinstance(value, list):
        if len(value) > 1 and field != "parts" and all(isinstance(part, str) for part in value):
            raise Malformed(
                f"with several texts in `{field}`",
                f"has {len(value):,} texts in `{field}`: keep one, or join them to one text",
            )
        return "".join(_part(part, field) for part in value)
    kind = _kind_of(value)
    shown = "" if value is None else f" ({_brief(value)})"
    raise Malformed(f"with {kind} in `{field}`", f"has {kind}{shown} in `{field}`, not text: correct or remove it")


def _part(part: Any, field: str) -> str:
    if isinstance(part, str):
        return _checked(part, field)
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS:
        return _checked(part["text"], field)
    kind = part.get("type") if isinstance(part, dict) else None
    kind = one_line(kind, 40) if isinstance(kind, str) else _kind_of(part)
    raise Malformed(
        f"with a part of {kind} in `{field}`",
        f"has a part in `{field}` that is not text but {kind}: remove this part, because only text is supported",
    )


_TEXT_PARTS = ("text", "input_text", "output_text", None)


def _checked(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = f"\\u{ord(text[error.start]):04x}"
        raise Malformed(
            "with half a surrogate pair",
            f"has half of a surrogate pair ({surrogate}) in `{field}`, which is not a character: remove it, or give "
            "data.on_invalid=replace to read it as \ufffd",
        ) from None
    return text


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:  # a date or bytes in a Parquet file
            return f"a value of type {type(value).__name__}"


def _brief(value: Any) -> str:
    return one_line(str(value), 60)
