"""A dataset that is streamed: epochs of new text, each token once, whatever the network and the power do."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import _SERVER, CommandProcess, apart, side_by_side, tiny
from faults import interrupted_at_the_end
from hub_server import CHAR, COMMIT, STORIES, Hub, config, contents, stories_hub  # noqa: F401
from torch import distributed
from two_processes import TWO, as_torchrun

from positron import cache
from positron.config import DataConfig
from positron.data import hub_download, shards, stream, stream_windows
from positron.data.corpus import prepare
from positron.data.shards import TokenFiles
from positron.data.stream import Stream
from positron.data.stream_windows import StreamWindows
from positron.data.window_order import windows_of_step
from positron.evaluation.eval_texts import token_files
from positron.run.folder import Run
from positron.system.disk import make_folder, write_json
from positron.system.errors import Interrupted, Unreachable, UserError, is_raised_together
from positron.system.locks import lock
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import END_OF_TEXT

EPOCH = 3_000
TRAINING = list(itertools.chain(*STORIES[1:]))  # the first file is for validation


def streamed(folder: Path, **options: Any) -> DataConfig:
    return config(folder, tokens_per_epoch=EPOCH, **options)


def opened(folder: Path, **options: Any) -> Stream:
    _, where = prepare(streamed(folder, **options), CHAR, None)
    return Stream(streamed(folder, **options), where / "tokenizer")


def tokens_of(made: Stream, epoch: int) -> np.ndarray:
    files = TokenFiles(made.path(epoch), "train", made.tokenizer)
    assert files.n_tokens == EPOCH + 1
    return files.read(0, EPOCH + 1)


def test_epochs_hold_the_training_text_in_one_piece_and_then_again(stories_hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    made = opened(tmp_path)
    tokenizer = made.tokenizer
    end = tokenizer.special_id(END_OF_TEXT)
    whole = [end]
    for text in TRAINING:
        whole += [*tokenizer.encode(text), end]
    again = [*whole, *whole[1:]]
    n_epochs = len(again) // EPOCH
    assert n_epochs * EPOCH > len(whole)
    for epoch in range(n_epochs):
        made.make(epoch)
        assert tokens_of(made, epoch).tolist() == again[epoch * EPOCH : (epoch + 1) * EPOCH + 1]
    held_out = TokenFiles(made.validation, "val", tokenizer)
    ids = held_out.read(0, held_out.n_tokens)
    assert tokenizer.decode(ids[1:-1].tolist()).startswith(STORIES[0][0])


def test_ctrl_c_while_the_last_processes_of_tokenizing_end_stops_the_call(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = opened(tmp_path)
    monkeypatch.setattr(stream, "encode_all", interrupted_at_the_end(shards.encode_all))
    with pytest.raises(KeyboardInterrupt):
        made.make(1)


@pytest.mark.slow
def test_documents_of_validation_are_left_out_of_training(stories_hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    stories_hub.add("data/train-00001.parquet", [*STORIES[1][:20], *STORIES[0], *STORIES[1][20:]])
    made = opened(tmp_path)
    text = made.tokenizer.decode(tokens_of(made, 0)[1:].tolist())
    assert STORIES[1][21][:30] in text
    assert "File 0" not in text


@pytest.mark.slow
def test_the_limit_holds_and_a_deleted_epoch_is_written_again_the_same(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_EPOCHS", 3)
    made = opened(tmp_path)
    first = contents(made.path(0))
    for epoch in range(6):
        made.make(epoch)
        assert len(list(made.folder.glob("epoch-*"))) <= 3
    assert not made.has(0)
    made.make(0)
    assert contents(made.path(0)) == first
    assert not (made.source.folder / "raw" / "data" / "train-00006.parquet").exists()


@pytest.mark.slow
def test_epochs_that_a_running_training_needs_are_not_evicted(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_EPOCHS", 2)
    made = opened(tmp_path)
    windows = StreamWindows(made.config, made.folder, window=100, batch_size=4, seed=0)
    windows.batch(1)
    for epoch in (3, 4, 5):
        made.make(epoch)
    assert made.has(0)
    windows.close()
    made.make(6)
    made.make(7)
    assert not made.has(0)


def test_a_training_finds_its_epochs_after_the_current_folder_has_changed(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    made = opened(Path("data"))
    windows = StreamWindows(made.config, made.folder, window=100, batch_size=4, seed=0)
    monkeypatch.chdir(tmp_path.parent)
    assert windows.stream.has(0)
    assert windows.tokens.n_tokens == EPOCH + 1


def test_what_is_left_of_a_deleted_epoch_is_deleted_with_the_next(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = opened(tmp_path)
    left = made.path(9)
    left.mkdir()
    (left / "train-00000.bin").write_bytes(b"a process had this file open on Windows")
    made.make(1)
    assert not left.exists()
    assert made.has(0)
    assert made.has(1)


@pytest.mark.slow
def test_the_note_of_a_running_training_names_its_epoch_and_goes_with_it(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = opened(tmp_path)
    windows = StreamWindows(made.config, made.folder, window=100, batch_size=4, seed=0)
    windows.batch(1)
    (note,) = made.folder.glob("users/*")
    assert made._users() == {0}
    later = next(
        step
        for step in range(2, 10_000)
        if windows_of_step(step, seed=0, n_windows=windows.n_windows, batch_size=4)[0][0]
    )
    windows.batch(later)
    assert made._users() == {1}
    windows.close()
    assert made._users() == set()
    assert not note.exists()


@pytest.mark.slow
def test_trainings_with_the_same_process_id_do_not_wait_for_each_other(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Containers that share a folder number their processes separately."""

    def lock_at_once(path: Path, _: Any) -> contextlib.AbstractContextManager[None]:
        return lock(path, lambda: pytest.fail(f"{path} is locked"))

    monkeypatch.setattr(stream_windows, "lock", lock_at_once)
    monkeypatch.setattr(stream_windows, "_Filler", mock.Mock())
    made = opened(tmp_path)
    trainings = [StreamWindows(made.config, made.folder, window=100, batch_size=4, seed=0) for _ in range(2)]
    for windows in trainings:
        windows.batch(1)
    assert len(list(made.folder.glob("users/*"))) == 2
    for windows in trainings:
        windows.close()


