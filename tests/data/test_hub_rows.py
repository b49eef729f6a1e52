"""Datasets of the hub without Parquet files, through `load_dataset`, from a server on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pyarrow as pa
import pytest
from conftest import FakeClock
from hub_server import CHAR, Hub
from test_hub import documents

from positron.config import DataConfig
from positron.data import hub_download, hub_rows
from positron.data.conversations import read_conversations
from positron.data.corpus import prepare
from positron.data.hub import Repository
from positron.data.hub_rows import row_chunks
from positron.system.errors import Unreachable, UserError

TEXTS = [f"Row {i}: {'once upon a time ' * (i % 4 + 1)}é😀" for i in range(40)]
TALKS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]} for i in range(5)
]


@pytest.fixture
def rows_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    server.add_lines("train.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    server.files[server.path("README.md")] = b"# Rows\n"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(hub_download, "SPARE_BYTES", 0)
    monkeypatch.setattr(hub_download, "time", FakeClock())
    yield server
    server.close()


def chosen(folder: Path, **options: Any) -> DataConfig:
    return DataConfig("hub", **{"repo": "some/stories", "val_fraction": 0.1, "dir": str(folder / "data"), **options})


def test_rows_become_tokens_once_and_nothing_is_kept_elsewhere(
    rows_hub: Hub, tmp_path: Path, logged: list[str]
) -> None:
    rows_hub.add_lines("test.jsonl", [{"text": "never read"}])
    tokenizer, folder = prepare(chosen(tmp_path), CHAR, None)
    assert sorted(documents(folder, tokenizer)) == sorted(TEXTS)
    assert (
        "some/stories has no Parquet files: its rows are read by load_dataset, from the split train (splits not read: test)"
        in logged
    )
    assert not (folder.parent / "raw").exists()
    assert not (tmp_path / "home").exists()
    rows_hub.close()
    assert prepare(chosen(tmp_path), CHAR, None)[1] == folder


@pytest.mark.slow
def test_chunks_are_the_same_from_anywhere_and_after_a_failure(rows_hub: Hub, tmp_path: Path) -> None:
    large = [{"text": f"{i} " + "x" * 400_000} for i in range(8)]
    rows_hub.add_lines("train.jsonl", large)
    repository = Repository(chosen(tmp_path))
    rows_hub.faults[rows_hub.path("train.jsonl")] = ["cut off"]
    chunks = list(row_chunks(repository, "text", 0))
    assert [text for _, chunk in chunks for text in chunk] == [row["text"] for row in large]
    assert [(first, len(chunk)) for first, chunk in chunks] == [(1, 3), (4, 3), (7, 2)]
    assert list(row_chunks(repository, "text", 2)) == chunks[2:]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"field": "story"}, r'some/stories has no text in the field "story" \(data\.field\): give data\.field=text'),
        ({"files": "*.csv"}, r"has no files that match data\.files=\*\.csv: .*; the dataset has: train\.jsonl"),
        pytest.param(
            {"files": "broken.jsonl"},
            r"cannot be read by load_dataset: .*; try data\.revision=.*data\.files=PATTERN",
            marks=pytest.mark.slow,
        ),
        (
            {"tokens_per_epoch": "1k", "packing": "windows"},
            "needs Parquet files, but .*: give data.tokens_per_epoch=null, or",
        ),
    ],
)
def test_what_cannot_be_read_is_named(rows_hub: Hub, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    if options.get("files") == "broken.jsonl":
        rows_hub.files[rows_hub.path("broken.jsonl")] = b'{"text": "a"}\n{"text": \n'
    with pytest.raises(UserError, match=says):
        prepare(chosen(tmp_path, **options), CHAR, None)


def test_a_dataset_without_data_is_refused_without_advice_on_patterns(rows_hub: Hub, tmp_path: Path) -> None:
    del rows_hub.files[rows_hub.path("train.jsonl")]
    with pytest.raises(UserError, match=r"^data\.repo=some/stories contains no data: give another dataset$"):
        prepare(chosen(tmp_path), CHAR, None)


CONFIGS = """---
configs:
- config_name: long
  data_files: train.jsonl
- config_name: short
  data_files: short.jsonl
