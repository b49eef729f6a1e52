"""The one chat template: messages -> ids and which of them carry loss. SFT, chat, evaluation and export all use this.

    <|endoftext|> [<|system|> text <|end|>] <|user|> text <|end|> <|assistant|> text <|end|> <|user|> ...

Loss is on what the assistant says and on the <|end|> after it, so that it learns to stop. The markers are ids that no
text can spell: whoever types `<|end|>` has typed seven characters and ends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from positron.text.tokenizer import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant")
MARKERS = tuple(f"<|{role}|>" for role in ROLES)
END = "<|end|>"
TEMPLATE = {"version": 1, "begin": END_OF_TEXT, "markers": list(MARKERS), "end": END}


@dataclass(frozen=True)
class Message:
    role: str  # one of ROLES
    content: str
    learn: bool = True  # whether fine-tuning learns from it, if the assistant says it


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids of the whole conversation, and True for those that the assistant learns to say: never an empty answer."""
    ids, scored = [tokenizer.special_id(END_OF_TEXT)], [False]
    for message in messages:
        text = [*tokenizer.encode(message.content), tokenizer.special_id(END)]
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *text]
        scored += [False, *[is_learned(message)] * len(text)]
    return ids, scored


def is_learned(message: Message) -> bool:
    """Whether fine-tuning learns from this message."""
    return message.role == "assistant" and message.learn and bool(message.content.strip())


def prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids of the conversation so far, up to where the assistant begins to speak."""
    return [*encode(messages, tokenizer)[0], tokenizer.special_id("<|assistant|>")]


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """What ends an answer: its <|end|>, and any other marker, should a model ever write one inside of an answer."""
    return [tokenizer.special_id(token) for token in (END, END_OF_TEXT, *MARKERS)]


def fit(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> tuple[list[Message], int]:
    """The conversation without its oldest turns, so that the prompt has at most `limit` tokens: (messages, turns lost).

    A system message stays; a turn goes whole, question and answer. What is left of a last question that is too long
    for itself alone is its end.
    """
    system = [m for m in messages[:1] if m.role == "system"]
    rest, lost = list(messages[len(system) :]), 0
    # each message is encoded once: a long conversation must not take the square of its length
    sizes = [len(tokenizer.encode(message.content)) + 2 for message in rest]  # with its marker and its <|end|>
    size = len(prompt(system, tokenizer)) + sum(sizes)
    first = 0
    while size > limit and len(rest) - first > 1:
        size -= sizes[first]
        first += 1
        while rest[first].role == "assistant" and len(rest) - first > 1:
            size -= sizes[first]
            first += 1
        lost += 1
    rest = rest[first:]
    if len(prompt([*system, *rest], tokenizer)) > limit:
        room = limit - len(prompt([*system, Message("user", "")], tokenizer))
        if room < 1 and system:
            return fit(rest, tokenizer, limit)
        kept = tokenizer.encode(rest[-1].content)[-max(1, room) :]
        rest[-1] = Message(rest[-1].role, tokenizer.decode(kept))
    return [*system, *rest], lost
