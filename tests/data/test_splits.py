"""Every text has documents on both sides of the split, and token files are matched to the text they were made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import tiny
from interop.saved_runs import imported_bytes, imported_pieces
from text_files import DOCUMENTS, as_jsonl, as_text, source

from positron.config import IGNORE, DataConfig, TokenizerConfig
from positron.data import files
from positron.data.corpus import is_made_of, prepare
from positron.data.shards import TokenFiles, verify
from positron.evaluation.corpus_report import tokenizer_report
from positron.evaluation.eval_texts import Beginning, Lossy, encode_texts, size_of, texts_of_run
from positron.run.folder import Run
from positron.system.disk import make_folder, write_json
from positron.system.errors import UserError
from positron.text.factory import load_tokenizer, train_tokenizer
from positron.text.library_json import LibraryTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer, separator
from positron.training.objective.pretrain import PretrainObjective

CHAR = TokenizerConfig("char")
LINE = "The quick brown fox jumps over the lazy dog.\n"


def sides(path: Path, **options: Any) -> list[int]:
    """Characters for training and for validation."""
    counts = [0, 0]
    text_source = source(path, **options)
    for task in text_source.tasks():
        for document in task:
            counts[document.is_val] += len(document.text)
    return counts


def share(path: Path, **options: Any) -> float:
    counts = sides(path, **options)
    return counts[1] / sum(counts)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHARS_PER_TASK", 10_000)


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("max_mb", [0.01, 0.05, 0.099, None])
@pytest.mark.parametrize("documents", [1, 3, 19])
def test_a_limit_leaves_the_end_of_what_it_takes_for_validation(
    tmp_path: Path, documents: int, max_mb: float | None
) -> None:
    (tmp_path / "a.txt").write_bytes(as_text([LINE * (100_000 // len(LINE) // documents)] * documents))
    counts = sides(tmp_path / "a.txt", max_mb=max_mb, val_fraction=0.1)
    assert counts[1] / sum(counts) == pytest.approx(0.1, abs=0.01)
    if max_mb is not None:
        assert sum(counts) <= max_mb * 1e6 + 10_000


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("max_mb", [0.01, 0.05, 0.2, 0.9, 2.0])
def test_a_limit_is_exact_to_the_line_and_a_larger_one_changes_nothing(
    tmp_path: Path, name: str, max_mb: float
) -> None:
    documents = [f"{i}: {LINE}" * 100 for i in range(200)]
    (tmp_path / name).write_bytes(as_text(documents) if name == "a.txt" else as_jsonl(documents))
    whole, size = sum(sides(tmp_path / name)), sum(sides(tmp_path / name, max_mb=max_mb))
    assert min(whole, max_mb * 1e6) - 1000 < size <= max_mb * 1e6
    now, earlier = fingerprints(tmp_path / name, max_mb=max_mb)
    assert (now != earlier) == (size < whole)


@pytest.mark.parametrize("val_fraction", [0.02, 0.1])
@pytest.mark.parametrize("n", [20, 25, 60])
def test_no_draw_leaves_a_side_empty(tmp_path: Path, n: int, val_fraction: float) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([f"{i} {d}" for i, d in enumerate((DOCUMENTS * 2)[:n])]))
    for seed in range(40):
        assert val_fraction / 6 < share(tmp_path / "a.jsonl", seed=seed, val_fraction=val_fraction) < 0.55


@pytest.mark.parametrize("long", [0, 7, 24])
def test_one_long_book_among_short_texts_leaves_both_sides_their_share(tmp_path: Path, long: int) -> None:
    for i in range(25):
        (tmp_path / f"{i:02d}.txt").write_text(f"{i}\n" + LINE * (2000 if i == long else 2))
    for seed in range(20):
        assert 0.01 < share(tmp_path, seed=seed, val_fraction=0.1) < 0.55


@pytest.mark.parametrize(
    "text", ["a title\n" + "x" * 10_000, "y" * 10_000, LINE * 300, "ab", "\n" * 5000 + "x", " " * 77 + "x"]
)
@pytest.mark.parametrize("val_fraction", [0.02, 0.1, 0.5])
def test_one_document_is_split_near_the_asked_place(tmp_path: Path, text: str, val_fraction: float) -> None:
    (tmp_path / "a.txt").write_text(text)
    counts = sides(tmp_path / "a.txt", val_fraction=val_fraction)
    assert sum(counts) == len(text)
    assert min(counts) > 0
    assert counts[1] <= max(1, 1.5 * val_fraction * len(text))


def test_equal_documents_still_leave_something_for_validation(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["the same document. " * 20] * 60))
    assert share(tmp_path / "a.jsonl", val_fraction=0.1) == pytest.approx(0.1, abs=0.02)


def fingerprints(path: Path, **options: Any) -> tuple[str, str]:
    text_source = source(path, **options)
    return text_source.fingerprint, text_source.earlier_fingerprint


@pytest.mark.parametrize(
    ("name", "content", "is_read_otherwise"),
    [
        ("a.txt", as_text(DOCUMENTS), False),
        ("a.txt", LINE.encode() * 30, False),
        ("a.jsonl", as_jsonl(DOCUMENTS), False),
        ("a.jsonl", as_jsonl(DOCUMENTS).replace(b"\n", b"\r\n"), False),
        ("a.txt", as_text(DOCUMENTS).replace(b"\n", b"\r\n"), True),
        ("a.txt", b"\xef\xbb\xbf" + as_text(DOCUMENTS), True),
        ("a.txt", as_text(DOCUMENTS).replace(b"|>\n", b"|> \n"), True),
        ("a.json", as_jsonl(DOCUMENTS), True),
        ("a.JSONL", as_jsonl(DOCUMENTS), True),
        ("a.txt", b"title\n" + b"x" * 5000, True),
    ],
)
def test_only_a_text_that_is_read_differently_than_before_has_another_fingerprint(
    tmp_path: Path, name: str, content: bytes, is_read_otherwise: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    now, earlier = fingerprints(tmp_path / name)
    assert (now != earlier) == is_read_otherwise


def made(tmp_path: Path, content: bytes, choice: TokenizerConfig = CHAR) -> tuple[DataConfig, Tokenizer, Path]:
    (tmp_path / "a.txt").write_bytes(content)
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    return (config, *prepare(config, choice, None))


def test_a_run_whose_text_is_gone_continues_on_the_tokens_made_of_it(tmp_path: Path, logged: list[str]) -> None:
    config, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    known = TokenFiles(folder, "train", tokenizer).fingerprint
    Path(str(config.path)).unlink()
    logged.clear()
    assert prepare(config, CHAR, tokenizer, known) == (tokenizer, folder)
    assert "No such file" in logged[0]
    assert str(folder) in logged[0]
    for other in (None, "0" * 64):
        with pytest.raises(UserError, match="No such file"):
            prepare(config, CHAR, tokenizer, other)


def test_a_text_that_changed_is_another_text_though_tokens_of_the_old_one_are_there(tmp_path: Path) -> None:
    config, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    known = TokenFiles(folder, "train", tokenizer).fingerprint
    Path(str(config.path)).write_bytes(as_text(DOCUMENTS[:-1]))
    _, other = prepare(config, CHAR, tokenizer, known)
    assert TokenFiles(other, "train", tokenizer).fingerprint != known


def test_a_large_text_that_is_copied_with_another_time_is_still_the_text_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr("positron.data.fingerprints.MAX_HASHED_BYTES", 1 << 20)
    content = b"some words\n" * 200_000
    config, tokenizer, folder = made(tmp_path, content)
    known = TokenFiles(folder, "train", tokenizer).fingerprint
    os.utime(str(config.path), (1, 1))
    assert source(Path(str(config.path)), val_fraction=0.1).fingerprint != known
    assert prepare(config, CHAR, tokenizer, known)[1] == folder
    run = Run(make_folder(tmp_path / "run"))
    write_json(run.config_path, dataclasses.asdict(tiny(tmp_path)) | {"data": dataclasses.asdict(config)})
    write_json(run.facts_path, {"name": "run", "kind": "pretrain", "data_fingerprint": known})
    tokenizer.save(make_folder(run.tokenizer_folder))
    logged.clear()
    assert texts_of_run(run, "val", 10)
    assert not logged
    middle = content[1 << 20 : -1 << 20]
    Path(str(config.path)).write_bytes(content[: 1 << 20] + middle[::-1] + content[-1 << 20 :])
    assert not is_made_of(folder, source(Path(str(config.path)), val_fraction=0.1))


def test_tokens_of_an_earlier_version_stay_those_of_the_run_that_has_them(tmp_path: Path) -> None:
    config, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS).replace(b"\n", b"\r\n"))
    _, earlier = fingerprints(tmp_path / "a.txt", val_fraction=0.1)
    header = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**header, "fingerprint": earlier}))
    moved = folder.rename(tmp_path / "data" / "moved")
    (tmp_path / "data/text-a-earlier").mkdir()
    moved = moved.rename(tmp_path / "data/text-a-earlier" / folder.name)
    assert prepare(config, CHAR, tokenizer, earlier)[1] == moved
    assert prepare(config, CHAR, tokenizer)[1] == folder  # a new run reads the text as it is


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_altered_shard_is_refused_where_it_is_used(tmp_path: Path, split: str) -> None:
    _, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    path = folder / f"{split}-00000.bin"
    content = path.read_bytes()
    for altered in (bytes(64) + content[64:], content[:-2] + b"\2\0", content[::-1]):
        path.write_bytes(altered)
        with pytest.raises(UserError, match=rf"{path.name} was altered: delete"):
            TokenFiles(folder, split, tokenizer)
    path.write_bytes(content)
    TokenFiles(folder, split, tokenizer)
    verify(folder)


def test_a_checksum_is_computed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    TokenFiles(folder, "train", tokenizer)

    def fail(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    TokenFiles(folder, "train", tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"splits": 3},
        {"dtype": "float64"},
        {"splits": {"train": {"tokens": 1, "documents": 1, "bytes": 1, "bits": None, "shards": [{"file": "x"}]}}},
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    _, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    header = json.loads((folder / "tokens.json").read_text())
    for value in ({**header, **change}, 3, []):
        (folder / "tokens.json").write_text(json.dumps(value))
        with pytest.raises(UserError, match=r"tokens\.json is damaged: delete"):
            TokenFiles(folder, "train", tokenizer)


def test_a_header_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    _, tokenizer, folder = made(tmp_path, as_text(DOCUMENTS))
    header = json.loads((folder / "tokens.json").read_text())
    header["splits"]["train"]["shards"][0]["file"] = "../elsewhere.bin"
    (folder / "tokens.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="outside its folder"):
        TokenFiles(folder, "train", tokenizer)


# tokenizers


def words(n: int) -> str:
    rng = random.Random(0)
    return "".join(f"{rng.choice(['Zoë', 'the', 'cat', 'électricité'])} word{rng.randrange(300)}\n" for _ in range(n))


@pytest.mark.parametrize("choice", [TokenizerConfig("word", 12), TokenizerConfig("word", 100), CHAR])
def test_unknown_tokens_stand_for_the_bytes_they_replace(tmp_path: Path, choice: TokenizerConfig) -> None:
    (tmp_path / "a.txt").write_text(words(2000))
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    known = train_tokenizer(choice, ["the cat "]) if choice.kind == "char" else None
    tokenizer, folder = prepare(config, choice, known)
    for split in ("train", "val"):
        part = TokenFiles(folder, split, tokenizer)
        lengths = part.token_bytes(tokenizer)
        ids = part.read(0, part.n_tokens)
        assert (ids == 0).any()
        assert lengths[ids].sum() == pytest.approx(part.n_bytes)
    data = PretrainObjective(
        config, folder, tokenizer, context=16, batch_size=2, micro_batch_size=1, seed=0, val_tokens=10**6
    )
    scored = data.val_y.numpy()
    assert data.token_bytes[scored[scored != -100]].sum() == pytest.approx(data.val.n_bytes)
    # training and validation count bytes of the same original text: a token has about as many on both sides
    per_token = data.val.n_bytes / data.val.n_tokens
    assert math.isclose(data.train.bytes_per_token, per_token, rel_tol=0.1)


def test_the_report_on_a_tokenizer_counts_the_bytes_of_unknown_words(tmp_path: Path) -> None:
    _, tokenizer, folder = made(tmp_path, as_text([words(50) for _ in range(30)]), TokenizerConfig("word", 12))
    train = TokenFiles(folder, "train", tokenizer)
    (line,) = [line for line in tokenizer_report(train, tokenizer).splitlines() if "bytes per token" in line]
    assert line.split()[-1] == f"{train.n_bytes / train.n_tokens:.2f}"


def test_the_report_on_a_tokenizer_counts_the_last_word_of_each_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["cat"] * 300))
    config = DataConfig("text", str(tmp_path / "a.jsonl"), dir=str(tmp_path / "data"), val_fraction=0.1)
    tokenizer, folder = prepare(config, CHAR, None)
    train = TokenFiles(folder, "train", tokenizer)
    assert f"tokens per word   {train.n_tokens / train.n_documents:.2f}\n" in tokenizer_report(train, tokenizer)


@pytest.mark.parametrize("create", [imported_pieces, lambda: imported_bytes("qwen2")], ids=["space first", "NFC"])
def test_what_an_imported_tokenizer_changes_in_a_text_does_not_change_its_size(
    tmp_path: Path, create: Callable[[], LibraryTokenizer]
) -> None:
    tokenizer = create()
    (tmp_path / "a.txt").write_bytes(
        as_text([f"caf{letter} {n}" for n in range(200) for letter in ("e\u0301", "é", "e")])
    )
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    _, folder = prepare(config, CHAR, tokenizer)
    data = PretrainObjective(
        config, folder, tokenizer, context=64, batch_size=2, micro_batch_size=1, seed=0, val_tokens=10**6
    )
    ids = data.val_y[data.val_y != IGNORE].numpy()
    assert tokenizer.token_bytes()[ids].sum() != data.val_bytes
    assert data.token_bytes[ids].sum() == pytest.approx(data.val_bytes, rel=1e-12)


def run_on(tmp_path: Path, config: DataConfig, tokenizer: Tokenizer, tokens: Path, choice: TokenizerConfig) -> Run:
    """Return a run without weights whose text is `config`."""
    run = Run(tmp_path / "run")
    tokenizer.save(make_folder(run.tokenizer_folder))
    write_json(run.folder / "config.json", dataclasses.asdict(tiny(tmp_path, data=config, tokenizer=choice)))
    write_json(run.folder / "run.json", {"data_fingerprint": TokenFiles(tokens, "val", tokenizer).fingerprint})
    return run


@pytest.mark.parametrize("limit", [0, 500])
def test_evaluate_counts_the_bytes_of_the_original_text(tmp_path: Path, limit: int) -> None:
    choice = TokenizerConfig("word", 12)
    config, tokenizer, tokens = made(tmp_path, as_text([words(50) for _ in range(30)]), choice)
    run, val = run_on(tmp_path, config, tokenizer, tokens, choice), TokenFiles(tokens, "val", tokenizer)
    pieces = texts_of_run(run, "val", limit)
    assert any("�" in text for text in pieces)
    sizes = [size_of(text) for text in pieces]
    if limit:
        assert limit <= sum(sizes) < limit + max(sizes)
    else:
        assert sum(sizes) == val.n_bytes


def imported(**changes: Any) -> LibraryTokenizer:
    """Return a byte-pair vocabulary of Latin letters with an unknown token, and with `changes` of the tokenizer.json."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    library = Library(BPE(unk_token="<unk>", fuse_unk=changes.pop("fuse_unk", False)))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    first = changes.pop("first", ["<unk>", "<s>", "</s>"])
    library.train_from_iterator(["the cat and a dog\n"], trainers.BpeTrainer(vocab_size=60, special_tokens=first))
    size = library.get_vocab_size()
    specials = {END_OF_TEXT: first.index("<s>"), **{token: size + i for i, token in enumerate(SPECIALS[1:])}}
    content = json.dumps({**json.loads(library.to_str()), **changes}).encode()
    ends = (first.index("</s>"), first.index("<s>"))
    return LibraryTokenizer(content, specials, size + len(SPECIALS) - 1, ends)