---
"""


@pytest.mark.slow  # five processes import `datasets`
def test_a_configuration_is_asked_for_by_name_and_identifies_the_text(rows_hub: Hub, tmp_path: Path) -> None:
    rows_hub.files[rows_hub.path("README.md")] = CONFIGS.encode()
    rows_hub.add_lines("short.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match=r"has several configurations: give data\.config_name= with one of long, short"):
        prepare(chosen(tmp_path), CHAR, None)
    with pytest.raises(UserError, match=r"config_name=other is not a configuration of \S+: choose one of long, short"):
        next(row_chunks(Repository(chosen(tmp_path, config_name="other")), "text", 0))
    with pytest.raises(UserError, match=r"config_name=shrt .*: did you mean short\? Choose one of long, short"):
        next(row_chunks(Repository(chosen(tmp_path, config_name="shrt")), "text", 0))
    short, long = (Repository(chosen(tmp_path, config_name=name)) for name in ("short", "long"))
    assert list(row_chunks(short, "text", 0)) == [(1, ["a", "b"])]
    assert list(row_chunks(long, "text", 0)) == [(1, TEXTS)]
    assert len({short.fingerprint, long.fingerprint, Repository(chosen(tmp_path)).fingerprint}) == 3
    assert short.folder != long.folder


def test_a_configuration_is_not_combined_with_files_that_are_chosen_otherwise(rows_hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.config_name= and data\.files= both choose files"):
        chosen(tmp_path, config_name="short", files="*.jsonl")
    rows_hub.add("data/train.parquet", TEXTS)
    for name, files in (("short", "data/train.parquet"), ("train", "*train*")):
        with pytest.raises(UserError, match=r"is for datasets without Parquet files") as error:
            Repository(chosen(tmp_path, config_name=name))
        assert f"data.files={files}" in str(error.value)


def test_a_dataset_that_changed_has_another_fingerprint_once_its_note_is_gone(
    rows_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Repository(chosen(tmp_path)).fingerprint
    monkeypatch.setattr(hub_server, "COMMIT", "f" * 40)
    rows_hub.add_lines("train.jsonl", [{"text": "changed"}])
    assert Repository(chosen(tmp_path)).fingerprint == first
    assert Repository(chosen(tmp_path / "elsewhere")).fingerprint != first


def test_a_network_that_is_silent_is_waited_for_and_then_named(
    rows_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    repository = Repository(chosen(tmp_path))
    monkeypatch.setattr(hub_download, "PATIENCE_S", 1.0)  # less than the process needs to start
    monkeypatch.setattr(hub_rows, "SILENCE_S", 0.5)
    with pytest.raises(Unreachable, match="the rows of some/stories cannot be downloaded: no answer within 1 s"):
        next(row_chunks(repository, "text", 0))
    assert logged[0].startswith("waiting for the rows of some/stories")
    assert "trying again" in logged[1]


@pytest.mark.slow  # the hub's client waits for 25 s by itself
def test_a_network_that_went_away_is_named(rows_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(chosen(tmp_path))
    rows_hub.close()
    monkeypatch.setattr(hub_download, "PATIENCE_S", 0.5)
    monkeypatch.setattr(hub_rows, "patience_s", lambda: 300.0)
    with pytest.raises(Unreachable, match="the rows of some/stories cannot be downloaded: Couldn't reach"):
        next(row_chunks(repository, "text", 0))


def test_failures_of_the_network_and_of_the_data_are_distinguished() -> None:
    assert hub_rows._reason(ConnectionError("gone"), "a/b") == ("network", "gone")
    assert hub_rows._reason(TimeoutError(), "a/b") == ("network", "TimeoutError")
    for error in (FileNotFoundError("no data"), ValueError("no data"), UserError("no data")):
        kind, line = hub_rows._reason(error, "a/b")
        assert (kind, "no data" in line) == ("user", True)


@pytest.mark.slow
@pytest.mark.parametrize("is_parquet", [True, False])
def test_conversations_of_the_hub_are_fetched_once(rows_hub: Hub, tmp_path: Path, is_parquet: bool) -> None:
    if is_parquet:
        rows_hub.add_table("data/train.parquet", pa.Table.from_pylist(TALKS), row_group_size=2)
    else:
        rows_hub.add_lines("train.jsonl", TALKS)
    config = DataConfig("instruct", repo="some/stories", dir=str(tmp_path / "data"))
    conversations = read_conversations(config)
    assert [[m.content for m in conversation.messages] for conversation in conversations] == [
        [f"{i}?", f"{i}!"] for i in range(5)
    ]
    assert not list(tmp_path.glob("data/*/raw"))
    rows_hub.close()
    assert read_conversations(config) == conversations


def test_a_path_and_a_repository_are_two_places() -> None:
    with pytest.raises(UserError, match="both say where the conversations are"):
        DataConfig("instruct", path="a.jsonl", repo="some/stories")
