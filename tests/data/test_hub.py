"""Datasets of the hub, through the real client, from a server on this machine that fails in all the usual ways."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from conftest import _SERVER, PATIENCE, FakeClock, apart
from hub_server import CHAR, COMMIT, STORIES, Hub, config, contents, stories_hub  # noqa: F401

from positron.config import DataConfig, TokenizerConfig
from positron.data import hub, hub_download, shards
from positron.data.corpus import prepare
from positron.data.shards import TokenFiles
from positron.system.errors import Unreachable, UserError
from positron.text.tokenizer import END_OF_TEXT


def documents(folder: Path, tokenizer: Any) -> list[str]:
    texts = []
    for split in ("train", "val"):
        files = TokenFiles(folder, split, tokenizer)
        ids = files.read(0, files.n_tokens)
        cuts = np.flatnonzero(ids == tokenizer.special_id(END_OF_TEXT))
        texts += [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in itertools.pairwise(cuts)]
    return texts


ALL = sorted(itertools.chain(*STORIES))


@pytest.mark.slow
def test_a_dataset_becomes_tokens_and_its_files_go(stories_hub: Hub, tmp_path: Path) -> None:
    tokenizer, folder = prepare(config(tmp_path), CHAR, None)
    assert sorted(documents(folder, tokenizer)) == ALL
    assert not (folder.parent / "raw").exists()
    asked = len(stories_hub.requests)
    stories_hub.close()  # what is prepared needs no network
    _, again = prepare(config(tmp_path), CHAR, None)
    assert again == folder
    assert len(stories_hub.requests) == asked


def test_the_buffer_on_the_disk_is_never_exceeded(stories_hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "BUFFER_FILES", 2)
    most, real = [0], hub.HubSource.read

    def watched(self: Any, task: Any) -> Any:
        most[0] = max(most[0], len(list((self.folder / "raw").rglob("*.parquet"))))
        return real(self, task)

    monkeypatch.setattr(hub.HubSource, "read", watched)
    monkeypatch.setattr(shards, "worker_processes", lambda: 1)
    prepare(config(tmp_path), TokenizerConfig("word", 1000), None)
    assert 1 <= most[0] <= 2


@pytest.mark.slow
def test_several_processes_write_what_one_writes_with_a_full_buffer(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(hub, "BUFFER_FILES", 1)
    monkeypatch.setattr(shards, "worker_processes", lambda: 1)
    _, single = prepare(config(tmp_path / "a"), CHAR, None)
    monkeypatch.setattr(shards, "worker_processes", lambda: 3)
    _, three = prepare(config(tmp_path / "b"), CHAR, None)
    assert contents(single) == contents(three)


FAULTS = {
    "503 three times": ["503", "503", "503"],
    "429, wait": ["429"],
    "cut off in the middle": ["cut off"],
    "cut off again and again": ["cut off"] * 4,
    "no answer": ["silent"],
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[] if f == "cut off in the middle" else [pytest.mark.slow]) for f in FAULTS],
)
def test_faults_of_the_network_are_survived(stories_hub: Hub, tmp_path: Path, fault: str) -> None:
    stories_hub.faults[stories_hub.path("data/train-00002.parquet")] = list(FAULTS[fault])
    tokenizer, folder = prepare(config(tmp_path), CHAR, None)
    assert sorted(documents(folder, tokenizer)) == ALL


@pytest.mark.slow
def test_an_unreachable_hub_loses_nothing_and_the_same_call_continues(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any, logged: list[str]
) -> None:
    monkeypatch.setattr(hub_download, "PATIENCE_S", 3.0)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 3000)
    chosen = config(tmp_path, max_mb=1)
    broken = stories_hub.path("data/train-00004.parquet")
    prepare_tokenizer = prepare(config(tmp_path, files="data/train-00000*"), CHAR, None)[0]
    stories_hub.faults[broken] = ["503"] * 1000
    with pytest.raises(Unreachable, match=r"cannot be downloaded.*Finished work is kept: run the same command again"):
        prepare(chosen, CHAR, prepare_tokenizer)
    assert any("trying again" in line for line in logged)
    stories_hub.faults.clear()
    logged.clear()
    tokenizer, folder = prepare(chosen, CHAR, prepare_tokenizer)
    assert any("continuing with the rest" in line for line in logged)
    whole = prepare(dataclass_with(chosen, tmp_path / "whole"), CHAR, prepare_tokenizer)[1]
    assert contents(folder) == contents(whole)
    assert len(documents(folder, tokenizer)) == len(ALL)


def dataclass_with(chosen: DataConfig, folder: Path) -> DataConfig:
    import dataclasses

    return dataclasses.replace(chosen, dir=str(folder))


def test_without_a_network_the_hub_is_out_of_reach_after_a_bounded_wait(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any, logged: list[str]
) -> None:
    monkeypatch.setattr(hub_download, "PATIENCE_S", 3.0)
    stories_hub.close()
    with pytest.raises(Unreachable, match="the dataset some/stories cannot be downloaded"):
        prepare(config(tmp_path), CHAR, None)
    assert any("trying again" in line for line in logged)


def test_a_download_ends_if_the_server_accepts_connections_but_never_answers(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    """The client alone would repeat its request for minutes."""
    ended = threading.Event()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: ended.wait(PATIENCE))
    monkeypatch.setattr(hub_download, "time", time)
    monkeypatch.setattr(hub_download, "ANSWER_S", 0.1)
    monkeypatch.setattr(hub_download, "PATIENCE_S", 0.2)
    file = {"name": "data/train-00001.parquet", "size": None, "sha256": None}
    with pytest.raises(Unreachable, match="cannot be downloaded: no answer within 0 s"):
        hub_download.download("some/stories", "dataset", COMMIT, file, tmp_path)
    ended.set()


def test_a_failure_near_the_end_of_a_long_download_is_not_the_last_attempt(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    real, attempts, clock = huggingface_hub.hf_hub_download, [], FakeClock()
    monkeypatch.setattr(hub_download, "time", clock)

    def slow(*arguments: Any, tqdm_class: Any, **options: Any) -> Any:
        attempts.append(1)
        clock.sleep(10 * hub_download.PATIENCE_S)
        if len(attempts) == 1:
            tqdm_class(disable=True).update(1000)
            raise ConnectionError("the connection was reset")
        return real(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    file = {"name": "data/train-00001.parquet", "size": None, "sha256": None}
    path = hub_download.download("some/stories", "dataset", COMMIT, file, tmp_path)
    assert path.read_bytes() == stories_hub.files[stories_hub.path("data/train-00001.parquet")]


def test_downloads_of_the_same_file_take_turns(stories_hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    """The client deletes an old file before it downloads a new one: here, one that another reader has just received."""
    name, active, most = "data/train-00001.parquet", [0], [0]
    file = {"name": name, "size": None, "sha256": stories_hub.sha256(stories_hub.path(name))}
    real = huggingface_hub.hf_hub_download

    def slow(*arguments: Any, **options: Any) -> Any:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.1)
        path = real(*arguments, **options)
        active[0] -= 1
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(hub_download.download, "some/stories", "dataset", COMMIT, file, tmp_path) for _ in range(3)
        ]
        assert {call.result() for call in calls} == {tmp_path / name}
    assert most[0] == 1


def test_a_wrong_checksum_is_fetched_again_and_never_used(stories_hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    stories_hub.lies.add(stories_hub.path("data/train-00001.parquet"))
    monkeypatch.setattr(hub_download, "PATIENCE_S", 3.0)
    with pytest.raises(Unreachable, match="checksum"):
        prepare(config(tmp_path), CHAR, None)
    assert not list(tmp_path.glob("data/*/tokens-*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo": "some/nothing"}, "does not exist"),
        (
            {"files": "test-*"},
            r"no Parquet files that match data\.files=test-\*: .*; the dataset has: data/train-00000",
        ),
        ({"field": "story"}, r'no column "story" \(data\.field\): give data\.field=text'),
    ],
)
def test_what_does_not_exist_is_named(stories_hub: Hub, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(config(tmp_path, **options), CHAR, None)


def test_a_pattern_of_files_distinguishes_the_case_of_letters_on_windows_too(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("os.path.normcase", str.lower)  # as on Windows
    with pytest.raises(UserError, match=r"no Parquet files that match data\.files=DATA"):
        prepare(config(tmp_path, files="DATA/*"), CHAR, None)


def test_a_full_disk_is_reported_before_the_download(stories_hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub_download, "SPARE_BYTES", 10**15)
    with pytest.raises(UserError, match=r"GB free, but data/train-00000\.parquet needs"):
        prepare(config(tmp_path), CHAR, None)
    assert not any("resolve" in path for path in stories_hub.requests)


def test_a_disk_that_another_program_fills_during_the_download_is_named_in_one_line(
    stories_hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    said = (
        r"cannot write data/train-00000\.parquet to .*raw: No space left on device; free disk space, and give the same"
    )
    with pytest.raises(UserError, match=said):
        prepare(config(tmp_path), CHAR, None)


def test_a_fault_of_this_machine_is_not_taken_for_one_of_the_network() -> None:
    calls = []

    def full() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        hub_download.retry_network(full, "a file")
    assert len(calls) == 1


def _prepare(folder: str, endpoint: str) -> None:
    os.environ["HF_ENDPOINT"] = endpoint
    hub_download.SPARE_BYTES, shards.SHARD_TOKENS = 0, 3000
    vars(shards)["worker_processes"] = lambda: 1
    prepare(config(Path(folder)), CHAR, None)


@pytest.mark.slow
def test_a_killed_call_continues_with_the_same_bytes(stories_hub: Hub, tmp_path: Path) -> None:
    apart(_prepare, str(tmp_path / "whole"), stories_hub.url)
    (wanted,) = (tmp_path / "whole").glob("data/*/tokens-*")
    rng, kills = random.Random(0), 0
    for requests in (0, 1, 2, 3, 3, 4, 4, 5):  # that are answered; it is killed while it waits for the next one
        process = _SERVER.Process(target=_prepare, args=(str(tmp_path / "killed"), stories_hub.url))
        stories_hub.hold(requests)
        process.start()
        while process.is_alive() and not stories_hub.holding.wait(0.01):
            pass
        process.join(rng.uniform(0.0, 0.05))  # other threads may still work
        kills += process.is_alive()
        process.kill()
        process.join()
        stories_hub.release()
    assert kills >= 3
    apart(_prepare, str(tmp_path / "killed"), stories_hub.url)
    (got,) = (tmp_path / "killed").glob("data/*/tokens-*")
    assert contents(got) == contents(wanted)
    shutil.rmtree(tmp_path)


def test_training_on_a_dataset_of_the_hub(stories_hub: Hub, run_command: Any, tmp_path: Path) -> None:
    made = run_command(
        "train",
        "model=debug",
        "data=hub",
        "data.repo=some/stories",
        "data.files=data/train-*",
        "data.val_fraction=0.1",
        "tokenizer=char",
        "device=cpu",
        "precision=fp32",
        "train.max_steps=3",
        "train.batch_tokens=512",
        "model.context_length=32",
        "model.d_model=32",
        "train.sample_tokens=4",
        "name=h",
        HF_ENDPOINT=stories_hub.url,
    )
    assert made.code == 0, made.err
    gone = run_command("train", "data=hub", "data.repo=other/one", "model=debug", "name=g", HF_ENDPOINT=stories_hub.url)
    assert gone.code == 2
    assert "other/one does not exist" in gone.err.splitlines()[-1]


def test_the_patience_with_the_hub_is_a_number_of_seconds_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, seconds in [("", hub_download.PATIENCE_S), ("2.5", 2.5), ("0", 0)]:
        monkeypatch.setenv("POSITRON_PATIENCE_S", text)
        assert hub_download.patience_s() == seconds
    for text in ("10min", "-1", "nan"):
        monkeypatch.setenv("POSITRON_PATIENCE_S", text)
        with pytest.raises(UserError, match=f"POSITRON_PATIENCE_S={text} is not a number of seconds"):
            hub_download.patience_s()
