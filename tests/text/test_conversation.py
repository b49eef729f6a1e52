"""A conversation that is too long for the context loses its oldest turns, and the user is told how many."""

import pytest

from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message, drop_oldest_turns, prompt_ids

TURNS = [Message("user", "a" * 9), Message("assistant", "b" * 9)] * 3
TOKENIZER = CharTokenizer("abcs")


@pytest.mark.parametrize("instruction", ["", "s" * 40], ids=["without a system message", "with a long system message"])
@pytest.mark.parametrize("limit", [12, 20, 30, 60, 90, 200])
def test_the_number_of_dropped_turns_is_the_number_of_missing_questions(instruction: str, limit: int) -> None:
    system = [Message("system", instruction)] if instruction else []
    messages = [*system, *TURNS, Message("user", "a" * 9)]
    remaining, dropped = drop_oldest_turns(messages, TOKENIZER, limit)
    questions = sum(message.role == "user" for message in remaining)
    assert dropped == 4 - questions
    assert len(prompt_ids(remaining, TOKENIZER)) <= limit
    assert remaining[-1].content.endswith("a")
