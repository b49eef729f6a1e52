"""Corpora and token files: nothing lost, nothing twice, the split by document, honest errors."""

import itertools
import json
import os
import signal
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.config import DataConfig, TokenizerConfig
from positron.data import shards
from positron.data.corpus import prepare
from positron.data.open import open_source
from positron.data.shards import TokenFiles
from positron.data.window_order import permute
from positron.data.windows import Windows, validation_windows
from positron.stories.parser import bits
from positron.system.errors import LeftAtOnce, UserError
from positron.system.log import screen_log
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import END_OF_TEXT
from positron.training.objective.pretrain import PretrainObjective

CHAR = TokenizerConfig("char")


def prepared(tmp_path, text=None, choice=CHAR, **options):
    if text is None:
        config = DataConfig("stories", dir=str(tmp_path / "data"), **{"size_mb": 0.2, **options})
    else:
        path = tmp_path / "my.txt"
        path.write_bytes(text.encode("utf-8"))
        config = DataConfig("text", str(path), dir=str(tmp_path / "data"), **{"val_fraction": 0.1, **options})
    lines: list[str] = []
    with screen_log(lines.append):
        tokenizer, folder = prepare(config, choice, None)
    return tokenizer, folder, lines


def text_of(files, tokenizer):
    ids = files.read(0, files.n_tokens)
    end = tokenizer.special_id(END_OF_TEXT)
    assert ids[0] == end
    cuts = np.flatnonzero(ids == end)
    return [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in itertools.pairwise(cuts)]


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process on Windows")
def test_a_signal_that_ends_a_tokenizing_process_first_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    """As a service manager sends it, to one process after the other."""

    class Pool:
        def __init__(self, *_, **__):
            pass

        def submit(self, *_):
            threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
            failed = Future()
            failed.set_exception(BrokenProcessPool())
            return failed

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(shards, "ProcessPoolExecutor", Pool)
    source = SimpleNamespace(tasks=lambda _: iter([0]), total_bytes=None)

    def leave(*_):
        raise LeftAtOnce(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(LeftAtOnce):
            next(shards.encode_all(source, None, tmp_path, 0, 2))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_stories_on_disk_are_the_stories_and_their_exact_information(tmp_path):
    tokenizer, folder, _ = prepared(tmp_path)
    total = 0
    texts = {}
    for split in ("train", "val"):
        files = TokenFiles(folder, split, tokenizer)
        texts[split] = text_of(files, tokenizer)
        assert files.n_documents == len(texts[split])
        assert files.n_bytes == sum(len(t.encode()) for t in texts[split])
        total += files.n_bytes
    val = TokenFiles(folder, "val", tokenizer)
    assert val.bits == pytest.approx(sum(bits(t) for t in texts["val"]), rel=1e-9)
    assert val.floor_bpb == val.bits / val.n_bytes
    assert not set(texts["train"]) & set(texts["val"])
    assert len(texts["val"]) / len(texts["train"]) == pytest.approx(0.02, abs=0.02)
    assert 0.2e6 <= total < 0.6e6


def test_preparing_again_takes_what_is_there(tmp_path):
    _, folder, first = prepared(tmp_path)
    stamp = (folder / "tokens.json").stat().st_mtime_ns
    _, again, second = prepared(tmp_path)
    assert (again, (again / "tokens.json").stat().st_mtime_ns) == (folder, stamp)
    assert first
    assert not second


def test_complete_token_files_are_used_where_no_lock_can_be_taken(tmp_path):
    """As on a disk that this user cannot write, where the lock cannot be opened."""
    tokenizer, folder, _ = prepared(tmp_path)
    (folder.parent / "lock").unlink()
    (folder.parent / "lock").mkdir()
    again, found, lines = prepared(tmp_path)
    assert (again.hash, found, lines) == (tokenizer.hash, folder, [])
    config = DataConfig("stories", dir=str(tmp_path / "data"), size_mb=0.2)
    assert prepare(config, CHAR, tokenizer)[1] == folder
    with pytest.raises(UserError, match=r"cannot write \S+lock .*: give another data\.dir=$"):
        prepared(tmp_path, choice=TokenizerConfig("word", vocab_size=300))


@pytest.mark.slow
def test_several_processes_write_what_one_writes(tmp_path, monkeypatch):
    _, single, _ = prepared(tmp_path / "a")
    monkeypatch.setattr(shards, "SMALL_CORPUS_BYTES", 0)
    monkeypatch.setattr(shards, "worker_processes", lambda: 2)
    tokenizer, parallel, _ = prepared(tmp_path / "b")
    for split in ("train", "val"):
        a, b = TokenFiles(single, split, tokenizer), TokenFiles(parallel, split, tokenizer)
        assert np.array_equal(a.read(0, a.n_tokens), b.read(0, b.n_tokens))


def test_reading_across_shards_is_reading_one_array(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 20_000)
    monkeypatch.setattr("positron.data.files.CHARS_PER_TASK", 5_000)
    text = "".join(chr(97 + i % 26) + ("\n" if i % 50 == 0 else "") for i in range(60_000))
    tokenizer, folder, _ = prepared(tmp_path, text)
    files = TokenFiles(folder, "train", tokenizer)
    whole = files.read(0, files.n_tokens)
    assert len(list(folder.glob("train-*.bin"))) > 1
    for start, length in ((0, 10), (19_990, 30), (files.n_tokens - 5, 5), (100, 45_000)):
        assert np.array_equal(files.read(start, length), whole[start : start + length])


@pytest.mark.parametrize("choice", [CHAR, TokenizerConfig("sentencepiece", 400)], ids=["char", "spm"])
def test_a_text_comes_back_byte_for_byte_but_for_its_line_ends(tmp_path, choice):
    text = "First line.\n\n  Indented — “quoted” 😀\r\nlast line without end" * 40
    tokenizer, folder, _ = prepared(tmp_path, text, choice)
    parts = [text_of(TokenFiles(folder, split, tokenizer), tokenizer) for split in ("train", "val")]
    assert "".join(parts[0] + parts[1]) == text.replace("\r\n", "\n")
    assert len(parts[1][0]) / len(text) == pytest.approx(0.1, abs=0.03)


def test_separated_documents_are_split_by_document_and_equal_ones_stay_together(tmp_path):
    documents = [f"Document number {i % 150}.\nIt has two lines." for i in range(300)]
    tokenizer, folder, _ = prepared(tmp_path, f"\n{END_OF_TEXT}\n".join(documents) + f"\n{END_OF_TEXT}\n")
    train, val = (text_of(TokenFiles(folder, split, tokenizer), tokenizer) for split in ("train", "val"))
    assert sorted(train + val) == sorted(documents)
    assert not set(train) & set(val)
    assert val


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "contains no text"),
        (b"abc\xff\xfe" * 20, "byte 3 is 0xff"),
        (b"a\0b" * 100, "binary"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(DataConfig("text", str(path)))


@pytest.mark.parametrize(
    ("length", "advice"),
    [
        (1, "give a longer text"),
        (30, "give a longer text, or model.context_length=28 or less"),
        (33, "give a longer text, or a smaller data.val_fraction=, or model.context_length=31 or less"),
    ],
)
def test_a_text_shorter_than_a_window_is_named_with_advice_that_helps(tmp_path, length, advice):
    tokenizer, folder, _ = prepared(tmp_path, "x" * length)
    with pytest.raises(UserError, match=rf"training text \(x\.txt\) has .*needs at least 33: {advice}$"):
        opened(folder, tokenizer)


def opened(folder, tokenizer):
    return PretrainObjective(
        DataConfig("text", "x.txt"),
        folder,
        tokenizer,
        context=32,
        batch_size=2,
        micro_batch_size=1,
        seed=0,
        val_tokens=100,
    )


def test_a_text_of_just_one_window_trains(tmp_path):
    tokenizer, folder, _ = prepared(tmp_path, "x" * 40)
    data = opened(folder, tokenizer)
    assert data.train.batch(1).shape == (2, 33)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    context=st.integers(4, 32),
    limit=st.sampled_from([30, 10**6]),
)
@settings(max_examples=100, deadline=None)
def test_validation_scores_every_token_once_with_its_document_from_the_start(lengths, context, limit):
    end = 0
    ids = np.concatenate([[end], *([*np.arange(1, n + 1), end] for n in lengths)])

    class Files:
        n_tokens = len(ids)

        def read(self, start, length):
            return ids[start : start + length]

    x, y = validation_windows(Files(), context=context, end_id=end, limit=limit)
    assert y[y != -100].tolist() == ids[1 : min(len(ids), limit + 1)].tolist()
    for row_x, row_y in zip(x, y, strict=True):
        scored = (row_y != -100).sum()
        assert torch.equal(row_x[1:scored], row_y[: scored - 1])  # inputs are the targets, one later
    if limit > len(ids) and max(lengths) + 1 <= context:
        assert all(row[0] == end for row in x)  # every document fits: every window starts with one


