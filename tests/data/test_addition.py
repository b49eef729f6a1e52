"""The built-in sums: every pair of numbers once, right, and on the same side of the split in every use."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from positron.config import DataConfig, TokenizerConfig
from positron.data.addition import sums
from positron.data.conversations import read_conversations
from positron.data.corpus import prepare
from positron.data.open import open_source
from positron.data.shards import TokenFiles
from positron.rewards.addition import addends, addition
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT

ALL = list(itertools.product(range(10, 100), repeat=2))


def pair(question: str) -> tuple[int, int]:
    a, b = re.fullmatch(r"(\d\d)\+(\d\d)=", question).groups()
    return int(a), int(b)


def test_every_pair_of_two_digit_numbers_occurs_once_with_its_sum():
    made = list(sums(0, 0.1))
    assert sorted(pair(each.question) for each in made) == ALL
    assert all(int(each.answer) == sum(pair(each.question)) for each in made)


def test_a_pair_is_held_out_in_both_orders():
    side = {pair(each.question): each.is_val for each in sums(0, 0.1)}
    assert all(side[a, b] == side[b, a] for a, b in ALL)
    assert sum(side.values()) / len(side) == pytest.approx(0.1, abs=0.02)


def test_the_seed_decides_order_and_split_and_nothing_else():
    first, again, other = list(sums(1, 0.1)), list(sums(1, 0.1)), list(sums(2, 0.1))
    assert first == again
    assert [each.question for each in first] != [each.question for each in other]
    assert {each.question for each in first if each.is_val} != {each.question for each in other if each.is_val}


def test_token_files_hold_the_sums_of_both_parts(tmp_path):
    tokenizer, folder = prepare(
        DataConfig("addition", val_fraction=0.1, dir=str(tmp_path)), TokenizerConfig("char"), None
    )
    end = tokenizer.special_id(END_OF_TEXT)
    for split, is_val in (("train", False), ("val", True)):
        files = TokenFiles(folder, split, tokenizer)
        ids = files.read(0, files.n_tokens)
        texts = [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in itertools.pairwise(np.flatnonzero(ids == end))]
        assert texts == [each.question + each.answer for each in sums(0, 0.1) if each.is_val == is_val]


def test_questions_to_answer_are_the_sums_of_the_corpus_with_the_same_split():
    data = DataConfig("addition", seed=3, val_fraction=0.2)
    documents = open_source(data).read(0)
    conversations = read_conversations(data)
    for document, conversation in zip(documents, conversations, strict=True):
        question, answer = (message.content for message in conversation.messages)
        assert document.text == question + answer
        assert document.is_val == conversation.is_val
        assert addends(question) == pair(question)
        assert addition(question, answer) == 1


def test_the_source_has_one_task_and_its_fingerprint_covers_seed_and_split():
    source = open_source(DataConfig("addition"))
    assert list(source.tasks()) == [0]
    assert list(source.tasks(1)) == []
    assert source.total_bytes == sum(len(document.text) for document in source.read(0))
    others = [DataConfig("addition", seed=1), DataConfig("addition", val_fraction=0.5)]
    assert len({source.fingerprint, *(open_source(other).fingerprint for other in others)}) == 3


def test_a_split_without_validation_is_refused():
    with pytest.raises(UserError, match=r"data\.val_fraction=0"):
        DataConfig("addition", val_fraction=0.0)
