"""A conversation that is too long for the context loses its oldest turns, and the user is told how many."""

import pytest
from interop.saved_runs import corpus, imported_pieces

from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message, drop_oldest_turns, prompt_ids
from positron.text.sentencepiece_bpe import SentencePieceTokenizer

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


@pytest.mark.parametrize("limit", range(5, 24))
def test_a_question_that_is_cut_inside_a_character_still_fits(limit: int) -> None:
    tokenizer = SentencePieceTokenizer.train(["abc abc " * 200], 300)  # writes every other character as bytes
    messages = [Message("user", "a \u4e2d\u00e9\U0001f600" * 9)]
    remaining, _ = drop_oldest_turns(messages, tokenizer, limit)
    assert len(prompt_ids(remaining, tokenizer)) <= limit


@pytest.mark.parametrize("limit", range(6, 60, 3))
def test_a_question_that_is_cut_still_fits_if_the_tokenizer_puts_a_space_first(limit: int) -> None:
    tokenizer = imported_pieces()
    for text in corpus()[:5]:
        remaining, _ = drop_oldest_turns([Message("user", text)], tokenizer, limit)
        assert len(prompt_ids(remaining, tokenizer)) <= limit
        assert text.endswith(remaining[-1].content)