STRIPPED = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}


@pytest.mark.parametrize(
    "create",
    [
        imported,
        lambda: imported(fuse_unk=True),
        lambda: imported(first=["<s>", "</s>", "<unk>"]),
        lambda: imported(normalizer=STRIPPED),
        lambda: imported_bytes("qwen2"),
        imported_pieces,
    ],
    ids=["unknown", "fused", "unknown with id 2", "accents removed", "NFC", "space first"],
)
def test_evaluate_counts_the_bytes_of_a_text_that_an_imported_tokenizer_cannot_restore(
    tmp_path: Path, create: Callable[[], LibraryTokenizer]
) -> None:
    tokenizer = create()
    documents = [f"the cat and caf\u00e9 {'日本' * (n % 3)} cafe\u0301 dog{'a' * (n % 7)}" for n in range(200)]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(documents))
    config = DataConfig("text", str(tmp_path / "a.jsonl"), dir=str(tmp_path / "data"), val_fraction=0.2)
    _, tokens = prepare(config, CHAR, tokenizer)
    run, val = run_on(tmp_path, config, tokenizer, tokens, CHAR), TokenFiles(tokens, "val", tokenizer)
    texts = texts_of_run(run, "val", 0)
    assert len(texts) == val.n_documents
    assert sum(map(size_of, texts)) == val.n_bytes
    begin = tokenizer.special_id(END_OF_TEXT)
    end = separator(tokenizer)
    assert [begin, *(i for ids in encode_texts(tokenizer, texts) for i in [*ids, *end])] == val.read(0, 10**6).tolist()
    if create is imported_pieces:
        assert not any(isinstance(text, Lossy) for text in texts), "the texts are restored without the space"


