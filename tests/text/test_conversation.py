"""A conversation that is too long for the context loses its oldest turns, and the user is told how many."""

import pytest
from interop.saved_runs import corpus, imported_pieces

from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message, drop_oldest_turns, fit, prompt_ids
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


@pytest.mark.parametrize("max_tokens", [200, 256, 257, 10**6])
def test_a_high_limit_of_an_answer_drops_no_turn_of_a_short_conversation(max_tokens: int) -> None:
    messages = [*TURNS, Message("user", "a" * 9)]
    assert fit(messages, TOKENIZER, 256, max_tokens) == (messages, 0)


@pytest.mark.parametrize("max_tokens", [1, 70, 128])
def test_a_limit_of_up_to_half_the_context_is_reserved_for_the_answer(max_tokens: int) -> None:
    messages = [*TURNS * 5, Message("user", "a" * 9)]
    remaining, dropped = fit(messages, TOKENIZER, 256, max_tokens)
    assert (remaining, dropped) == drop_oldest_turns(messages, TOKENIZER, 256 - max_tokens)
    assert dropped > 0
    assert len(prompt_ids(remaining, TOKENIZER)) + max_tokens <= 256


def test_an_answer_with_a_high_limit_may_become_as_long_as_the_longest_so_far() -> None:
    long = [Message("user", "a"), Message("assistant", "b" * 150)]
    messages = [*long, *TURNS * 3, Message("user", "a")]
    assert fit(messages, TOKENIZER, 256, 512) == drop_oldest_turns(messages, TOKENIZER, 256 - 151)
    assert fit(messages, TOKENIZER, 256, 140) == drop_oldest_turns(messages, TOKENIZER, 256 - 140)
