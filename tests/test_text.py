"""Tokenizers never lose a byte, count bytes exactly, and no text can spell a special token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.config import TokenizerConfig, UserError
from positron.text.tokenizer import (
    END_OF_TEXT,
    SPECIALS,
    CharTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    train_tokenizer,
)

CORPUS = ["Once upon a time, there was a cat.\n\nIt said  hello to Zoë. 42 cats! " * 20, "The end …２ é\n"]
SPM = SentencePieceTokenizer.train(CORPUS, 500)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_sentencepiece_gives_back_every_text(text):
    ids = SPM.encode(text)
    assert SPM.decode(ids) == text
    assert SPM.token_bytes()[ids].sum() == len(text.encode("utf-8"))
    assert SPM.encode_batch([text]) == [ids]


@pytest.mark.parametrize(
    "text", ["\n\n  \t\r\n", "a\0b", "😀👩‍👩‍👧é", "▁ ▁▁x", "x" * 100_000, f"a{END_OF_TEXT}b", " lead", ""]
)
def test_sentencepiece_gives_back_hard_texts(text):
    ids = SPM.encode(text)
    assert SPM.decode(ids) == text
    assert not set(ids) & {SPM.special_id(token) for token in SPECIALS}


def test_a_small_corpus_shrinks_the_vocabulary_instead_of_failing():
    tokenizer = SentencePieceTokenizer.train(["ab ab abc"], 16_000)
    assert 256 < tokenizer.vocab_size < 400
    assert tokenizer.decode(tokenizer.encode("anything at all")) == "anything at all"


def test_training_is_deterministic():
    assert SentencePieceTokenizer.train(CORPUS, 500).hash == SPM.hash
    assert SentencePieceTokenizer.train(CORPUS, 320).hash != SPM.hash


@given(st.text(alphabet="abc é\n😀", max_size=50))
@settings(max_examples=100, deadline=None)
def test_characters_round_trip_over_their_alphabet(text):
    tokenizer = CharTokenizer("abc é\n😀")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode("utf-8"))


def test_an_unknown_character_is_unk_and_no_other_character():
    tokenizer = CharTokenizer("abc")
    assert tokenizer.encode("azb") == [tokenizer.encode("a")[0], 0, tokenizer.encode("b")[0]]
    assert CharTokenizer("").encode("a") == [0]


@pytest.mark.parametrize("kind", ["char", "sentencepiece"])
def test_a_saved_tokenizer_is_the_same_and_a_damaged_one_is_refused(tmp_path, kind):
    tokenizer = train_tokenizer(TokenizerConfig(kind, 400 if kind == "sentencepiece" else None), CORPUS)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
    assert again.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert len({again.special_id(token) for token in SPECIALS}) == len(SPECIALS)
    assert np.array_equal(again.token_bytes(), tokenizer.token_bytes())
    path = tmp_path / ("tokenizer.json" if kind == "char" else "spm.model")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|cannot read"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