@pytest.mark.parametrize("kind", ["word", "char"])
@pytest.mark.parametrize("limit", [0, 30])
def test_evaluate_scores_the_tokens_of_the_files_if_the_vocabulary_contains_the_sign_of_unknown_ones(
    tmp_path: Path, kind: Literal["word", "char"], limit: int
) -> None:
    choice = TokenizerConfig(kind, 12) if kind == "word" else CHAR
    known = train_tokenizer(choice, ["the \ufffd cat\n"]) if kind == "char" else None
    text = as_text([words(50).replace("cat", "\ufffd") for _ in range(30)])
    (tmp_path / "a.txt").write_bytes(text)
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    tokenizer, tokens = prepare(config, choice, known)
    assert 0 not in tokenizer.encode("\ufffd")
    run, val = run_on(tmp_path, config, tokenizer, tokens, choice), TokenFiles(tokens, "val", tokenizer)
    texts = texts_of_run(run, "val", limit)
    begin = tokenizer.special_id(END_OF_TEXT)
    ids = [i for document in encode_texts(tokenizer, texts) for i in (begin, *document)]
    assert 0 in ids
    assert ids == val.read(0, len(ids)).tolist()
    assert [tokenizer.decode(document) for document in encode_texts(tokenizer, texts)] == texts
    if limit:
        assert isinstance(texts[-1], Beginning)
    else:
        assert len(ids) == val.n_tokens - 1