def _make(folder: str, endpoint: str, epoch: int) -> None:
    os.environ["HF_ENDPOINT"] = endpoint
    hub_download.SPARE_BYTES, shards.SHARD_TOKENS = 0, 500
    opened(Path(folder)).make(epoch)


@pytest.mark.slow
def test_a_kill_while_an_epoch_is_made_costs_at_most_a_shard(stories_hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    apart(_make, str(tmp_path / "whole"), stories_hub.url, 5)
    (wanted,) = (tmp_path / "whole").glob("data/*/stream-*/epoch-00005")
    rng, kills = random.Random(0), 0
    for requests in (0, 1, 2, 3, 4, 5, 5, 6, 6, 7):  # that are answered; it is killed while it waits for the next one
        process = _SERVER.Process(target=_make, args=(str(tmp_path / "killed"), stories_hub.url, 5))
        stories_hub.hold(requests)
        process.start()
        while process.is_alive() and not stories_hub.holding.wait(0.01):
            pass
        process.join(rng.uniform(0.0, 0.1))  # other threads may still work
        kills += process.is_alive()
        process.kill()
        process.join()
        stories_hub.release()
    apart(_make, str(tmp_path / "killed"), stories_hub.url, 5)
    (got,) = (tmp_path / "killed").glob("data/*/stream-*/epoch-00005")
    assert kills >= 3
    assert contents(got) == contents(wanted)


@pytest.mark.slow
def test_a_far_step_serves_each_window_of_its_epoch_once_on_any_number_of_devices(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = opened(tmp_path)
    windows = StreamWindows(made.config, made.folder, window=100, batch_size=8, seed=3)
    wanted = [tuple(tokens_of(made, 0)[i : i + 101]) for i in range(0, EPOCH, 100)]
    served = [tuple(row.tolist()) for step in (1, 2, 3, 4) for row in windows.batch(step)][: EPOCH // 100]
    assert sorted(served) == sorted(wanted)
    both = [*windows.batch(4, 0, 2).tolist(), *windows.batch(4, 1, 2).tolist()]
    assert both == windows.batch(4).tolist()  # spans two epochs
    windows.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens_per_epoch": "many"}, "give a number of at least 1, such as 10000000 or 10M"),
        ({"max_mb": 3.0}, "or give data.tokens_per_epoch=null"),
        ({"packing": "documents"}, "packing=windows"),
        (
            {"files": "data/train-00000*"},
            "at least two Parquet files, .*: give a data.files= that .*, or data.tokens_per_epoch=null",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(UserError, match=said):
        prepare(config(tmp_path, **{"tokens_per_epoch": EPOCH, **options}), CHAR, None)


TRAINING_COMMAND = (
    "model=debug",
    "data=hub",
    "data.repo=some/stories",
    "data.files=data/train-*",
    f"data.tokens_per_epoch={EPOCH}",
    "data.packing=windows",
    "tokenizer=char",
    "device=cpu",
    "precision=fp32",
    "train.max_steps=14",
    "train.batch_tokens=1600",
    "train.val_every=100",
    "train.log_every=1",
    "train.save_every=100",
    "model.context_length=32",
    "model.d_model=32",
    "train.sample_tokens=4",
    "name=s",
)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "outputs/s/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_survives_an_outage_with_the_same_result(
    stories_hub: Hub,  # noqa: F811
    run_command: Any,
    tmp_path: Path,
) -> None:
    """14 steps span 8 epochs; the files of the later ones are out of reach at first."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    made = run_command("train", *TRAINING_COMMAND, folder=whole, HF_ENDPOINT=stories_hub.url)
    assert made.code == 0, made.err
    settings = [s for s in TRAINING_COMMAND if s.startswith(("data", "tokenizer"))]
    assert run_command("prepare", *settings, folder=cut, HF_ENDPOINT=stories_hub.url).code == 0
    shutil.rmtree(next(cut.glob("outputs/data/*/raw")))
    stories_hub.faults[f"/datasets/some/stories/resolve/{COMMIT}/data/train-00005.parquet"] = ["503"] * 1000
    environment = {"HF_ENDPOINT": stories_hub.url, "POSITRON_PATIENCE_S": "2"}
    failed = run_command("train", *TRAINING_COMMAND, folder=cut, **environment)
    assert failed.code == 1, failed.err
    assert "cannot be downloaded" in failed.err.splitlines()[-1]
    assert "run the same command again" in failed.err.splitlines()[-1]
    done = json.loads((cut / "outputs/s/run.json").read_text())
    assert 0 < done["step"] < 14
    assert list((cut / "outputs/s/checkpoints").glob(f"step-{done['step']:06d}.ckpt"))
    stories_hub.faults.clear()
    resumed = run_command("train", *TRAINING_COMMAND, folder=cut, **environment)
    assert resumed.code == 0, resumed.err
    assert f"resuming outputs/s at step {done['step']}" in resumed.err
    assert losses(cut) == losses(whole)


def wait_for_an_epoch_that_cannot_be_fetched(rank: int, folder: str) -> None:
    """Wait as one of two processes. Only the first knows that the network has failed, and only the second gets a signal."""
    patience = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", f"{folder}/meet", patience, world_size=2, rank=rank)
    windows = StreamWindows.__new__(StreamWindows)
    windows._files, windows._filler = {}, None
    windows.stream = mock.Mock(has=lambda _: False)
    if rank == 0:
        heard = [Unreachable("the hub did not answer"), None]
        windows._filler = mock.Mock(listen=lambda waits: heard.pop() if heard else None)
    with pytest.raises(Unreachable, match="the hub did not answer"):
        windows._open(1, 2, lambda: None)
    waits, ends = (lambda: None), (lambda: Interrupted(signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM") as ended:
        windows._open(1, 2, ends if rank == 1 else waits)
    assert ended.value.exit_code == 143
    assert is_raised_together(ended.value)
    windows.stream.has = lambda _: True
    assert stream_windows._of_all_processes(rank, 2) == [0, 1]
    assert stream_windows._of_all_processes(rank, 1) == [rank]  # in a training of its own
    distributed.destroy_process_group()


def test_all_processes_end_when_the_text_cannot_be_fetched_or_one_gets_a_signal(tmp_path: Path) -> None:
    side_by_side(wait_for_an_epoch_that_cannot_be_fetched, [(rank, tmp_path.as_uri()) for rank in range(2)])


@pytest.mark.slow
def test_two_processes_that_wait_for_text_save_after_a_signal(
    stories_hub: Hub,  # noqa: F811
    start: Any,
    run_command: Any,
    tmp_path: Path,
) -> None:
    data = [s for s in TRAINING_COMMAND if s.startswith(("data", "tokenizer"))]
    assert run_command("prepare", *data, HF_ENDPOINT=stories_hub.url).code == 0
    shutil.rmtree(next(tmp_path.glob("outputs/data/*/raw")))
    faults = stories_hub.faults[stories_hub.path("data/train-00005.parquet")] = ["503"] * 1000
    log = tmp_path / "outputs/s/train.log"

    def interrupt(first: CommandProcess, second: CommandProcess) -> None:
        # once this file was asked for, only its text is missing
        while len(faults) == 1000 or "waiting for the text of epoch" not in log.read_text().splitlines()[-1]:
            assert first.process.is_alive()
            time.sleep(0.01)
        os.kill(second.process.pid, signal.SIGTERM)

    environment = {"HF_ENDPOINT": stories_hub.url, "POSITRON_PATIENCE_S": "1000"}
    as_torchrun(start, "train", *TRAINING_COMMAND, *TWO, code=143, meanwhile=interrupt, **environment)
    facts = Run(tmp_path / "outputs/s").facts()
    assert (facts.status, facts.error) == ("stopped", "SIGTERM")
    assert list((tmp_path / "outputs/s/checkpoints").glob(f"step-{facts.step:06d}.ckpt"))
    assert losses(tmp_path)[facts.step - 1 :] == losses(tmp_path)[-1:]


@pytest.mark.slow
def test_the_cache_is_listed_and_freed_and_what_it_held_comes_back(
    stories_hub: Hub,  # noqa: F811
    run_command: Any,
    tmp_path: Path,
) -> None:
    settings = [s for s in TRAINING_COMMAND if s.startswith(("data", "tokenizer"))] + ["data.dir=my data"]
    assert run_command("prepare", *settings, HF_ENDPOINT=stories_hub.url).code == 0
    (epoch,) = tmp_path.glob("my data/*/stream-*/epoch-00000")
    before = contents(epoch)
    fetched = {"POSITRON_CACHE": str(tmp_path / "fetched")}
    assert "some--stories" not in run_command("cache", **fetched).out  # outputs/data holds nothing
    shown = run_command("cache", "data.dir=my data", **fetched)
    assert shown.code == 0
    assert "some--stories" in shown.out
    assert "positron.cache --clean 'data.dir=my data' frees it" in shown.out
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/model").write_text("a download of another run")
    assert run_command("cache", "--clean", "data.dir=my data", **fetched).code == 0
    assert (tmp_path / "fetched/model").exists()  # it is not in the folder that was named
    assert not epoch.exists()
    assert list(tmp_path.glob("my data/*/source.json"))
    assert run_command("prepare", *settings, HF_ENDPOINT=stories_hub.url).code == 0
    assert contents(epoch) == before


def test_the_validation_text_needs_no_epoch_and_no_network_once_it_was_written(
    stories_hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(make_folder(tmp_path / "run"))
    settings = dataclasses.asdict(tiny(tmp_path)) | {"data": dataclasses.asdict(streamed(Path("outputs")))}
    write_json(run.config_path, settings)
    CharTokenizer("".join(sorted(set("".join(STORIES[0]))))).save(make_folder(run.tokenizer_folder))
    before = token_files(run, "val")
    (corpus,) = Path("outputs/data").iterdir()
    assert cache._clean(corpus) == "  freed"
    stories_hub.files.clear()
    after = token_files(run, "val")
    assert after.read(0, after.n_tokens).tolist() == before.read(0, before.n_tokens).tolist()
    assert not list(corpus.glob("stream-*/epoch-*"))


def test_files_that_another_process_deletes_while_they_are_counted_do_not_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    for name in ("lock", "deleted-at-once", "deleted-later"):
        (tmp_path / "corpus" / name).write_bytes(b"")
    seen: list[str] = []
    stat = os.stat

    def seen_once(path: Any, *more: Any, **options: Any) -> os.stat_result:
        name = Path(path).name if isinstance(path, str | Path) else ""
        seen.append(name)
        if name == "deleted-at-once" or (name == "deleted-later" and seen.count(name) > 1):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return stat(path, *more, **options)

    monkeypatch.setattr(sys, "argv", ["cache", f"data.dir={tmp_path}"])
    monkeypatch.setattr(os, "stat", seen_once)
    cache.main()
    assert "corpus" in capsys.readouterr().out
    assert "deleted-later" in seen


def test_a_corpus_that_is_in_use_on_windows_is_named_and_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    tokens = tmp_path / "tokens-0123456789ab"
    tokens.mkdir()
    for path in (tmp_path / "lock", tokens / "tokens.json", tokens / "train-00000.bin"):
        path.touch()
    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert cache._clean(tmp_path) == (
        "  tokens-0123456789ab was not deleted: "
        "The process cannot access the file because it is being used by another process"
    )
    assert not (tokens / "tokens.json").exists(), "a command would use a folder of which a part may be deleted"


def test_files_without_text_for_training_end_the_call(stories_hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    for name in stories_hub.entries():
        if name.endswith(".parquet") and not name.endswith("00000.parquet"):
            stories_hub.add(name, [""] * 20)
    with pytest.raises(UserError, match=r'has no text to train on in the field "text"'):
        opened(tmp_path)


def test_a_step_longer_than_an_epoch_is_refused(stories_hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    made = opened(tmp_path)
    with pytest.raises(UserError, match=r"data\.tokens_per_epoch=3000 is less than the 3,100 tokens of a step"):
        StreamWindows(made.config, made.folder, window=100, batch_size=31, seed=0)
    assert StreamWindows(made.config, made.folder, window=100, batch_size=30, seed=0).n_windows == 30
