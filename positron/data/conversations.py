"""Conversations to learn from: files of instructions or chats, and requests for the built-in stories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.config import DataConfig, UserError
from positron.data.sources import side
from positron.text.conversation import ROLES, Message

SAMPLE = Path(__file__).parent / "tiny_instruct_sample.jsonl"


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    is_val: bool
    bits: float | None = None  # -log2 p of the answers given the questions, where it is known


def read_conversations(config: DataConfig) -> list[Conversation]:
    """All of them, in the file's order. Which side of the split one is on is drawn by its first question.

    UserError for a missing, empty or malformed file, naming line and field.
    """
    if config.source == "story_instruct":
        return list(story_requests(config.seed, 0, config.examples, config.val_fraction))
    path = SAMPLE if config.path is None else Path(config.path).expanduser()
    found = []
    for where, record in _records(path):
        messages = _messages(record, where)
        question = next((m.content for m in messages if m.role == "user"), "")
        found.append(Conversation(messages, side(question, config.seed, config.val_fraction)))
    if not found:
        raise UserError(f"{path} is empty: it needs one JSON object per line, or a list of them")
    return found


def story_requests(seed: int, start: int, stop: int, val_fraction: float) -> Iterator[Conversation]:
    """Requests start .. stop - 1 with their stories. Names, things and places that meet in validation never do in training."""
    from positron.data import stories

    for index in range(start, stop):
        request = stories.requests(seed, index)
        story = stories.generate(seed, index, request)
        messages = (Message("user", stories.ask(request, seed, index)), Message("assistant", story.text))
        combination = f"{request.name}|{request.object}|{request.place}"
        yield Conversation(messages, side(combination, seed, val_fraction), story.bits)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) of a .json list or of .jsonl lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read data.path={path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        yield from ((f"{path}, entry {i + 1}", record) for i, record in enumerate(records))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error


def _messages(record: Any, where: str) -> tuple[Message, ...]:
    """Alpaca's fields (instruction, input, output), or `messages` of system, user and assistant."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is no object with fields: {str(record)[:60]}")
    if "messages" in record:
        return _turns(record["messages"], where)
    for field in ("instruction", "output"):
        if not isinstance(record.get(field), str):
            raise UserError(
                f"{where} has no text in `{field}`; its fields are: {', '.join(map(str, record)) or 'none'}"
            )
    extra = record.get("input") or ""
    if not isinstance(extra, str):
        raise UserError(f"{where}: `input` is no text")
    question = record["instruction"] + (f"\n\n{extra}" if extra.strip() else "")
    return Message("user", question), Message("assistant", record["output"])


def _turns(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: `messages` is no list of messages")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise UserError(f"{where}: a message needs `role` and `content`, not {str(turn)[:60]}")
        if turn.get("role") not in ROLES:
            raise UserError(f"{where}: role {turn.get('role')!r} is none of {', '.join(ROLES)}")
        messages.append(Message(turn["role"], turn["content"]))
    return tuple(messages)