@pytest.mark.parametrize("text", ["▁▂▃▄▅▆▇█ a bar\n" * 200, "▅▅▅\n▁\n" * 50, "half ▅ of these\nand not those\n" * 50])
def test_reserved_characters_leave_no_line_out_of_a_sentencepiece_vocabulary(text: str) -> None:
    tokenizer = SentencePieceTokenizer.train([text], 400)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    without = text.replace("▅", "").replace("▁", "")
    if without.strip():  # what stands beside them was learnt
        assert len(tokenizer.encode(without)) < len(without.encode()) / 3


@pytest.mark.parametrize("text", ["\n" * 5000, "", " " * 100, "ab " * 600_000, "你好" * 300_000])
def test_every_text_yields_a_sentencepiece_vocabulary(text: str) -> None:
    tokenizer = SentencePieceTokenizer.train([text], 300)
    sample = text[:1000] + "é\n"
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_words_without_spaces_between_them_give_a_warning(tmp_path: Path, logged: list[str]) -> None:
    (tmp_path / "zh.txt").write_text("你好世界我们去上学" * 3000)
    config = DataConfig("text", str(tmp_path / "zh.txt"), dir=str(tmp_path / "data"), val_fraction=0.1)
    tokenizer, folder = prepare(config, TokenizerConfig("word", 100), None)
    assert any("tokenizer=word finds only" in line and "tokenizer=char" in line for line in logged)
    with pytest.raises(
        UserError, match=r"use tokenizer=char or tokenizer=spm_4k, because a token now has \S+ bytes on average"
    ):
        PretrainObjective(
            config, folder, tokenizer, context=64, batch_size=2, micro_batch_size=1, seed=0, val_tokens=100
        )


def test_one_line_says_what_was_read_and_skipped(tmp_path: Path, logged: list[str]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(as_text(DOCUMENTS).replace(b"\n", b"\r\n"))
    (folder / "b.txt").write_bytes(b"x" * 300 + b"\xff")
    (folder / "._a.txt").write_bytes(b"\0")
    config = DataConfig("text", str(folder), dir=str(tmp_path / "data"), val_fraction=0.1, on_invalid="replace")
    tokenizer, tokens = prepare(config, CHAR, None)
    (line,) = [line for line in logged if "read 2 files" in line]
    for part in ("for training", "for validation", "._a.txt (hidden)", "1 invalid character", r"\r\n"):
        assert part in line
    logged.clear()
    prepare(dataclasses.replace(config), CHAR, None)
    assert not logged
    assert np.isfinite(TokenFiles(tokens, "val", tokenizer).n_bytes)
    assert load_tokenizer(next(tokens.parent.glob("char"))).hash == tokenizer.hash
