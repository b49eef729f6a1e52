"""Convert messages to token ids and a loss mask with the chat template, which fine-tuning, chat, evaluation and export share.

    <|endoftext|> [<|system|> text <|end|>] <|user|> text <|end|> <|assistant|> text <|end|> <|user|> ...

[...] is optional. <|system|>, <|user|> and <|assistant|> mark who speaks. The loss is computed on the assistant's text and the
<|end|> after it, so that the model learns to stop. No text encodes to the ids of the tokens in <|...|>: a typed `<|end|>` is
seven characters and ends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from positron.text.tokenizer import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant")
MARKERS = tuple(f"<|{role}|>" for role in ROLES)
END = "<|end|>"
ANSWER_TOKENS = 256  # maximum tokens to reserve for an answer without a limit; the longest built-in story has 251
TEMPLATE = {"version": 1, "begin": END_OF_TEXT, "markers": list(MARKERS), "end": END}


@dataclass(frozen=True)
class Message:
    """Hold one message of a conversation; `learn` False excludes an assistant's message from the loss."""

    role: str  # "system", "user" or "assistant"
    content: str
    learn: bool = True


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation, and for each id whether it is a target of the loss.

    The targets are the text and the <|end|> of the messages for which `is_learned` is True. An empty answer has no targets.
    """
    ids, scored = [tokenizer.special_id(END_OF_TEXT)], [False]
    for message in messages:
        text = [*tokenizer.encode(message.content), tokenizer.special_id(END)]
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *text]
        scored += [False, *[is_learned(message)] * len(text)]
    return ids, scored


def is_learned(message: Message) -> bool:
    """Tell whether fine-tuning learns from this message: the assistant wrote it, it has text, and `learn` is True."""
    return message.role == "assistant" and message.learn and bool(message.content.strip())


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Encode a conversation and the <|assistant|> after it, with which the assistant's next answer begins."""
    return [*encode(messages, tokenizer)[0], tokenizer.special_id("<|assistant|>")]


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer: <|end|>, and all other special tokens, which a model may write instead of <|end|>."""
    ids = [tokenizer.special_id(token) for token in (END, END_OF_TEXT, *MARKERS)]
    return list(dict.fromkeys([*ids, *tokenizer.end_ids]))


def fit(
    messages: Sequence[Message], tokenizer: Tokenizer, context: int, max_tokens: int | None
) -> tuple[list[Message], int]:
    """Drop the oldest turns until the context has room for an answer.

    Returns the remaining messages and the number of dropped turns. A turn is a question with its answer. `context` is the
    model's context length in tokens. `max_tokens` is the maximum number of tokens of the answer, or None.

    Without a maximum, the number of tokens to reserve is derived from the answers so far (`_answer_tokens`). A maximum of up to
    half the context is reserved as a whole. A larger maximum does not mean that the answer will be so long: half the context is
    reserved, or the derived number if it is larger, but never more than the maximum.

    The system message and the last question may leave less room than the reserved number. Then the answer gets this room, but
    at least a quarter of the context (or the reserved number, if that is less). If the room is smaller than this minimum, the
    beginning of the question is cut off.
    """
    expected = _answer_tokens(messages, tokenizer, context)
    reserved = expected if max_tokens is None else min(max_tokens, max(expected, context // 2))
    alone = len(prompt_ids([m for m in messages[:1] if m.role == "system"] + list(messages[-1:]), tokenizer))
    # a long question leaves at least a quarter of the context for the answer
    return drop_oldest_turns(messages, tokenizer, max(8, context - reserved, min(alone, context * 3 // 4)))


def _answer_tokens(messages: Sequence[Message], tokenizer: Tokenizer, context: int) -> int:
    """Return the number of tokens to reserve for the next answer.

    The number is the length in tokens of the longest answer so far, but at least a quarter of the context, and never more than
    256 (ANSWER_TOKENS). If there is no answer yet, the number is 256. So a model whose answers are short can read many earlier
    turns, and a model that writes stories can finish another story.
    """
    answers = [len(tokenizer.encode(message.content)) + 1 for message in messages if message.role == "assistant"]
    return min(ANSWER_TOKENS, max(context // 4, *answers)) if answers else ANSWER_TOKENS


def drop_oldest_turns(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> tuple[list[Message], int]:
    """Drop the oldest turns until the prompt has at most `limit` tokens.

    Returns the remaining messages and the number of dropped turns. A turn is a question with its answer, and is dropped as a
    whole. If the last question alone is too long, only its end is kept. The system message is dropped only if it would leave no
    room for this end.
    """
    system = [m for m in messages[:1] if m.role == "system"]
    turns, dropped = list(messages[len(system) :]), 0
    # each message is encoded once, so that the time is linear in the length of the conversation
    sizes = [len(tokenizer.encode(message.content)) + 2 for message in turns]  # with its marker and its <|end|>
    size = len(prompt_ids(system, tokenizer)) + sum(sizes)
    first = 0
    while size > limit and len(turns) - first > 1:
        size -= sizes[first]
        first += 1
        while turns[first].role == "assistant" and len(turns) - first > 1:
            size -= sizes[first]
            first += 1
        dropped += 1
    turns = turns[first:]
    if len(prompt_ids([*system, *turns], tokenizer)) > limit:
        available = limit - len(prompt_ids([*system, Message("user", "")], tokenizer))
        if available < 1 and system:
            remaining, n_further = drop_oldest_turns(turns, tokenizer, limit)
            return remaining, dropped + n_further
        available = max(1, available)
        ids = tokenizer.encode(turns[-1].content)[-available:]
        # the end may begin inside a word or a character, and the text of the remaining part may have more tokens
        ends = (tokenizer.decode(ids[start:]).lstrip("\ufffd") for start in range(available))
        end = next((end for end in ends if len(tokenizer.encode(end)) <= available), "")
        turns[-1] = Message(turns[-1].role, end)
    return [*system, *turns], dropped
