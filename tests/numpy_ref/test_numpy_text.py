"""numpy_ref's tokenizers: exact round trips, the torch side's and SentencePiece's own ids, and speed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numpy_ref.bpe import WORDS, BPETokenizer, learn_merges, merge
from numpy_ref.config import InputError
from numpy_ref.spm import SentencePieceTokenizer
from numpy_ref.tokenizers import SPECIALS, CharTokenizer, WordTokenizer, from_json, train_tokenizer
from numpy_ref.train import STORIES_PATH
from positron.text import char_word as tables
from positron.text import sentencepiece_bpe
from positron.text.tokenizer import END_OF_TEXT

TEXT = STORIES_PATH.read_text(encoding="utf-8")[:60_000]
BPE = BPETokenizer.train(TEXT, 500)
CHAR = CharTokenizer.train(TEXT)
ODD = "naïve\x00 \t\r\n  two  spaces 🐸👩‍👩‍👧 e\u0301 ▁ <|endoftext|> 12345_x"


@settings(max_examples=300)
@given(st.text())
@example(ODD)
def test_numpy_bpe_gives_back_any_string(text: str) -> None:
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert all(i >= len(SPECIALS) for i in ids)  # no text can spell a special token


@given(st.text(alphabet=CHAR.pieces))
def test_numpy_characters_give_back_any_string_over_their_alphabet(text: str) -> None:
    assert CHAR.decode(CHAR.encode(text)) == text


def test_numpy_words_give_back_the_training_text() -> None:
    words = WordTokenizer.train(TEXT, 100_000)
    assert words.decode(words.encode(TEXT)) == TEXT


@pytest.mark.parametrize("kind", ["char", "word"])
def test_numpy_unknown_pieces_become_unk_and_are_named(kind: str) -> None:
    tokenizer = train_tokenizer(kind, "a cat sat", 100)
    with pytest.warns(UserWarning, match=r"2 unknown .*'é', 'ö'"):
        ids = tokenizer.encode("a é ö")
    assert ids.count(0) == 2
    assert tokenizer.decode(ids) == "a � �"


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_numpy_tokenizers_survive_json(kind: str) -> None:
    tokenizer = train_tokenizer(kind, TEXT, 400)
    again = from_json(json.loads(json.dumps(tokenizer.to_json())), "here")
    known = "a day, and the girl" if kind == "word" else TEXT[:5000]
    assert again.encode(known) == tokenizer.encode(known)
    assert again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"kind": "bpe"},
        {"kind": "bpe", "merges": [[999, 7]]},
        {"kind": "word", "pieces": 3},
        {"kind": "x", "pieces": []},
    ],
)
def test_numpy_damaged_tokenizers_are_refused(facts: dict) -> None:
    with pytest.raises(InputError, match="here is not a tokenizer"):
        from_json(facts, "here")


def test_numpy_bpe_learns_the_merges_of_the_plain_algorithm() -> None:
    """The same as counting all pairs anew for each merge, which nobody could wait for on a real text."""
    counts = Counter(WORDS.findall(TEXT[:3000]))
    words, weights = [list(word.encode()) for word in counts], list(counts.values())
    plain, copies = [], [list(word) for word in words]
    for new in range(1000, 1060):
        totals: Counter = Counter()
        for word, weight in zip(copies, weights, strict=True):
            for pair in pairwise(word):
                totals[pair] += weight
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        plain.append(best)
        copies = [merge(word, best, new) for word in copies]
    assert learn_merges(words, weights, 60, 1000) == plain


def test_numpy_bpe_of_a_tiny_text_stops_early() -> None:
    tokenizer = BPETokenizer.train("ab", 1000)
    assert tokenizer.vocab_size == len(SPECIALS) + 256
    assert BPETokenizer.train("", 1000).encode("") == []


def test_numpy_bpe_of_a_megabyte_touches_only_the_words_that_a_merge_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging in all words would be a thousand times as many operations as there are words."""
    text = "".join(f"{TEXT[i : i + 50_000]}{i}" for i in range(0, 1000))[:1_000_000]
    merged, changed = [0], [0]

    def counted(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
        found = merge(ids, pair, new)
        merged[0] += 1
        changed[0] += found != ids
        return found

    monkeypatch.setattr("numpy_ref.bpe.merge", counted)
    tokenizer = BPETokenizer.train(text, len(SPECIALS) + 256 + 1000)
    assert len(tokenizer.merges) == 1000
    assert 0 < changed[0] <= merged[0] < 2 * changed[0]


def test_numpy_and_torch_characters_have_the_same_ids() -> None:
    theirs = tables.CharTokenizer.train([TEXT])
    assert CHAR.encode(TEXT) == theirs.encode(TEXT)
    assert (CHAR.vocab_size, CHAR.end_of_text) == (theirs.vocab_size, theirs.special_id(END_OF_TEXT))


@pytest.fixture(scope="module")
def sentencepiece_twins(tmp_path_factory: pytest.TempPathFactory):
    theirs = sentencepiece_bpe.SentencePieceTokenizer.train([TEXT], 700)
    folder = tmp_path_factory.mktemp("spm")
    theirs.save(folder)
    return SentencePieceTokenizer((folder / "spm.model").read_bytes()), theirs


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from([*TEXT[:3000].split(" "), " ", "▁", "\n"])).map(" ".join))
@example(ODD)
@example(TEXT[:2000])
def test_numpy_reads_sentencepiece_models_as_the_library_does(sentencepiece_twins, text: str) -> None:
    mine, theirs = sentencepiece_twins
    ids = mine.encode(text)
    assert ids == theirs.encode(text)
    assert mine.decode(ids) == theirs.decode(ids) == text


def test_numpy_sentencepiece_special_ids(sentencepiece_twins) -> None:
    mine, theirs = sentencepiece_twins
    assert (mine.vocab_size, mine.end_of_text) == (theirs.vocab_size, theirs.special_id(END_OF_TEXT))
    assert mine.decode([mine.end_of_text]) == ""


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_numpy_damaged_sentencepiece_models_are_refused(sentencepiece_twins, damage: str) -> None:
    whole = sentencepiece_twins[1]._model
    data = {"cut": whole[: len(whole) // 2 - 3], "empty": b"", "noise": bytes(range(256))}[damage]
    with pytest.raises(InputError, match="spm"):
        SentencePieceTokenizer(data, "spm.model")
