"""A run folder may come from a stranger: links are not followed, what is read is checked, damage is named."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import Loopback, tiny

from positron.config import LoggerConfig, RunConfig, TensorboardConfig
from positron.dashboard.table import Outputs
from positron.evaluation.comparison import find_runs
from positron.evaluation.eval_texts import texts_of_run
from positron.run.checkpoint import load_checkpoint
from positron.run.facts import Facts, read_record
from positron.run.find import find_run, split_names
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import best_so_far, read_metrics
from positron.system import disk
from positron.system.disk import write_json
from positron.system.errors import UserError
from positron.train import train


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside.txt"
    file.write_text("untouched")
    return file


@pytest.mark.parametrize("mode", ["rb", "wb", "ab"])
@pytest.mark.parametrize("where", ["train.log", "checkpoints/x.ckpt"])
def test_a_link_below_a_run_folder_is_never_opened(tmp_path: Path, outside: Path, mode: str, where: str) -> None:
    run = tmp_path / "run"
    (run / where).parent.mkdir(parents=True)
    (run / where).symlink_to(outside)
    with pytest.raises(UserError, match="symbolic link"):
        disk.open_inside(run / where, mode, run)
    assert outside.read_text() == "untouched"


def test_a_linked_folder_below_a_run_folder_is_not_entered_but_the_run_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="symbolic link"):
        disk.write_text(tmp_path / "run" / "model" / "x", "text", root=tmp_path / "run")
    with pytest.raises(UserError, match="symbolic link"):
        disk.make_folder(tmp_path / "link" / "model", root=tmp_path / "link")
    with pytest.raises(UserError, match="symbolic link"):
        disk.refuse_links_in(tmp_path / "link")
    disk.write_text(tmp_path / "link" / "run.json", "{}")
    assert disk.read_json(tmp_path / "link" / "run.json") == {}
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_pipe_in_the_place_of_a_file_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no named pipes among its files")
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UserError, match="not a regular file"):
        disk.read_json(tmp_path / "run.json")
    with pytest.raises(UserError, match="not a regular file"):
        disk.append_text(tmp_path / "run.json", "x")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'{"step": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"{} {}", "Extra data"),
    ],
)
def test_json_that_cannot_be_read_is_one_line_with_the_name_of_the_file(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=why) as error:
        disk.read_json(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(error.value)


def test_a_file_beyond_its_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match="1,000,000,000,000 bytes: a file of this kind has at most 64,000,000"):
        disk.read_json(tmp_path / "run.json")


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = [
        tmp_path / f".run.json.{2**30}-0123abcd.tmp",
        tmp_path / f".run.json.{2**30}.tmp",  # of an older version
        tmp_path / "checkpoints" / ".step-000010.ckpt.999999999999-01234567.tmp",
    ]
    alive = [tmp_path / f".run.json.{os.getppid()}-0123abcd.tmp", tmp_path / ".notes.tmp"]
    (tmp_path / "checkpoints").mkdir()
    for path in (*dead, *alive):
        path.write_text("half")
    disk.sweep_temporary_files(tmp_path)
    assert [path.exists() for path in (*dead, *alive)] == [False, False, False, True, True]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with outputs/data and outputs/tiny, stopped at step 20 of 40."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    train(settings(folder, train__stop_at=20), folder / "tiny")
    return folder


def settings(outputs: Path, **changes: object) -> RunConfig:
    config = tiny(outputs, **changes)
    return dataclasses.replace(config, logger=LoggerConfig(tensorboard=TensorboardConfig()))


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(trained, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path / "outputs" / "tiny")


def test_a_run_may_be_given_as_text(run: Run) -> None:
    given = Run("outputs/tiny")
    assert given == Run(Path("outputs/tiny"))
    assert (given.facts(), given.settings(), given.history) == (run.facts(), run.settings(), [])
    assert len(given.metrics()["step"]) == len(run.metrics()["step"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_link_at_any_name_that_a_run_writes_changes_nothing_outside(
    trained: Path, tmp_path: Path, run: Run, outside: Path
) -> None:
    """Continue, and begin, a run whose folder has a planted link in the place of each file and folder."""
    train(settings(tmp_path / "outputs"), run.folder)
    names = {*names_in(run.folder), *names_in(trained / "tiny")}
    assert {"train.log", "metrics.jsonl", "lock", "checkpoints/best.ckpt", "model", "attention", "tensorboard"} <= names
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    for name in sorted(names):
        for is_new in (True, False):
            folder = tmp_path / "outputs" / "attacked"
            shutil.rmtree(folder, ignore_errors=True)
            if not is_new:
                shutil.copytree(trained / "tiny", folder)
            planted = folder / name
            if planted.is_dir():
                shutil.rmtree(planted)
            planted.unlink(missing_ok=True)
            planted.parent.mkdir(parents=True, exist_ok=True)
            planted.symlink_to(empty if Path(name).suffix == "" and name not in ("lock",) else outside)
            with pytest.raises(UserError, match="symbolic link"):
                train(settings(tmp_path / "outputs", train__max_steps=40), folder)
            assert outside.read_text() == "untouched", name
            assert not list(empty.iterdir()), name
            with pytest.raises(UserError):
                load_model(find_run(str(folder)))


def test_a_run_folder_that_is_itself_a_link_is_used(tmp_path: Path, run: Run) -> None:
    (tmp_path / "link").symlink_to(run.folder)
    assert train(settings(tmp_path / "outputs"), tmp_path / "link").step == 40


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null", '"x"', '{"model": 3}', '{"model": {"n_layer": 1}}'])
def test_a_config_of_the_wrong_shape_is_named(run: Run, content: str) -> None:
    (run.folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(run)


@pytest.mark.parametrize("key", ["n_layer", "d_model", "context_length"])
def test_absurd_sizes_and_other_architectures_end_in_an_error_instead_of_a_wait(run: Run, key: str) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    for value in (10**9, config["model"][key] * 2):
        edit(run.folder / "config.json", model={**config["model"], key: value})
        with pytest.raises(UserError, match=key):
            load_model(run)


@pytest.mark.parametrize(
    "content",
    ["null", '"x"', '{"status": 3}', '{"step": -1}', '{"step": 1e999}', '{"resolved": []}', '{"best/bpb": "low"}'],
)
def test_a_run_json_of_the_wrong_shape_is_refused_and_stays(tmp_path: Path, run: Run, content: str) -> None:
    (run.folder / "run.json").write_text(content)
    before = names_and_sizes(run.folder)
    with pytest.raises(UserError, match=r"run\.json"):
        train(settings(tmp_path / "outputs"), run.folder)
    assert {k: v for k, v in names_and_sizes(run.folder).items() if k != "train.log"} == {
        k: v for k, v in before.items() if k != "train.log"
    }


def names_and_sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "damage", [b"\xff", b"3", b"{}", b'{"step": 2, "train/loss": NaN}', b'{"step": 99}', b"[" * 100_000]
)
def test_a_damaged_line_of_the_metrics_is_named_and_costs_no_history(tmp_path: Path, run: Run, damage: bytes) -> None:
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    best = (run.checkpoint_folder / "best.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl line (3|4) is damaged"):
        train(settings(tmp_path / "outputs"), run.folder)
    assert path.read_bytes() == b"".join(lines)
    assert (run.checkpoint_folder / "best.ckpt").read_bytes() == best


def test_a_torn_last_line_of_the_metrics_is_written_again(tmp_path: Path, run: Run) -> None:
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 21, "tr')
    train(settings(tmp_path / "outputs"), run.folder)
    assert [row["step"] for row in read_metrics(run.folder / "metrics.jsonl")] == list(range(1, 41))


def test_the_best_model_is_known_without_the_metrics(run: Run) -> None:
    facts = run.facts()
    assert facts.best_step == 20
    assert best_so_far([], facts, 20) == (facts.best_bpb, 20)
    assert best_so_far([], facts, 19) == (float("inf"), 0)
    assert best_so_far([], Facts(best_bpb=2.0), 20) == (float("inf"), 0)  # of an older version, which knows no step


def test_a_damaged_best_checkpoint_is_told_and_all_damaged_are_an_error(run: Run, logged: list[str]) -> None:
    for path in sorted(run.checkpoint_folder.iterdir(), key=lambda path: path.name != "best.ckpt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # best.ckpt is a second name of another one
        path.write_bytes(content)
        if path.name == "best.ckpt":
            load_model(run)
    assert "best.ckpt cannot be used" in logged[-1]
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged, for example best\.ckpt: "):
        load_model(run)


@pytest.mark.parametrize("key", ["optimizer_states", "state_dict", "gpt_config", "loops", "tokenizer_hash"])
def test_a_checkpoint_with_the_right_checksum_and_the_wrong_contents_is_one_line(
    tmp_path: Path, run: Run, key: str
) -> None:
    path = run.checkpoint_folder / "step-000020.ckpt"
    whole = torch.load(path, weights_only=True)
    for value in (None, 3):
        torch.save({k: v for k, v in whole.items() if k != key} | ({} if value is None else {key: value}), path)
        with pytest.raises(UserError, match=key):
            load_checkpoint(path, to_continue=True)


@pytest.mark.parametrize(
    "weights", [3, {"model.wte.weight": 3}, {"model.wte.weight": torch.zeros(1)}, {"model.other": torch.zeros(1)}]
)
def test_a_checkpoint_whose_weights_do_not_fit_their_mean_is_not_continued(run: Run, weights: object) -> None:
    path = run.checkpoint_folder / "step-000020.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"weights_without_mean": weights}, path)
    load_checkpoint(path)
    with pytest.raises(UserError, match=r"cannot be continued from .*weights_without_mean"):
        load_checkpoint(path, to_continue=True)


def test_a_checkpoint_with_code_in_it_is_refused_without_advice_to_run_it(run: Run) -> None:
    path = run.checkpoint_folder / "best.ckpt"
    path.unlink()
    torch.save({"state_dict": Path("x")}, path)
    with pytest.raises(UserError, match="nothing in it was executed") as error:
        load_checkpoint(path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", ["null", "[]", '{"starts": [{"step": 1, "environment": 7}], "environments": []}'])
def test_a_damaged_provenance_is_named(tmp_path: Path, run: Run, content: str) -> None:
    (run.folder / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=r"provenance\.json is damaged"):
        train(settings(tmp_path / "outputs"), run.folder)


def test_an_edited_run_json_is_told_and_not_continued(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run.folder / "run.json", floor_bpb=0.5)
    assert run.facts().floor_bpb == 0.5
    assert "run.json does not match its checksum" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r'does not match its checksum, .* replace the value of "checksum" in it by null'
    ):
        train(settings(tmp_path / "outputs"), run.folder)
    edit(run.folder / "run.json", checksum=None)
    run.refuse_damaged_facts()


@pytest.mark.parametrize("prompt", ["a\nimport os", "\x1b]0;title\x07", "a\r2026-01-01 00:00:00 forged"])
def test_text_from_a_run_folder_cannot_forge_lines_of_its_log(tmp_path: Path, run: Run, prompt: str) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    edit(run.folder / "config.json", data={**config["data"], "field": prompt})
    with pytest.raises(UserError):
        train(settings(tmp_path / "outputs"), run.folder)
    lines = (run.folder / "train.log").read_bytes().decode().split("\n")[:-1]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert "\x1b" not in "".join(lines)
    assert "\r" not in "".join(lines)


def test_what_is_shared_carries_no_home_and_still_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "someone"
    (home / "texts").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "texts" / "cat.txt").write_text("The cat sat on the mat. " * 3000)
    config = tiny(home, data__path=str(home / "texts" / "cat.txt"), data__source="text", train__max_steps=4)
    folder = tmp_path / "run"
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=2)), folder)
    assert train(config, folder).status == "finished"
    for name in ("config.json", "run.json", "report.html", "train.log"):
        assert "someone" not in (folder / name).read_text().replace(str(folder), ""), name
    assert Run(folder).config()["data"]["path"] == str(home / "texts" / "cat.txt")


def test_tensorboard_writes_below_the_folder_that_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from positron.training.trackers.tensorboard import TensorBoard

    board = TensorBoard(TensorboardConfig("curves/mine"), tmp_path, first_step=1)
    board.log({"step": 1, "train/loss": 2.0}, 1)
    board.finish(0)
    assert [path.parent for path in tmp_path.rglob("events.out.tfevents.*")] == [tmp_path / "curves" / "mine"]


@pytest.mark.parametrize("subdir", ["../../../x", "/x", "a/../b", ".", ""])
def test_tensorboard_stays_inside_the_run(subdir: str) -> None:
    with pytest.raises(UserError, match="inside the run"):
        TensorboardConfig(subdir)


def test_commands_that_use_a_run_send_nothing_to_the_address_that_it_names(
    tmp_path: Path, run: Run, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    loopback.files["/track.txt"] = b"a line of text\n" * 1000
    config = json.loads((run.folder / "config.json").read_text())
    url = f"{loopback.url}/track.txt"
    edit(run.folder / "config.json", data={**config["data"], "source": "text", "url": url})
    assert texts_of_run(run, "val", 1000)  # the run's tokens are here
    moved = {"source": "text", "url": url, "sha256": "0" * 64, "dir": str(tmp_path / "nowhere")}
    edit(run.folder / "config.json", data={**config["data"], **moved})
    # a file downloaded without its checksum is stored under another name, where the next call would not find it
    with pytest.raises(
        UserError, match=rf"does not download this text automatically, .* data.url={url} data.sha256={'0' * 64}; or"
    ):
        texts_of_run(run, "val", 1000)
    assert not loopback.requests


def test_commands_that_use_a_run_write_no_data_where_its_config_says(tmp_path: Path, run: Run) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    shutil.rmtree(tmp_path / "outputs" / "data")
    edit(run.folder / "config.json", data={**config["data"], "dir": str(tmp_path / "anywhere")})
    assert texts_of_run(run, "val", 1000)
    assert not (tmp_path / "anywhere").exists()
    secret = tmp_path / "secret"
    secret.write_text("what nobody may see\n" * 1000)
    edit(run.folder / "config.json", data={**config["data"], "source": "text", "path": str(secret)})
    texts = texts_of_run(run, "val", 1000)  # those of the tokens that belong to the run
    assert "nobody may see" not in "".join(texts)
    facts, _ = read_record(run.facts_path)
    run.facts_path.write_text(json.dumps({key: value for key, value in facts.items() if key != "data_fingerprint"}))
    with pytest.raises(UserError, match=r"run.json has no data_fingerprint, so it cannot be checked"):
        texts_of_run(run, "val", 1000)
    assert not list((tmp_path / "outputs" / "data").glob("text-*"))


def test_a_run_of_ones_own_is_taken_where_none_is_named(tmp_path):
    outputs = tmp_path / "outputs"
    for age, (name, has_weights, reproduces) in enumerate(
        [("mine", True, False), ("mine-again", True, True), ("begun", False, False)]
    ):
        folder = outputs / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        write_json(
            folder / "provenance.json",
            {"starts": [], "environments": [], **({"reproduces": "x"} if reproduces else {})},
        )
        if has_weights:
            (folder / "checkpoints" / "step-000001.ckpt").write_bytes(b"")
        (folder / "run.json").write_text("{}")
        os.utime(folder / "run.json", (age, age))
    assert find_run(None, outputs).folder.name == "mine"
    shutil.rmtree(outputs / "mine")
    assert find_run(None, outputs).folder.name == "begun"  # the newest, where none is better


def test_runs_of_which_none_is_used_by_default_are_not_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        find_run(None, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"this command accepts none of the runs in .* as its default: give init_from=RUN"
    ):
        find_run(None, tmp_path, is_candidate=lambda run: False)


def test_what_a_killed_import_left_is_no_run(tmp_path):
    outputs = tmp_path / "outputs"
    for name in ("mine", f".newer.{2**30}-0123abcd.tmp"):
        (outputs / name / "checkpoints").mkdir(parents=True)
        for file in ("config.json", "run.json", "checkpoints/step-000000.ckpt"):
            (outputs / name / file).write_text("{}")
    os.utime(outputs / "mine" / "run.json", (0, 0))
    assert find_run(None, outputs).folder.name == "mine"
    assert [run.folder.name for run in find_runs([], outputs)] == ["mine"]
    assert [row["id"] for row in Outputs(outputs).rows()] == ["mine"]
    with pytest.raises(UserError, match=r"name one of them, such as .*mine$"):
        find_run(str(outputs), outputs)
    with pytest.raises(UserError, match=r"\(its runs: mine\)$"):
        find_run("other", outputs)


def test_a_folder_without_its_settings_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "noconf").mkdir()
    (tmp_path / "noconf" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"noconf has no config\.json, so it cannot be read as a run: restore"):
        find_run("noconf", tmp_path)


def test_a_folder_that_was_never_a_run_is_answered_with_the_names_of_runs(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"data is not a run; name a run in .*/ \(its runs: mine\)$"):
        find_run("data", tmp_path)


def test_a_path_inside_a_run_is_answered_with_the_run(tmp_path):
    (tmp_path / "mine/checkpoints").mkdir(parents=True)
    (tmp_path / "mine/model").mkdir()
    for file in ("config.json", "run.json", "checkpoints/best.ckpt", "model/config.json", "model/weights.safetensors"):
        (tmp_path / "mine" / file).write_text("{}")
    run = re.escape(str(tmp_path / "mine"))
    with pytest.raises(UserError, match=rf"checkpoints is inside the run {run}: name the run, {run}$"):
        find_run(str(tmp_path / "mine/checkpoints"), tmp_path)
    with pytest.raises(UserError, match=rf"model is inside the run {run}: name the run, {run}$"):
        find_run(str(tmp_path / "mine/model"), tmp_path)
    with pytest.raises(UserError, match=rf"best\.ckpt is a file of the run {run}: name the run, {run}$"):
        find_run(str(tmp_path / "mine/checkpoints/best.ckpt"), tmp_path)


def test_a_diverged_run_without_a_checkpoint_is_not_to_be_waited_for(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/run.json").write_text('{"status": "diverged", "step": 3}')
    (tmp_path / "mine/config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"because its loss diverged before the first one: train a new run with a lower"
    ):
        load_model(Run(tmp_path / "mine"))


def test_a_folder_that_is_not_a_run_is_told_from_a_damaged_run(tmp_path):
    for name in ("sweep/0", "sweep/1"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("config.json", "run.json"):
            (tmp_path / name / file).write_text("{}")
    with pytest.raises(
        UserError, match=r"sweep contains runs, but is not a run itself: name one of them, such as \S+0$"
    ):
        find_run("sweep", tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"a model of Hugging Face transformers, import the model first with .*gpt2$"):
        find_run("gpt2", tmp_path)


def test_a_missing_checkpoint_is_not_said_to_be_damaged(tmp_path):
    (tmp_path / "step-000020.ckpt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"0200\.ckpt does not exist: correct the path.*folder contains step-000020\.ckpt\)$"
    ):
        load_checkpoint(tmp_path / "step-000200.ckpt")


def test_a_list_of_runs_may_be_longer_than_the_name_of_a_file(tmp_path):
    names = [f"{number}-{'x' * 100}" for number in range(5)]
    for name in names:
        (tmp_path / name).mkdir()
        for file in ("config.json", "run.json"):
            (tmp_path / name / file).write_text("{}")
    assert split_names(",".join(names), tmp_path) == names
    with pytest.raises(UserError, match="names 5 runs, but only one run can be named here"):
        find_run(",".join(names), tmp_path)
    with pytest.raises(UserError, match="there is no run x"):
        find_run("x" * 300, tmp_path)


def test_a_misspelt_run_is_answered_with_the_nearest(tmp_path):
    for name in ("quickstart", *(f"other{i}" for i in range(9))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean quickstart\?"):
        find_run("quikstart", tmp_path)
    with pytest.raises(UserError, match=r"and 2 more\)"):
        find_run("xyz", tmp_path)


def test_a_job_of_a_sweep_that_failed_before_its_run_began_says_why_it_is_no_run(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "heads"
    (sweep / "0").mkdir(parents=True)
    reason = "positron: model.d_model=64 is not divisible by model.n_head=3"
    (sweep / "0" / "job.json").write_text(json.dumps({"overrides": ["model.n_head=3"], "failed": reason}))
    with pytest.raises(UserError, match=r"failed before its run began: model\.d_model=64 is not .*; name another run$"):
        find_run("sweeps/heads/0", tmp_path / "outputs")


def test_the_runs_of_sweeps_are_runs_even_if_there_are_no_others(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    with pytest.raises(UserError, match="has no runs yet"):
        find_run("missing", outputs)
    folder = outputs / "sweeps" / "lr" / "0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(f"in {outputs}/, such as {folder}")):
        find_run("missing", outputs)


def test_the_home_folder_in_the_name_of_a_run_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):  # the second on Windows
        monkeypatch.setenv(variable, str(run.folder.absolute().parent))
    assert find_run(f"~/{run.folder.name}").folder == run.folder.absolute()


def test_metrics_of_a_folder_that_is_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope is no run: give the folder of a run"):
        Run(tmp_path / "nope").metrics()
