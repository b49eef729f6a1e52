"""Text from files: every format gives the same documents, as a stream, and errors name file and place."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import _SERVER, PATIENCE, apart
from faults import interrupted_at_the_end
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import DOCUMENTS, as_arrow, as_jsonl, as_parquet, as_text, source, zst

from positron import cache
from positron.config import DataConfig, TokenizerConfig
from positron.data import files, shards
from positron.data.corpus import prepare
from positron.data.files import SEPARATOR, FileSource, split_documents
from positron.data.listing import list_files
from positron.data.shards import TokenFiles, verify
from positron.data.sources import is_validation
from positron.system.disk import open_descriptor
from positron.system.errors import UserError
from positron.system.locks import lock

FORMATS = {
    "a.txt": as_text(DOCUMENTS),
    "a.jsonl": as_jsonl(DOCUMENTS),
    "a.parquet": as_parquet(DOCUMENTS),
    "a.arrow": as_arrow(DOCUMENTS),
    "footer.arrow": as_arrow(DOCUMENTS, pa.ipc.new_file),
    "a.arrow.gz": gzip.compress(as_arrow(DOCUMENTS)),
    "a.txt.gz": gzip.compress(as_text(DOCUMENTS)),
    "a.jsonl.gz": gzip.compress(as_jsonl(DOCUMENTS)),
    "a.txt.zst": zst(as_text(DOCUMENTS)),
    "a.jsonl.zst": zst(as_jsonl(DOCUMENTS)),
}


def texts(text_source: FileSource) -> list[str]:
    """Documents, their pieces joined."""
    out, part = [], ""
    for task in text_source.tasks():
        for document in text_source.read(task):
            part += document.text
            if document.ends:
                out.append(part)
                part = ""
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    text_source = source(tmp_path / name)
    assert texts(text_source) == DOCUMENTS
    sides = {d.text: d.is_val for task in text_source.tasks() for d in task}
    assert 2 < sum(sides.values()) < 30
    assert sides == {d: is_validation(d, 0, 0.2) for d in DOCUMENTS}


def test_a_folder_and_a_glob_are_their_files_in_order(tmp_path: Path) -> None:
    for i in range(0, 60, 10):
        (tmp_path / "sub").mkdir(exist_ok=True)
        folder = tmp_path / "sub" if i >= 30 else tmp_path
        (folder / f"{i:02d}.txt").write_bytes(as_text(DOCUMENTS[i : i + 10]))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert texts(source(tmp_path)) == DOCUMENTS
    assert texts(source(f"{tmp_path}/*.txt")) == DOCUMENTS[:30]
    assert texts(source(f"{tmp_path}/**/*.txt")) == DOCUMENTS


@pytest.mark.parametrize("as_splits", [False, True])
def test_a_folder_of_save_to_disk_gives_its_rows_and_of_several_splits_those_of_train(
    tmp_path: Path, as_splits: bool
) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    rows.save_to_disk(tmp_path / "d" / "train" if as_splits else tmp_path / "d", num_shards=3)
    if as_splits:
        rows.select([0]).save_to_disk(tmp_path / "d" / "test")
        (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    text_source = source(tmp_path / "d")
    assert texts(text_source) == DOCUMENTS
    assert text_source.summary() == "read 3 files" + "; skipped test (not the split train)" * as_splits


def test_a_folder_of_save_to_disk_gives_only_the_files_that_its_state_names(tmp_path: Path) -> None:
    names = ["data-00000-of-00001.arrow", "cache-8e708b0776c34bd2.arrow", "data-00000-of-00003.arrow"]
    for name in names:
        (tmp_path / name).write_bytes(as_arrow(DOCUMENTS))
    (tmp_path / "dataset_info.json").write_text("{}")
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": names[0]}]}))
    text_source = source(tmp_path)
    assert texts(text_source) == DOCUMENTS
    reason = "not part of the dataset that state.json describes"
    assert text_source.summary() == f"read 1 file; skipped {names[1]}, {names[2]} ({reason})"
    state.unlink()
    assert len(texts(source(tmp_path))) == 3 * len(DOCUMENTS)  # a folder of files that belong together


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{", r"state\.json: it is not valid JSON .*restore it from a copy$"),
        ("[]", r"state\.json does not list the files of its dataset: save the dataset again"),
        ('{"_data_files": [{"filename": 1}]}', r"state\.json does not list the files of its dataset"),
        (
            '{"_data_files": [{"filename": "../a.arrow"}]}',
            r"state\.json names \.\./a\.arrow, which is not in its folder",
        ),
    ],
)
def test_a_damaged_state_of_save_to_disk_is_refused(tmp_path: Path, state: str, said: str) -> None:
    (tmp_path / "a.arrow").write_bytes(as_arrow(DOCUMENTS))
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, content in {"dataset_info.json": "{}", "state.json": state}.items():
        (folder / name).write_text(content)
    (folder / "a.arrow").write_bytes(as_arrow(DOCUMENTS))
    with pytest.raises(UserError, match=said):
        list_files(str(folder))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_limit_that_leaves_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    with pytest.raises(
        UserError, match=rf"^data\.max_mb= ends data\.path=.*{name} before .*: give a larger data\.max_mb="
    ):
        source(tmp_path / name, max_mb=1e-9)


def test_another_field_is_read_and_its_absence_names_the_fields_with_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    assert texts(source(tmp_path / "a.jsonl", field="body"))[0].startswith("one")
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_bytes(FORMATS[name])
        with pytest.raises(UserError, match=rf'{name}.*"story" \(data\.field\): give data\.field=text$'):
            source(tmp_path / name, field="story")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b"\n',
            r"a\.jsonl, line 2 is not JSON: Expecting .*, column \d+; correct or remove the line$",
        ),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "line 3 has no field"),
        (
            "a.txt",
            b"ok " * 700_000 + b"\xff",
            r"byte 2100000 is 0xff\): if its encoding is WINDOWS-1252, .* data\.on_invalid=replace",
        ),
        ("a.txt", "né".encode()[:-1], "byte 1 is 0xc3"),
        ("a.txt", b"a\0b", "binary"),
        ("a.txt", b"", "contains no text"),
        ("a.txt", SEPARATOR.encode() + b"\n", "contains no text"),
        (
            "a.jsonl",
            b'{"text": "", "body": "a"}\n',
            r'contains no text in the field "text" \(data\.field\): give the name',
        ),
        ("a.parquet", FORMATS["a.parquet"][:-20], r"cannot read .*a\.parquet"),
        ("a.arrow", FORMATS["a.arrow"][:-200], r"cannot read .*a\.arrow"),
        (
            "a.parquet.gz",
            b"any",
            r"cannot read .*a\.parquet\.gz while it is compressed by gzip: run gunzip on it first$",
        ),
        (
            "a.parquet.zst",
            b"any",
            r"cannot read .*a\.parquet\.zst while it is compressed by zstd: run unzstd on it first$",
        ),
        ("footer.arrow", FORMATS["footer.arrow"][:-20], r"cannot read .*footer\.arrow"),
        (
            "a.txt.gz",
            FORMATS["a.txt.gz"][:-30],
            r"cannot read .*a\.txt\.gz: .*; copy, download or create the file again$",
        ),
        ("a.txt.zst", FORMATS["a.txt.zst"][:-30], r"cannot read .*a\.txt\.zst"),
        ("a.txt.gz", b"no gzip", r"cannot read .*a\.txt\.gz"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        list(source(tmp_path / name).tasks())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nothing.txt", "*.nothing", "."])
def test_missing_paths_are_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"data\.path="):
        source(tmp_path / path)


@pytest.mark.parametrize(
    ("label", "said"), [(None, "the path is empty: give"), ("data.path=", "data.path= is empty: give")]
)
def test_an_empty_path_is_not_the_current_folder(label: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list_files("", label)


@pytest.mark.parametrize("text", ["Once upon a time. " * 300, "Once upon a time\nthere was a fox."])
def test_a_text_in_place_of_a_path_is_told_from_a_missing_file(text: str) -> None:
    with pytest.raises(
        UserError, match=r"Once .* is a text, not the path of a file: save the text in a file, and give the"
    ):
        list_files(text)


def test_invalid_bytes_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 1000 + b"\xffb" * 10)
    text_source = source(tmp_path / "a.txt", on_invalid="replace")
    assert "".join(texts(text_source)) == "a" * 1000 + "�b" * 10
    assert "10 invalid characters were replaced" in text_source.summary()


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(st.lists(st.sampled_from(["\n", "a", "<|", SEPARATOR, "é"]), max_size=5).map("".join), max_size=6),
    size=st.integers(1, 9),
    chunk=st.sampled_from([16, 40, 10**6]),
)
def test_documents_do_not_depend_on_where_blocks_end(parts: list[str], size: int, chunk: int) -> None:
    text = f"\n{SEPARATOR}\n".join(parts)

    def documents(size: int, chunk: int) -> list[str]:
        previous, files.CHARS_PER_TASK = files.CHARS_PER_TASK, chunk
        try:
            out, part = [], ""
            blocks: Iterator[str] = (text[i : i + size] for i in range(0, len(text), size))
            for piece, ends in split_documents(blocks):
                part += piece
                if ends:
                    out.append(part)
                    part = ""
            assert part == ""
            return out
        finally:
            files.CHARS_PER_TASK = previous

    whole = documents(10**6, 10**6)
    assert documents(size, chunk) == whole
    if SEPARATOR not in text:
        assert "".join(whole) == text
    # the plain definition: lines that are the separator divide, and newlines beside them are dropped
    plain, part = [], []
    for line in text.split("\n"):
        if line == SEPARATOR:
            plain.append("\n".join(part))
            part = []
        else:
            part.append(line)
    plain.append("\n".join(part))
    if len(plain) > 1:
        wanted = [p.strip("\n") if i else p.rstrip("\n") for i, p in enumerate(plain)]
        assert [w.strip("\n") for w in whole if w.strip("\n")] == [w.strip("\n") for w in wanted if w.strip("\n")]


def test_a_long_document_comes_in_pieces_and_stays_on_one_side(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "CHARS_PER_TASK", 100)
    long = ["\n".join(f"{i} line {j}" for j in range(100)) for i in range(30)]
    (tmp_path / "a.txt").write_bytes(as_text(long))
    text_source = source(tmp_path / "a.txt")
    assert texts(text_source) == long
    side_of: dict[str, set[bool]] = {}
    for task in text_source.tasks():
        for document in task:
            for line in document.text.splitlines():
                side_of.setdefault(line.split(" ")[0], set()).add(document.is_val)
    assert all(len(sides) == 1 for sides in side_of.values())
    assert {True, False} == {next(iter(sides)) for sides in side_of.values()}


@pytest.mark.slow
def test_memory_is_bounded_by_the_shard_and_not_by_the_corpus(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 500_000)
    line = "The quick brown fox jumps over the lazy dog, again and again and again.\n" * 14
    with (tmp_path / "a.txt").open("w") as out:
        for i in range(20_000):
            out.write(f"{line}{i}\n{SEPARATOR}\n")
    assert (tmp_path / "a.txt").stat().st_size > 20e6
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path))
    monkeypatch.setattr(shards, "SMALL_CORPUS_BYTES", 10**12)  # in this process, where it can be measured
    tracemalloc.start()
    prepare(config, TokenizerConfig("char"), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a million characters as a list of Python integers, the largest thing held, takes 40 bytes each; the whole text in
    # two bytes a token would be as much again
    assert peak < 75e6


# prepare, killed


def _prepare(folder: str, shard_tokens: int, text: str) -> None:
    shards.SHARD_TOKENS, shards.SMALL_CORPUS_BYTES = shard_tokens, 10**12
    files.CHARS_PER_TASK = 20_000
    prepare(DataConfig("text", text, dir=folder), TokenizerConfig("char"), None)


def contents(folder: Path) -> dict[str, bytes]:
    (tokens,) = folder.glob("*/tokens-*")
    return {path.name: path.read_bytes() for path in sorted(tokens.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "least"), [(8, 2), (20, 4)])
def test_prepare_killed_at_random_moments_continues_and_writes_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, least: int
) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows sends no signals to other processes")
    text = tmp_path / "a.jsonl"
    text.write_bytes(as_jsonl([f"{i} {d}" * 20 for i in range(14) for d in DOCUMENTS]))
    apart(_prepare, str(tmp_path / "whole"), 40_000, str(text))
    wanted = contents(tmp_path / "whole")
    assert len(wanted) > 20

    def whole_shards(folder: Path) -> int:
        return len(list(folder.glob("*/.tokens-*.partial/train-*.bin")))

    kills, resumed, rng = 0, 0, random.Random(0)
    attempts = 0
    while kills < count:
        attempts += 1
        folder = tmp_path / f"killed-{attempts}"
        while True:
            process = _SERVER.Process(target=_prepare, args=(str(folder), 40_000, str(text)))
            # every other kill comes a few shards later, however slow the machine is now; the rest at any moment
            enough = whole_shards(folder) + rng.randint(1, 5) if kills % 2 else 0
            process.start()
            while process.is_alive() and whole_shards(folder) < enough:
                time.sleep(0.001)
            process.join(rng.uniform(0.0, 0.03 if kills % 2 else 0.3))
            process.kill()  # of one that has ended, nothing
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            resumed += whole_shards(folder) > 0
        assert contents(folder) == wanted
    assert resumed >= least
    with capsys.disabled():
        print(f"  [prepare: {kills} kills, {resumed} after a whole shard; all completed byte for byte]")


def test_ctrl_c_while_the_last_processes_of_tokenizing_end_stops_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "encode_all", interrupted_at_the_end(shards.encode_all))
    config = DataConfig("stories", size_mb=0.1, dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        prepare(config, TokenizerConfig("char"), None)


def test_a_call_that_ended_before_its_last_file_reads_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = DataConfig("stories", size_mb=0.1, dir=str(tmp_path / "whole"))
    prepare(stories, TokenizerConfig("char"), None)
    cut = dataclasses.replace(stories, dir=str(tmp_path / "cut"))

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "replace_folder", fail)
        patch.setattr(Path, "unlink", lambda path, **_: None if path.name == "progress.json" else os.unlink(path))
        with pytest.raises(OSError, match="No space"):
            prepare(cut, TokenizerConfig("char"), None)
    prepare(cut, TokenizerConfig("char"), None)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_only_what_positron_keeps_in_the_shared_folder_is_freed(
    run_command: Callable[..., Any], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    for name in ("text/a.txt", "photos/a.jpg", "thesis.txt"):
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        (shared / name).write_text("x")
    freed = run_command("cache", "--clean", POSITRON_CACHE=str(shared))
    assert (freed.code, freed.out.count("freed")) == (0, 1)
    assert sorted(path.name for path in shared.rglob("*")) == ["a.jpg", "photos", "thesis.txt"]


def test_what_killed_processes_left_in_a_corpus_is_freed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / f".tokenizer.json.{2**30}-0123abcd.tmp").write_text("half")
    assert cache._clean(tmp_path) == "  freed"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_prepared_text_of_another_user_is_not_called_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file = tmp_path / "lock"
    lock_file.touch()

    def refuse(path: Path, mode: str) -> int:
        if mode == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_descriptor(path, mode)

    monkeypatch.setattr("positron.system.locks.open_descriptor", refuse)
    assert cache._clean(tmp_path) == f"  not deleted: cannot write {lock_file}"
    with lock(lock_file, lambda: None):
        assert cache._clean(tmp_path) == "  in use, not deleted"


def test_files_of_an_interrupted_call_of_another_version_do_not_stay(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(as_text(DOCUMENTS))
    _prepare(str(tmp_path / "out"), 40_000, str(text))
    wanted = contents(tmp_path / "out")
    (tokens,) = (tmp_path / "out").glob("*/tokens-*")
    partial = tokens.with_name(f".{tokens.name}.partial")
    tokens.rename(partial)
    (partial / "tokens.json").unlink()
    (partial / "progress.json").write_text('{"head": {"version": 0}, "tasks": 7, "bytes": 9, "splits": {}}')
    (partial / "train-00007.bin").write_bytes(b"tokens of version 0")
    _prepare(str(tmp_path / "out"), 40_000, str(text))
    assert contents(tmp_path / "out") == wanted


@pytest.mark.slow
def test_workers_of_a_killed_prepare_do_not_stay(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(as_text([d * 50 for d in DOCUMENTS] * 400))  # work for many seconds: it is killed in the middle
    process = _SERVER.Process(target=_prepare_by_all_cores, args=(str(tmp_path / "out"), str(text)))
    process.start()

    def children() -> set[int]:
        pids = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if int(fields[1]) == process.pid and fields[0] != "Z":
                    pids.add(int(entry.name))
        return pids

    if not Path("/proc/self/stat").exists():
        process.kill()
        pytest.skip("needs /proc")
    while len(children()) < 2 and process.exitcode is None:
        time.sleep(0.05)
    workers = children()
    process.kill()
    process.join()
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def _prepare_by_all_cores(folder: str, text: str) -> None:
    shards.SMALL_CORPUS_BYTES = 0
    vars(shards)["worker_processes"] = lambda: 2
    prepare(DataConfig("text", text, dir=folder), TokenizerConfig("char"), None)


def test_an_altered_or_cut_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(FORMATS["a.txt"])
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path))
    tokenizer, folder = prepare(config, TokenizerConfig("char"), None)
    verify(folder)
    shard = folder / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.bin was altered: delete"):
        verify(folder)
    shard.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train-00000\.bin has \d+ tokens"):
        TokenFiles(folder, "train", tokenizer)


def test_a_full_disk_is_one_line_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: Any, logged: list[str]
) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(files, "CHARS_PER_TASK", 500)
    (tmp_path / "a.txt").write_bytes(FORMATS["a.txt"])
    config = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path))
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 8:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        prepare(config, TokenizerConfig("char"), None)
    monkeypatch.setattr(os, "fsync", real)
    tokenizer, folder = prepare(config, TokenizerConfig("char"), None)
    assert any("continuing after" in line for line in logged) or len(calls) == 8
    other = dataclasses.replace(config, dir=str(tmp_path / "other"))
    _, wanted = prepare(other, TokenizerConfig("char"), None)
    first, second = TokenFiles(folder, "train", tokenizer), TokenFiles(wanted, "train", tokenizer)
    assert np.array_equal(first.read(0, first.n_tokens), second.read(0, second.n_tokens))


# commands


def test_prepare_and_preview_print_and_draw(run_command: Any, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(as_text([d * 5 for d in DOCUMENTS]))
    made = run_command("prepare", "data=text", "data.path=my.txt", "tokenizer=char", "--tokenizer-report")
    assert made.code == 0, made.err
    for word in ("documents", "bytes per token", "tokens per word", "unknown", "longest tokens", "rarest"):
        assert word in made.out
    seen = run_command("preview", "my.txt", "tokenizer=word", "model.context_length=32")
    assert seen.code == 0, seen.err
    assert seen.out.count("--- a window of 32 tokens") == 3
    whole = run_command("preview", "my.txt", "tokenizer=word", "model.context_length=8192")
    assert whole.out.count("--- a window of ") == 1
    (picture,) = tmp_path.glob("outputs/data/*/*/lengths.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name, arguments, said in (
        ("preview", ("nothing.txt",), "cannot read data.path=nothing.txt"),
        ("preview", ("my.txt", "other.txt"), "other.txt is not a setting: give one PATH"),
        ("preview", ("data=text", "data.path=my.txt"), "preview needs a PATH before data=text: give a file"),
        ("preview", ("my.txt", "data=instruct"), "shows only texts for pretraining: leave data= out"),
        ("prepare", ("data=text",), "data.path=FILE"),
        ("prepare", ("optimizer.lrr=1",), "did you mean optimizer.lr"),
        ("prepare", ("hello",), "'hello' is not a setting, and there is no such file"),
        ("prepare", ("stories",), "'stories' is not a setting: did you mean data=stories?"),
        ("prepare", ("my.txt", "my2.txt"), "to prepare several files, give data=text and data.path="),
        ("prepare", ("my.txt", "tokenizer=char"), "-m positron.prepare data=text data.path=my.txt tokenizer=char"),
        ("prepare", ("inspect", "my.txt", "tokenizer=char"), "-m positron.preview my.txt tokenizer=char"),
        ("prepare", ("cache", "clean"), "-m positron.cache --clean"),
        ("prepare", ("my.txt",), "-m positron.prepare data=text data.path=my.txt"),
        ("cache", ("data.dir=nofolder",), "data.dir=nofolder is not a folder: correct the path"),
        ("cache", ("--clean", "data.dir=my.txt"), "data.dir=my.txt is not a folder: correct the path"),
        ("cache", ("clean",), "'clean' is not a setting: give data.dir=FOLDER, or the option --clean"),
    ):
        failed = run_command(name, *arguments)
        assert (failed.code, failed.err.count("\n")) == (2, 1), failed.err
        assert said in failed.err


def test_shakespeare_is_fetched_once_and_its_checksum_verified(loopback: Any, tmp_path: Path, monkeypatch: Any) -> None:
    content = as_text(DOCUMENTS)
    loopback.files["/input.txt"] = content
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    chosen = {"url": f"{loopback.url}/input.txt", "sha256": hashlib.sha256(content).hexdigest()}
    for _ in range(2):
        assert texts(FileSource(DataConfig("text", **chosen))) == DOCUMENTS
    assert loopback.requests == ["/input.txt"]
    (tmp_path / "cache/text/input.txt").unlink()
    loopback.files["/input.txt"] = content + b"!"
    with pytest.raises(UserError, match=r"its sha256 is not .*data=stories"):
        FileSource(DataConfig("text", **chosen))


def test_a_text_with_many_unknown_tokens_gives_a_warning(run_command, tmp_path):
    (tmp_path / "my.txt").write_text("".join(f"word{i % 97} and the cat\n" for i in range(3000)))
    lossy = run_command("prepare", "data=text", "data.path=my.txt", "tokenizer=word", "tokenizer.vocab_size=20")
    assert lossy.code == 0, lossy.err
    assert "of the tokens are <unk>" in lossy.err + lossy.out
    whole = run_command("prepare", "data=text", "data.path=my.txt", "tokenizer=word", "tokenizer.vocab_size=200")
    assert "<unk>" not in whole.err + whole.out


def test_a_missing_file_is_answered_with_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "my_text.txt").write_text("text")
    similar = re.escape(str(tmp_path / "my_text.txt"))
    with pytest.raises(UserError, match=rf"No such file .*; check the spelling of the path: did you mean {similar}\?$"):
        list_files(str(tmp_path / "my_txt.txt"))
    with pytest.raises(UserError, match=r"check the spelling of the path$"):
        list_files(str(tmp_path / "quite_different"))
