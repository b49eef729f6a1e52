"""Datasets of the hub without Parquet files, through `load_dataset`, from a server on this machine."""

from __future__ import annotations

import errno
import json
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub_server
import pyarrow as pa
import pytest
from conftest import PATIENCE, FakeClock
from hub_server import CHAR, Hub
from test_hub import documents

from positron.config import DataConfig
from positron.data import hub, hub_download, hub_rows, shards
from positron.data.conversations import read_conversations
from positron.data.corpus import prepare
from positron.data.hub import Repository
from positron.data.hub_download import retry_network
from positron.data.hub_rows import HubRowsSource, fetch_rows, row_chunks
from positron.data.sources import ROWS_FILE, is_validation
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
    monkeypatch.setattr(shards, "worker_processes", lambda: 1)
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


def test_rows_are_waited_for_even_without_patience_for_failures(
    rows_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_download, "PATIENCE_S", 0.0)
    monkeypatch.setattr(hub_rows, "SILENCE_S", PATIENCE)
    first, rows = next(row_chunks(Repository(chosen(tmp_path)), "text", 0))
    assert (first, rows) == (1, TEXTS)


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


@pytest.mark.parametrize("is_parquet", [True, pytest.param(False, marks=pytest.mark.slow)])
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


class Threads:
    """Stands in for processes: what runs in them runs in a thread of this process, and a queue takes the place of the pipe."""

    class End:
        def __init__(self, sent: queue.Queue[Any]) -> None:
            self.sent = sent
            self.send, self.recv = sent.put, sent.get

        def poll(self, seconds: float) -> bool:
            return True

        def close(self) -> None:
            pass

    class Process:
        def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
            self.thread = threading.Thread(target=target, args=args, daemon=daemon)
            self.start, self.join = self.thread.start, self.thread.join

        def kill(self) -> None:
            pass

    def Pipe(self, duplex: bool) -> tuple[End, End]:
        both = self.End(queue.Queue())
        return both, both


class Library:
    """Stands in for the library `datasets`, whose import takes seconds.

    `splits`: name -> rows. `answers`: faults of the next calls of `load_dataset`: an error that is raised at once, or a number
    of rows that are served and the error that follows.
    """

    def __init__(self, **splits: list[Any]) -> None:
        self.splits, self.configs = splits, ["default"]
        self.answers: list[Exception | tuple[int, Exception]] = []
        self.calls: list[tuple[Any, ...]] = []
        log = SimpleNamespace(set_verbosity=lambda _: None, ERROR=40)
        self.utils, self.config = SimpleNamespace(logging=log), SimpleNamespace()

    def load_dataset(
        self, repo: str, config: str | None, *, revision: str, data_files: Any, streaming: bool, cache_dir: str
    ) -> dict[str, Iterator[Any]]:
        self.calls.append((repo, config, revision, data_files, streaming))
        answer = self.answers.pop(0) if self.answers else (None, None)
        if isinstance(answer, Exception):
            raise answer
        return {name: self._rows(rows, *answer) for name, rows in self.splits.items()}

    def _rows(self, rows: list[Any], count: int | None, error: Exception | None) -> Iterator[Any]:
        yield from rows[:count]
        if error is not None:
            raise error

    def get_dataset_config_names(self, repo: str, revision: str) -> list[str]:
        return self.configs


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, rows_hub: Hub) -> Library:
    """The library of a dataset with the split `train`, which holds TEXTS."""
    made = Library(train=[{"text": text} for text in TEXTS])
    monkeypatch.setitem(sys.modules, "datasets", made)
    monkeypatch.setattr("positron.data.hub_rows.CHILDREN", Threads())
    for name in ("leave_interrupts_to_parent", "end_with_parent"):
        monkeypatch.setattr(hub_rows, name, lambda: None)
    for name in ("HUB", "DATASETS", "MODULES", "XET", "ASSETS"):
        monkeypatch.setenv(f"HF_{name}_CACHE", "")  # so that what is set is undone
    for name in ("tqdm.tqdm.set_lock", "huggingface_hub.utils.logging.set_verbosity"):
        monkeypatch.setattr(name, lambda _: None)
    return made


