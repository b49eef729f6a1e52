"""Read conversations from files, or generate them: requests for stories of the grammar, or questions such as 12+34=."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from positron.config import DataConfig
from positron.data.addition import sums
from positron.data.conversation_shapes import is_conversation, parse_conversation
from positron.data.parsed_rows import RowSummary, name_of, parsed_rows, path_of
from positron.data.sources import is_validation
from positron.data.splits import divide
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text.conversation import Message, is_learned

logger = logging.getLogger(__name__)

SAMPLE_PATH = Path(__file__).parent / "tiny_instruct_sample.jsonl"
NO_ANSWER = "without an answer"


@dataclass(frozen=True)
class Conversation:
    """Hold the messages of a conversation, and whether it is used for validation.

    `bits` is -log2 of the probability of the answers given the questions, or None if this probability is unknown.
    """

    messages: tuple[Message, ...]
    is_val: bool
    bits: float | None = None  # -log2 p(answers | questions), if known


def read_conversations(
    config: DataConfig, began_with: Callable[[list[Conversation]], bool] = lambda _: False
) -> list[Conversation]:
    """Read all conversations in the order of the file, or make the built-in conversations.

    In a file, a hash of a conversation's first question decides whether it is used for training or for validation, or a hash of
    the whole conversation if too many begin with the same question (see `divide`, also for `began_with`). Rows that are
    malformed or have no answer are skipped, counted and logged with their positions. Raises UserError if more than half of
    the rows are malformed, if no conversation is left, or if `config.source` contains no conversations. Raises Unreachable if
    the rows cannot be downloaded.
    """
    match config.source:
        case "story_instruct":
            return list(story_requests(config.seed, 0, config.examples, config.val_fraction))
        case "addition":
            return [
                Conversation((Message("user", each.question), Message("assistant", each.answer)), each.is_val)
                for each in sums(config.seed, config.val_fraction)
            ]
        case "instruct":
            return _conversations_of_files(config, began_with)
        case "preferences" | "story_preference":
            raise UserError(
                f"data={config.source} contains pairs of answers, not conversations: give data=instruct data.path=FILE"
            )
        case "stories" | "text" | "hub" | "imported":
            raise UserError(f"data={config.source} contains text, not conversations: give data=instruct data.path=FILE")
        case _:
            assert_never(config.source)


def _conversations_of_files(config: DataConfig, began_with: Callable[[list[Conversation]], bool]) -> list[Conversation]:
    path = path_of(config, default=str(SAMPLE_PATH))
    if config.path is None and config.repo is None:
        logger.info(
            f"data.path= is not given: using the small file of examples {SAMPLE_PATH.name}, which comes with Positron"
        )
    summary, conversations = RowSummary("conversation", harmless=(NO_ANSWER,)), list[tuple[Message, ...]]()
    for record, parsed in parsed_rows(path, config, summary, is_conversation, parse_conversation):
        if any(map(is_learned, parsed.messages)):
            conversations.append(parsed.messages)
        else:
            summary.skip(record, NO_ANSWER, None)
    summary.refuse_malformed(name_of(config), len(conversations))
    if not conversations:
        raise UserError(
            f"{name_of(config)} has no answer to learn from in {counted(summary.rows, 'conversation')}: give messages with the "
            "role assistant that contain text and whose weight is not 0"
        )
    logger.info(summary.line())
    return divide(
        conversations,
        lambda messages: (first_question(messages), text_of(messages)),
        Conversation,
        config,
        "conversation",
        began_with,
    )


def first_question(messages: Sequence[Message]) -> str:
    """Return the text of the user's first message, or "" if there is none.

    The hash of this text usually decides whether the conversation (or the pair of answers) is used for training or for
    validation.
    """
    return next((message.content for message in messages if message.role == "user"), "")


def text_of(messages: Sequence[Message]) -> str:
    """Return a text that differs for conversations that differ in the role or the content of a message."""
    return repr([(message.role, message.content) for message in messages])


def story_requests(seed: int, start: int, stop: int, val_fraction: float) -> Iterator[Conversation]:
    """Yield conversations start .. stop - 1, each a request with a built-in story as its answer.

    A combination of name, object and place that occurs in validation does not occur in training.
    """
    from positron import stories

    for index in range(start, stop):
        request = stories.requests(seed, index)
        story = stories.generate(seed, index, request)
        messages = (Message("user", stories.ask(request, seed, index)), Message("assistant", story.text))
        combination = f"{request.name}|{request.object}|{request.place}"
        yield Conversation(messages, is_validation(combination, seed, val_fraction), story.bits)
