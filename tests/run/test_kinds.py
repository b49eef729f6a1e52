"""A run records its objective and the run that it started from."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import tiny

from positron import reproduce
from positron.config import SFTConfig
from positron.evaluate import in_training
from positron.run.base import base_of, tokens_seen
from positron.run.facts import write_record
from positron.run.folder import Run
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def begin(run: Run, kind: str, *, new: bool = True, **changes: object) -> None:
    run.folder.mkdir(exist_ok=True)
    config = dataclasses.replace(tiny(run.folder.parent), **changes)
    run.begin(config, CharTokenizer("abc"), kind=kind, new=new, forked_from=None)


def made_by_an_older_version(run: Run, **changes: object) -> None:
    run.folder.mkdir(exist_ok=True)
    write_record(run.config_path, dataclasses.asdict(dataclasses.replace(tiny(run.folder.parent), **changes)))
    write_record(run.facts_path, {"status": "finished", "tokens": 5, "best/bpb": 1.5})


def test_a_run_records_its_kind_and_its_base_when_it_begins(run: Run) -> None:
    begin(run, "sft", sft=SFTConfig(), init_from="outputs/base")
    assert (run.kind, run.base) == ("sft", "outputs/base")
    record = json.loads(run.facts_path.read_text())
    assert (record["kind"], record["base"]) == ("sft", "outputs/base")


def test_the_record_says_what_a_config_cannot(run: Run) -> None:
    begin(run, "imitation", init_from="outputs/base")
    assert (run.kind, run.base) == ("imitation", "outputs/base")
    with pytest.raises(UserError, match="trained from outputs/base, but that run does not exist"):
        base_of(run)
    assert in_training([run]) is None


@pytest.mark.parametrize("kind", ["pretrain", "distillation"])
def test_a_run_on_a_text_of_its_own_has_no_base_run_even_if_it_began_with_the_weights_of_another(
    run: Run, kind: str
) -> None:
    begin(run, kind, init_from="outputs/other")
    run.update(tokens=5, best_bpb=1.5)
    assert base_of(run) is None
    assert tokens_seen(run) == 5
    assert in_training([run]) == 1.5


@pytest.mark.parametrize(
    ("changes", "kind", "base"),
    [
        ({}, "pretrain", None),
        ({"init_from": "outputs/other"}, "pretrain", "outputs/other"),
        ({"sft": SFTConfig(), "init_from": "outputs/base"}, "sft", "outputs/base"),
    ],
)
def test_the_kind_and_the_base_of_an_older_run_are_those_of_its_config(
    run: Run, changes: dict[str, object], kind: str, base: str | None
) -> None:
    made_by_an_older_version(run, **changes)
    assert (run.kind, run.base) == (kind, base)
    assert tokens_seen(run) == 5
    begin(run, kind, new=False, **changes)  # continuing it writes them down
    assert (run.facts().kind, run.facts().base) == (kind, base)
    assert (run.kind, run.base) == (kind, base)


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize(("was", "now"), [("pretrain", "sft"), ("sft", "pretrain"), ("pretrain", "imitation")])
def test_a_run_is_not_continued_by_an_objective_of_another_kind(run: Run, was: str, now: str, is_old: bool) -> None:
    changes = {"sft": SFTConfig(), "init_from": "outputs/base"} if was == "sft" else {}
    made_by_an_older_version(run, **changes) if is_old else begin(run, was, **changes)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"was trained by the objective {was}, and this command uses {now}"):
        begin(run, now, new=False)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_base_below_the_home_is_recorded_without_the_home_and_found(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    base = Run(tmp_path / "someone" / "runs" / "base")
    base.folder.mkdir(parents=True)
    begin(base, "pretrain")
    begin(run, "sft", sft=SFTConfig(), init_from=str(base.folder))
    assert "someone" not in run.facts_path.read_text()
    assert run.base == str(base.folder)
    found = base_of(run)
    assert found is not None
    assert found.folder.samefile(base.folder)


@pytest.mark.parametrize("key", ["kind", "base"])
@pytest.mark.parametrize("value", [3, ["sft"], {}])
def test_a_record_of_another_type_is_named(run: Run, key: str, value: object) -> None:
    begin(run, "pretrain")
    record = json.loads(run.facts_path.read_text())
    run.facts_path.write_text(json.dumps({**record, key: value}))
    for name in ("kind", "base"):
        with pytest.raises(UserError, match=rf"run\.json is damaged or was edited: {key} is"):
            getattr(run, name)


def test_an_sft_run_that_lost_its_base_says_so(run: Run) -> None:
    begin(run, "sft", sft=SFTConfig())
    with pytest.raises(UserError, match=r"it does not name the run whose weights \S+ started from"):
        base_of(run)


def test_a_run_of_an_objective_that_no_command_has_is_not_reproduced_by_another(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run, "imitation")
    monkeypatch.setattr("sys.argv", ["reproduce", str(run.folder)])
    monkeypatch.chdir(run.folder.parent)
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2
    assert (
        "was trained by the objective imitation of a Python program: run this program again with another name="
        in capsys.readouterr().err
    )
    assert not Path("outputs").exists()