@pytest.mark.parametrize("skip", [0, 2])
def test_after_lost_connections_the_first_chunk_that_is_missing_comes_next(
    skip: int, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_rows, "CHUNK_CHARS", 100)
    repository = Repository(chosen(tmp_path))
    whole = list(row_chunks(repository, "text", 0))
    assert [text for _, chunk in whole for text in chunk] == TEXTS
    assert all(sum(map(len, chunk)) >= 100 > sum(map(len, chunk[:-1])) for _, chunk in whole[:-1])
    assert [first for first, _ in whole] == [1 + sum(len(c) for _, c in whole[:i]) for i in range(len(whole))]
    lost = ConnectionError("the connection was lost")
    library.answers = [(7, lost), ConnectionError("refused"), (20, lost)]
    library.calls.clear()
    assert list(row_chunks(repository, "text", skip)) == whole[skip:]
    assert library.calls == [("some/stories", None, hub_server.COMMIT, None, True)] * 4


def test_only_the_files_and_the_configuration_that_are_chosen_are_read(library: Library, tmp_path: Path) -> None:
    for options, config, files in (
        ({"files": "*.jsonl"}, None, ["train.jsonl"]),
        ({"config_name": "short"}, "short", None),
    ):
        list(row_chunks(Repository(chosen(tmp_path, **options)), "text", 0))
        assert library.calls.pop() == ("some/stories", config, hub_server.COMMIT, files, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"^some/stories has several configurations: give data\.config_name= with one of long, short$"),
        (
            {"config_name": "shrt"},
            r"=shrt is not a configuration of some/stories: did you mean short\? Choose one of long,",
        ),
        ({"config_name": "x"}, r"=x is not a configuration of some/stories: choose one of long, short$"),
        ({"config_name": "long"}, r"cannot be read by load_dataset: no script; try data\.revision="),
        ({"files": "*.jsonl"}, r"cannot be read by load_dataset: no script; try data\.revision="),
    ],
)
def test_a_configuration_that_is_missing_or_unknown_is_named_with_the_choices(
    options: dict[str, Any], says: str, library: Library, tmp_path: Path
) -> None:
    library.configs = ["long", "short"]
    library.answers = [ValueError("no\nscript")]
    with pytest.raises(UserError, match=says):
        next(row_chunks(Repository(chosen(tmp_path, **options)), "text", 0))
    assert len(library.calls) == 1, "it was not tried again"


def test_the_split_train_is_read_or_the_only_split_and_no_other_one(
    library: Library, tmp_path: Path, logged: list[str]
) -> None:
    reads = "some/stories has no Parquet files: its rows are read by load_dataset"
    library.splits = {"test": [{"text": "of test"}], "train": [{"text": "of train"}], "dev": []}
    assert list(row_chunks(Repository(chosen(tmp_path)), "text", 0)) == [(1, ["of train"])]
    assert logged.pop() == f"{reads}, from the split train (splits not read: test, dev)"
    library.splits = {"test": [{"text": "of test"}]}
    assert list(row_chunks(Repository(chosen(tmp_path)), "text", 0)) == [(1, ["of test"])]
    assert logged.pop() == reads
    library.splits = {"dev": [], "test": []}
    for options, advice in (({}, "give"), ({"config_name": "a"}, r"leave out data\.config_name=, and give")):
        with pytest.raises(UserError, match=rf"splits dev, test, and none is named train: {advice} a data\.files="):
            next(row_chunks(Repository(chosen(tmp_path, **options)), "text", 0))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"text": 3, "title": "a", "body": "b"},
            r"no text in the field \"text\" .*: give data\.field= with one of: title,",
        ),
        ({"title": "a", "year": 3}, r"no text in the field \"text\" .*: give data\.field=title$"),
        ({"year": 3}, r"no text in the field \"text\" .*: none of its fields contains text; give another data\.repo=$"),
    ],
)
def test_rows_without_a_text_are_skipped_if_it_is_empty_and_refused_if_it_is_none(
    row: dict[str, Any], says: str, library: Library, tmp_path: Path
) -> None:
    empty: list[dict[str, Any]] = [{"text": ""}, {"text": "a"}, {"text": None}, {"text": "b"}]
    library.splits = {"train": empty}
    assert list(row_chunks(Repository(chosen(tmp_path)), "text", 0)) == [(1, ["a", "b"])]
    library.splits = {"train": [*empty, row]}
    with pytest.raises(UserError, match=says):
        next(row_chunks(Repository(chosen(tmp_path)), "text", 0))


def test_a_full_disk_is_reported_at_once_and_not_as_a_failure_of_the_network(library: Library, tmp_path: Path) -> None:
    library.answers = [OSError(errno.ENOSPC, "No space left on device", "/cache/x")]
    with pytest.raises(OSError, match="No space left on device: '/cache/x'") as error:
        next(row_chunks(Repository(chosen(tmp_path)), "text", 0))
    assert error.value.errno == errno.ENOSPC
    assert len(library.calls) == 1


