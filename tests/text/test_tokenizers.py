"""Tokenizers never lose a byte, count bytes exactly, and no text can spell a special token."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interop.saved_runs import imported_pieces, odd_lines, pieces

from positron.config import TokenizerConfig
from positron.system.errors import UserError
from positron.text import tiktoken_bpe
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.factory import load_tokenizer, train_tokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, StreamDecoder

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


def test_a_vocabulary_smaller_than_the_characters_is_refused_with_their_number():
    text = "".join(chr(0x4E00 + i) for i in range(3000))
    ids = 256 + len(SPECIALS) + 1 + 3000  # bytes, special tokens, <unk> and characters
    said = f"tokenizer.vocab_size=400 is too small .* need {ids:,} ids: give tokenizer.vocab_size={ids} or more"
    with pytest.raises(UserError, match=said):
        SentencePieceTokenizer.train([text * 3], 400)
    assert SentencePieceTokenizer.train([text * 3], ids).vocab_size == ids


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


def test_words_round_trip_where_they_are_known_and_the_vocabulary_is_a_ceiling():
    tokenizer = WordTokenizer.train(CORPUS, 10_000)
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]
    ids = tokenizer.encode(CORPUS[1])
    assert tokenizer.token_bytes()[ids].sum() == len(CORPUS[1].encode("utf-8"))
    small = WordTokenizer.train(CORPUS, 12)
    assert small.vocab_size == 12
    assert small.decode(small.encode("Once cat")).count("\ufffd") >= 1


@pytest.mark.parametrize(("token", "specials"), [(10**6, {}), (300, {END_OF_TEXT: 10**6}), (300, {END_OF_TEXT: -1})])
def test_an_imported_vocabulary_with_an_id_outside_of_the_embedding_is_refused(token, specials, tmp_path):
    tokenizer = imported_pieces()
    tokenizer.save(tmp_path)
    facts = json.loads((tmp_path / "vocabulary.json").read_text())
    facts["model"]["vocab"][tokenizer.token(300)] = token
    (tmp_path / "vocabulary.json").write_text(json.dumps(facts))
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["specials"] |= specials
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match=r"it has a token with the id (1,000,000|-1), but the ids of the model are 0 to"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("rank", "end"), [(10**6, 256), (255, 10**6)])
def test_a_rank_file_with_an_id_outside_of_the_vocabulary_is_refused(rank, end):
    ranks = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % (b if b < 255 else rank) for b in range(256))
    with pytest.raises(ValueError, match="it has a token with the id 1,000,000, but its ids are 0 to 256"):
        tiktoken_bpe.TiktokenTokenizer("r50k_base", ".", ranks, end, 257)


# a rank file of tiktoken's format: the 256 bytes, and a few merges
RANKS = b"".join(
    base64.b64encode(token) + b" %d\n" % rank
    for rank, token in enumerate([*(bytes([b]) for b in range(256)), b" t", b"he", b" the", b"in", b"\xf0\x9f"])
)


@pytest.fixture
def tiny_tiktoken(loopback, tmp_path, monkeypatch):
    """r50k_base with a small rank file from a server on this machine, and our cache in a folder of the test's own."""
    loopback.files["/encodings/r50k_base.tiktoken"] = RANKS
    small = tiktoken_bpe.Definition(
        tiktoken_bpe.DEFINITIONS["r50k_base"].pattern, 261, 262, hashlib.sha256(RANKS).hexdigest()
    )
    monkeypatch.setitem(tiktoken_bpe.DEFINITIONS, "r50k_base", small)
    monkeypatch.setattr(tiktoken_bpe, "RANKS_URL", f"{loopback.url}/encodings")
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    return loopback


@pytest.mark.parametrize("name", tiktoken_bpe.DEFINITIONS)
def test_our_definitions_are_those_that_the_library_publishes(name, monkeypatch):
    import tiktoken_ext.openai_public as library

    asked = []

    def no_download(url, expected_hash):
        asked.append((url, expected_hash))
        return {b"!": 0}

    monkeypatch.setattr(library, "load_tiktoken_bpe", no_download)
    theirs, ours = getattr(library, name)(), tiktoken_bpe.DEFINITIONS[name]
    specials = theirs["special_tokens"]
    assert asked == [(f"{tiktoken_bpe.RANKS_URL}/{name}.tiktoken", ours.sha256)]
    assert (theirs["pat_str"], specials[END_OF_TEXT]) == (ours.pattern, ours.end_of_text)
    assert theirs.get("explicit_n_vocab", max(specials.values()) + 1) == ours.n_vocab


GPT2 = TokenizerConfig("tiktoken", name="r50k_base")


def test_tiktoken_is_fetched_once_gives_back_every_text_and_travels(tiny_tiktoken, tmp_path):
    tokenizer = train_tokenizer(GPT2, [])
    assert train_tokenizer(GPT2, []).hash == tokenizer.hash
    assert tiny_tiktoken.requests == ["/encodings/r50k_base.tiktoken"]
    assert tokenizer.vocab_size == 256 + 5 + 1 + 4
    assert {tokenizer.special_id(token) for token in SPECIALS} == set(range(261, 266))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == tokenizer.hash
    token_bytes = again.token_bytes()

    @given(TEXT)
    @example("\n\n  \t\r\n")
    @example("a\0b 😀👩‍👩‍👧é" + "x" * 3000)
    @example(END_OF_TEXT + "<|user|>")
    @settings(max_examples=300, deadline=None)
    def round_trip(text):
        ids = again.encode(text)
        assert ids == tokenizer.encode(text)
        assert again.decode(ids) == text
        assert not set(ids) & set(range(261, 266))
        assert token_bytes[ids].sum() == len(text.encode("utf-8"))

    round_trip()