@given(
    n_tokens=st.integers(20, 400),
    context=st.integers(1, 19),
    batch=st.integers(1, 6),
    micro=st.integers(1, 4),
    worlds=st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3])),
    stop=st.integers(1, 60),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.slow
def test_an_epoch_is_the_corpus_once_also_when_stopped_and_resumed_otherwise(
    n_tokens, context, batch, micro, worlds, stop, seed
):
    """Batches as ranks and micro-batches see them, before and after a stop at which the number of devices changes."""
    ids = np.arange(n_tokens)

    class Files:
        def __init__(self):
            self.n_tokens = n_tokens

        def read(self, start, length):
            return ids[start : start + length]

    size = batch * 6  # sequences; 1, 2 and 3 devices can share it
    windows = Windows(Files(), window=context, batch_size=size, seed=seed)
    steps = -(-2 * windows.n_windows // size)

    def served(first, last, world):
        for step in range(first, last + 1):
            for rank in range(world):
                for part in windows.batch(step, rank, world).split(micro):
                    yield from part.tolist()

    rows = [*served(1, min(stop, steps), worlds[0]), *served(stop + 1, steps, worlds[1])]
    assert rows == list(served(1, steps, 1))
    for epoch in (0, 1):
        seen = rows[epoch * windows.n_windows : (epoch + 1) * windows.n_windows]
        targets = sorted(token for row in seen for token in row[1:])
        assert targets == list(range(1, windows.n_windows * context + 1))  # each once; the tail fills no window


@given(n=st.integers(1, 3000), batch=st.integers(1, 8), steps=st.lists(st.integers(1, 1000), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_their_step_in_whatever_order_steps_are_asked_for(n, batch, steps):
    class Files:
        n_tokens = n + 1

        def read(self, start, length):
            return np.arange(start, start + length)

    windows = Windows(Files(), window=1, batch_size=batch, seed=3)
    for step in steps:
        expected = [
            permute(np.array([k % n]), n, 3 * 1_000_003 + k // n)[0] for k in range((step - 1) * batch, step * batch)
        ]
        assert windows.batch(step)[:, 0].tolist() == expected


@given(batch=st.integers(1, 6), world=st.sampled_from([1, 2, 3]), step=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_ranks_share_the_rows_of_one_batch(batch, world, step):
    ids = np.arange(1000)

    class Files:
        n_tokens = 1000

        def read(self, start, length):
            return ids[start : start + length]

    windows = Windows(Files(), window=7, batch_size=batch * world, seed=3)
    whole = windows.batch(step)
    assert whole.shape == (batch * world, 8)
    assert torch.equal(torch.cat([windows.batch(step, rank, world) for rank in range(world)]), whole)


@pytest.mark.parametrize("context", [64, 150])
def test_windows_that_start_at_documents_cover_the_corpus_and_cut_no_beginning(tmp_path, context):
    tokenizer, folder, _ = prepared(tmp_path)
    files = TokenFiles(folder, "train", tokenizer)
    end = tokenizer.special_id(END_OF_TEXT)
    windows = Windows(files, window=context, batch_size=4, seed=0, end_id=end)
    ids = files.read(0, files.n_tokens)
    seen = np.zeros(files.n_tokens, dtype=bool)
    for start in windows.starts:
        seen[start : start + context] = True
    assert seen[: -2 * context].all()
    row = windows.batch(1)[0].numpy()
    starts_with_document = [ids[start] == end for start in windows.starts]
    # stories of 600 characters take several windows of 150; those in the middle of one begin where the last one ended
    assert sum(starts_with_document) >= files.n_documents * 0.99
    assert any(np.array_equal(row, ids[s : s + context + 1]) for s in windows.starts)


def test_a_cut_token_file_is_named_with_what_to_do(tmp_path):
    tokenizer, folder, _ = prepared(tmp_path)
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000\.bin.*delete"):
        TokenFiles(folder, "train", tokenizer)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    _, folder, _ = prepared(tmp_path)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenFiles(folder, "train", CharTokenizer("abc"))


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(chr(0x10000 + i) for i in range(60_000))
    tokenizer, folder, _ = prepared(tmp_path, text)
    files = TokenFiles(folder, "train", tokenizer)
    assert json.loads((folder / "tokens.json").read_text())["dtype"] == "uint32"
    assert files.read(0, files.n_tokens).max() > 65_535