def test_half_of_a_surrogate_pair_is_refused_with_its_place_or_replaced(library: Library, tmp_path: Path) -> None:
    library.splits = {"train": [{"text": "fine"}, {"text": "half \ud83d"}]}
    tasks = HubRowsSource(Repository(chosen(tmp_path)), chosen(tmp_path)).tasks()
    with pytest.raises(UserError, match=r"^some/stories, text 2 has half of a surrogate pair, \\ud83d"):
        list(tasks)
    config = chosen(tmp_path, on_invalid="replace")
    source = HubRowsSource(Repository(config), config)
    ((fine, half),) = source.tasks()
    assert [fine.text, half.text] == ["fine", "half \ufffd"]
    assert source.reading.replaced == 1


def test_a_text_is_for_validation_by_its_content_and_tasks_are_skipped(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_rows, "CHUNK_CHARS", 100)
    config = chosen(tmp_path, seed=5, val_fraction=0.4)
    source = HubRowsSource(Repository(config), config)
    tasks = list(source.tasks())
    found = {document.text: document.is_val for task in tasks for document in source.read(task)}
    assert found == {text: is_validation(text, 5, 0.4) for text in TEXTS}
    assert len(set(found.values())) == 2
    assert list(source.tasks(skip=len(tasks) - 1)) == tasks[-1:]


def test_the_caches_of_the_library_stay_until_everything_is_read(library: Library, tmp_path: Path) -> None:
    config = chosen(tmp_path)
    repository = Repository(config)
    source = HubRowsSource(repository, config)
    done = len(list(source.tasks()))
    for tasks_done, is_kept in ((done, True), (None, False)):
        source.release(tasks_done)
        assert repository.raw.exists() == is_kept
    assert (repository.folder / "source.json").exists()


def test_rows_are_fetched_once_with_cells_that_json_lacks_as_text(library: Library, tmp_path: Path) -> None:
    rows = [{"a": 1, "path": Path("x/y"), "text": "é\ud83d"}, {"a": None}]
    library.splits = {"train": rows}
    config = chosen(tmp_path)
    path = fetch_rows(config)
    written = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert written == [{"a": 1, "path": str(Path("x/y")), "text": "é\ud83d"}, {"a": None}]
    assert not Repository(config).raw.exists()
    assert fetch_rows(config) == path
    assert len(library.calls) == 1


def test_rows_that_cannot_all_be_fetched_leave_no_file_and_are_fetched_again(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_rows, "CHUNK_CHARS", 100)
    config = chosen(tmp_path)
    library.answers = [(30, ValueError("line 31 is damaged"))]
    with pytest.raises(UserError, match="line 31 is damaged"):
        fetch_rows(config)
    files = [path.name for path in Repository(config).folder.iterdir() if path.is_file()]
    assert sorted(files) == ["lock", "source.json"]
    assert [json.loads(line)["text"] for line in fetch_rows(config).read_bytes().splitlines()] == TEXTS


def test_what_a_killed_download_of_rows_left_is_removed_by_the_next(library: Library, tmp_path: Path) -> None:
    config = chosen(tmp_path)
    (Repository(config).folder / f".{ROWS_FILE}.{2**30}-0123abcd.tmp").write_text("half")
    fetch_rows(config)
    assert sorted(path.name for path in Repository(config).folder.iterdir()) == ["lock", ROWS_FILE, "source.json"]


def test_rows_of_parquet_files_are_fetched_with_one_file_on_the_disk(
    rows_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "BUFFER_FILES", 1)
    for number in range(3):
        table = pa.Table.from_pylist([{"n": 10 * number + i} for i in range(5)])
        rows_hub.add_table(f"data/{number}.parquet", table, row_group_size=2)
    config = chosen(tmp_path)
    most = 0
    for _ in hub_rows._all_rows(Repository(config), config):
        most = max(most, len(list(tmp_path.rglob("*.parquet"))))
    assert most == 1
    path = fetch_rows(config)
    assert [json.loads(line)["n"] for line in path.read_bytes().splitlines()] == [
        10 * n + i for n in range(3) for i in range(5)
    ]
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_machine_without_network_is_told_which_server_it_cannot_reach(monkeypatch: Any, logged: list[str]) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    unresolved = OSError("no address")
    unresolved.__cause__ = socket.gaierror("name not known")

    def fail() -> None:
        raise unresolved

    with pytest.raises(
        Unreachable, match=r"a dataset cannot be downloaded: cannot reach huggingface\.co \(no address\)\."
    ):
        retry_network(fail, "a dataset", waits_for_name=False)