@pytest.mark.parametrize("fault", ["absent", "wrong content", "cut off", "silent", "refused"])
def test_a_rank_file_that_cannot_be_had_is_one_line_after_a_bounded_wait(tiny_tiktoken, tmp_path, fault, monkeypatch):
    path = "/encodings/r50k_base.tiktoken"
    monkeypatch.setattr("positron.system.download.PATIENCE_S", 1.0)
    if fault == "absent":
        del tiny_tiktoken.files[path]
    elif fault == "wrong content":
        tiny_tiktoken.files[path] = RANKS + b"x"
    elif fault == "refused":
        tiny_tiktoken.close()
    else:
        tiny_tiktoken.faults[path] = [fault] * 9
    with pytest.raises(UserError) as error:
        train_tokenizer(GPT2, [])
    if fault == "silent":  # it was not the server that ended the wait: it stays silent for PATIENCE seconds
        assert re.search("no answer within|timed out", str(error.value))
    for word in ["sha256"] if fault == "wrong content" else [str(tmp_path / "cache"), "save the file as"]:
        assert word in str(error.value)
    assert tiny_tiktoken.url in str(error.value)
    assert "tokenizer=spm_16k" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("cache/tiktoken/*"))


def test_a_damaged_rank_file_in_the_cache_is_named(tiny_tiktoken, tmp_path):
    train_tokenizer(GPT2, [])
    (path,) = tmp_path.glob("cache/tiktoken/*")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        train_tokenizer(GPT2, [])


REAL = PROJECT.parent / "shared" / "data" / "tiktoken"


@pytest.mark.skipif(not REAL.exists(), reason="needs the real rank files")
@pytest.mark.parametrize(
    ("name", "vocab_size", "end"),
    [("r50k_base", 50261, 50256), ("p50k_base", 50285, 50256), ("cl100k_base", 100281, 100257)],
)
def test_the_real_vocabularies_are_the_librarys(tmp_path, monkeypatch, name, vocab_size, end):
    (tmp_path / "tiktoken").mkdir()
    (tmp_path / "tiktoken" / f"{name}.tiktoken").write_bytes((REAL / f"{name}.tiktoken").read_bytes())
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path))
    tokenizer = train_tokenizer(TokenizerConfig("tiktoken", name=name), [])
    assert (tokenizer.vocab_size, tokenizer.special_id(END_OF_TEXT)) == (vocab_size, end)
    text = "Hello, world! naïve 😀\n\n  x" + END_OF_TEXT
    assert tokenizer.decode(tokenizer.encode(text)) == text
    known = {"r50k_base": [15496, 11, 995, 0], "p50k_base": [15496, 11, 995, 0], "cl100k_base": [9906, 11, 1917, 0]}
    assert tokenizer.encode("Hello, world!") == known[name]
    long = "lorem ipsum " * 90_000  # a line of a megabyte
    assert tokenizer.decode(tokenizer.encode(long)) == long


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_a_stream_of_ids_is_a_stream_of_whole_characters(text):
    for tokenizer in (SPM, CharTokenizer(text)):
        stream = StreamDecoder(tokenizer)
        pieces = [stream.push(i) for i in tokenizer.encode(text)]
        assert "".join(pieces) + stream.end() == text
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


def test_a_stream_that_ends_inside_a_character_says_so():
    stream = StreamDecoder(SPM)
    ids = SPM.encode("😀")
    assert len(ids) == 4
    assert "".join(stream.push(i) for i in ids[:3]) == ""
    assert stream.end() == "\ufffd"


def test_the_space_that_an_imported_tokenizer_puts_first_is_no_part_of_the_decoded_text():
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(pieces()))
    tokenizer = imported_pieces()
    marker = tokenizer.special_id("<|assistant|>")
    for text in [*odd_lines(60), " lead", "  two", " ", ""]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == library.decode(ids)
        answer = StreamDecoder(tokenizer, [marker])
        assert "".join(map(answer.push, ids)) + answer.end() == text


def test_the_space_between_a_text_and_its_continuation_is_kept():
    tokenizer = imported_pieces()
    ids = tokenizer.encode("Tom saw the ball.")
    for n in range(1, len(ids)):
        continuation = StreamDecoder(tokenizer, ids[:n])
        assert tokenizer.decode(ids[:n]) + "".join(map(continuation.push, ids[n:])) == "Tom saw the ball."


@pytest.mark.parametrize("kind", ["char", "word", "sentencepiece"])
def test_a_saved_tokenizer_is_the_same_and_a_damaged_one_is_refused(tmp_path, kind):
    tokenizer = train_tokenizer(TokenizerConfig(kind, None if kind == "char" else 400), CORPUS)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
    assert again.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert len({again.special_id(token) for token in SPECIALS}) == len(SPECIALS)
    assert np.array_equal(again.token_bytes(), tokenizer.token_bytes())
    path = tmp_path / ("spm.model" if kind == "sentencepiece" else "tokenizer.json")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|cannot read"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
