"""Runs that started from another run: which parts of the base they need, and the errors if it is missing or another."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Result, tiny

from positron.config import DataConfig, LoraConfig, RunConfig, SFTConfig
from positron.evaluation import eval_texts
from positron.evaluation.comparison import compare, find_runs
from positron.evaluation.eval_texts import texts_of_run, token_files
from positron.evaluation.score import Score
from positron.evaluation.scoring import total
from positron.run.base import lineage, pretrained_run, tokens_seen
from positron.run.find import find_run
from positron.run.folder import Run
from positron.sft import configure, sft
from positron.system.errors import UserError
from positron.text.factory import load_tokenizer
from positron.train import train
from positron.training.resume import Start
from positron.training.tuning import validation_text

TEXT = "The cat sat on the mat, and the dog sat by the door.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with outputs/base, pretrained on my.txt, and outputs/s1, fine-tuned from it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("my.txt").write_text(TEXT * 300)
        Path("other.txt").write_text("Rain fell all day on the quiet town.\n" * 300)
        data = DataConfig("text", "my.txt", val_fraction=0.1, dir="outputs/data")
        train(tiny(folder, name="base", data=data, train__max_steps=4, train__val_every=4), Path("outputs/base"))
        sft(tuned("outputs/base"), Path("outputs/s1"))
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the test is."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tuned(base: str, **changes: Any) -> RunConfig:
    values = tiny(Path(), train__max_steps=2, train__val_every=2, train__save_every=2, train__micro_batch_size=4)
    alone = SFTConfig(replay_ratio=0.0, patience=0)  # reads nothing of the base after its first step
    config = dataclasses.replace(
        values, name="s", data=DataConfig("instruct", val_fraction=0.2), init_from=base, sft=alone
    )
    return dataclasses.replace(config, **changes)


def edit(run: str, base: str, is_old: bool) -> None:
    """Let a run name another base, in run.json or, as before that had it, in config.json."""
    run_json, config_json = Path("outputs", run, "run.json"), Path("outputs", run, "config.json")
    facts, config = json.loads(run_json.read_text()), json.loads(config_json.read_text())
    if is_old:
        facts = {key: value for key, value in facts.items() if key not in ("kind", "base")}
        config |= {"init_from": base}
    else:
        facts |= {"base": base}
    for path, record in ((run_json, facts), (config_json, config)):
        record.pop("checksum", None)
        path.write_text(json.dumps(record))


@pytest.mark.parametrize("spelling", ["outputs/s1", "s1", "outputs/../outputs/s1", "link"])
def test_a_run_cannot_begin_from_itself(here: Path, spelling: str) -> None:
    (here / "link").symlink_to(here / "outputs" / "s1")
    before = Path("outputs/s1/config.json").read_bytes()
    with pytest.raises(UserError, match="cannot start from itself"):
        sft(tuned(spelling), Path("outputs/s1"))
    with pytest.raises(UserError, match="cannot start from itself"):
        train(dataclasses.replace(tiny(here), init_from="outputs/base"), Path("outputs/base"))
    assert Path("outputs/s1/config.json").read_bytes() == before


def test_a_run_keeps_the_run_that_it_began_with_and_refuses_another(here: Path) -> None:
    shutil.copytree("outputs/base", "outputs/twin")
    with pytest.raises(UserError, match=r"outputs/s1 started from the weights of outputs/base, .* another name="):
        sft(tuned("outputs/twin"), Path("outputs/s1"))
    with pytest.raises(
        UserError,
        match=r"started from random weights, not from init_from=.*: give another name=, or leave init_from= out",
    ):
        train(dataclasses.replace(tiny(here), init_from="outputs/twin"), Path("outputs/base"))
    for spelling in ("base", str(here / "outputs" / "base"), "outputs/base"):
        sft(tuned(spelling), Path("outputs/s1"))  # the same run, spelled in other ways
        assert Run(Path("outputs/s1")).config()["init_from"] == "outputs/base"


@pytest.fixture
def other(here: Path) -> Path:
    """A run that was pretrained on another text, with another tokenizer."""
    data = DataConfig("text", "other.txt", val_fraction=0.1, dir="outputs/data")
    train(tiny(here, name="other", data=data, train__max_steps=4, train__val_every=4), Path("outputs/other"))
    return Path("outputs/other")


def part(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1))


def test_only_the_moved_base_run_replaces_a_base_run_that_is_missing(here: Path, other: Path) -> None:
    config = tuned("outputs/base")
    sft(part(config), Path("outputs/s2"))
    Path("outputs/base").rename("outputs/moved")
    shutil.copytree("outputs/moved", "outputs/further")
    shutil.copy("outputs/s1/checkpoints/best.ckpt", "outputs/further/checkpoints/best.ckpt")
    for wrong, said in (
        ("other", "which was not found, and the run init_from=other has another tokenizer: give the present path"),
        ("further", "the weights of init_from=further are not those with which outputs/s2 began: restore"),
    ):
        with pytest.raises(UserError, match=said):
            sft(dataclasses.replace(config, init_from=wrong), Path("outputs/s2"))
        assert Run(Path("outputs/s2")).base == "outputs/base"
    assert sft(dataclasses.replace(config, init_from="outputs/moved"), Path("outputs/s2")).status == "finished"
    assert Run(Path("outputs/s2")).base == "outputs/moved"


def test_the_text_of_another_run_that_has_the_name_of_the_base_run_is_not_read(
    here: Path, other: Path, logged: list[str]
) -> None:
    config = tuned("outputs/base", sft=SFTConfig(replay_ratio=0.2, patience=0))
    sft(part(config), Path("outputs/s2"))
    shutil.rmtree("outputs/base")
    other.rename("outputs/base")
    said = "the text of outputs/base cannot be used, because that run has another tokenizer: "
    with pytest.raises(UserError, match=f"{said}give another name= and sft.replay_ratio=0"):
        sft(config, Path("outputs/s2"))
    tokenizer = load_tokenizer(Path("outputs/s2/tokenizer"))
    session: Any = SimpleNamespace(config=config, run=Run(Path("outputs/new")), start=Start())
    assert validation_text(session, SimpleNamespace(last_step=1), tokenizer, "validate on the answers") is None
    assert logged[-1].endswith(f"{said}validate on the answers")


def test_a_base_run_that_was_trained_again_on_another_text_is_not_replayed(here: Path) -> None:
    config = tuned("outputs/base", sft=SFTConfig(replay_ratio=0.2, patience=0))
    sft(part(config), Path("outputs/s2"))
    old = Run(Path("outputs/base"))
    base, tokenizer = old.settings(), load_tokenizer(old.tokenizer_folder)
    shutil.rmtree("outputs/base")
    Path("my.txt").write_text("The dog sat on the mat, and the cat sat by the door.\n" * 300)
    train(base, Path("outputs/base"))
    assert load_tokenizer(old.tokenizer_folder).hash == tokenizer.hash
    with pytest.raises(
        UserError, match="but init_from=outputs/base was trained on another text or in another way since"
    ):
        sft(config, Path("outputs/s2"))
    assert Run(Path("outputs/s2")).facts().step == 1


@pytest.mark.parametrize("is_old", [False, True])
def test_runs_that_name_each_other_are_an_error_wherever_their_base_is_asked_for(here: Path, is_old: bool) -> None:
    shutil.copytree("outputs/s1", "outputs/s2")
    edit("s1", "outputs/s2", is_old)
    edit("s2", "outputs/s1", is_old)
    shutil.copytree("outputs/s1", "outputs/s3")
    edit("s3", "outputs/s3", is_old)
    for name, base in (("s4", "s5"), ("s5", "s6"), ("s6", "s4")):
        shutil.copytree("outputs/s1", f"outputs/{name}")
        edit(name, f"outputs/{base}", is_old)
    for name, said in (
        ("s1", "outputs/s1 was trained from outputs/s2, which was trained from outputs/s1: one of"),
        ("s2", "outputs/s2 was trained from outputs/s1, which was trained from outputs/s2: one of"),
        ("s3", "itself"),
        (
            "s5",
            "outputs/s5 was trained from outputs/s6, which was trained from outputs/s4, which was trained from outputs/s5:",
        ),
    ):
        run = Run(Path("outputs", name))
        for use in (
            lineage,
            pretrained_run,
            lambda run: token_files(run, "val"),
            lambda run: texts_of_run(run, "val", 9),
        ):
            with pytest.raises(UserError, match=said):
                use(run)
        assert tokens_seen(run) > 0


def test_a_fine_tuned_run_counts_the_tokens_of_its_base_wherever_it_is(here: Path) -> None:
    run, base = Run(Path("outputs/s1")), Run(Path("outputs/base"))
    whole = run.facts().tokens + base.facts().tokens
    assert tokens_seen(run) == whole
    shutil.rmtree("outputs/base")
    assert tokens_seen(run) == whole


def test_a_run_that_moved_with_its_base_finds_it_from_anywhere(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = Run(here / "outputs" / "s1")
    assert pretrained_run(moved).folder.resolve() == (here / "outputs" / "base").resolve()
    (tmp_path / "outputs").mkdir()
    shutil.copytree(here / "outputs" / "s1", "outputs/base")  # another run of that name, where the command runs
    assert pretrained_run(moved).folder.resolve() == (here / "outputs" / "base").resolve()


@pytest.fixture
def alone(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with s1 and without its base."""
    folder = tmp_path / "alone"
    shutil.copytree(here / "outputs" / "s1", folder / "outputs" / "s1")
    shutil.copy(here / "my.txt", folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_without_its_base_is_measured_on_files_and_says_what_else_needs_it(alone: Path) -> None:
    run = Run(Path("outputs/s1"))
    (row,) = compare(find_runs(["s1"], Path("outputs")), [TEXT], "The", 4, 0)
    assert row.bpb > 0
    with pytest.raises(UserError, match=r"s1 was trained from outputs/base, but that run does not exist.*--text FILE"):
        texts_of_run(run, "val", 100)
    again = sft(tuned("outputs/base"), Path("outputs/s1"))  # the same command again
    assert again.status == "finished"
    values = dataclasses.asdict(tuned("s1")) | {"name": "s1", "init_from": None}
    del values["model"], values["tokenizer"]
    assert configure(values).init_from == "outputs/base"
    further = sft(tuned("s1"), Path("outputs/s9"))
    assert further.status == "finished"
    with pytest.raises(UserError, match=r"that run does not exist.*sft.replay_ratio=0"):
        sft(tuned("s1", sft=SFTConfig(replay_ratio=0.2)), Path("outputs/s10"))


def test_the_text_of_the_base_is_named_as_that_where_it_is_gone(here: Path) -> None:
    replaying = tuned("outputs/base", sft=SFTConfig(replay_ratio=0.2, patience=0))
    Path("my.txt").unlink()
    facts = sft(replaying, Path("outputs/kept"))  # its tokens are still there
    assert facts.status == "finished"
    shutil.rmtree("outputs/data")
    with pytest.raises(
        UserError, match=r"the text that outputs/base was trained on is not available .*sft.replay_ratio=0"
    ):
        sft(replaying, Path("outputs/gone"))
    with pytest.raises(UserError, match=r"the text that outputs/base was trained on is not available .*--text FILE"):
        texts_of_run(Run(Path("outputs/s1")), "val", 100)
    assert sft(tuned("outputs/base"), Path("outputs/without")).status == "finished"


def test_a_text_that_cannot_be_written_as_tokens_is_named_without_a_setting_that_the_command_lacks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("outputs/data")

    def refuse(*_: object) -> None:
        raise UserError("cannot write outputs/data/lock (Permission denied): give another data.dir=")

    monkeypatch.setattr(eval_texts, "prepare", refuse)
    with pytest.raises(UserError, match=r"\(cannot write outputs/data/lock \(Permission denied\)\): give --text FILE"):
        texts_of_run(Run("outputs/base"), "val", 100)


def test_another_text_under_the_same_name_is_not_taken_for_the_runs_own(here: Path, logged: list[str]) -> None:
    run = Run(Path("outputs/base"))
    own = texts_of_run(run, "val", 0)
    logged.clear()
    shutil.copy("other.txt", "my.txt")
    assert texts_of_run(run, "val", 0) == own
    assert "has changed or is missing: using the stored token files of the earlier text in" in logged[0]
    shutil.rmtree("outputs/data")
    for name in ("base", "s1"):
        with pytest.raises(UserError, match="the text that outputs/base was trained on has changed since then"):
            texts_of_run(Run(Path("outputs", name)), "val", 100)
    with pytest.raises(UserError, match=r"has changed since then.*sft.replay_ratio=0"):
        sft(tuned("outputs/base", sft=SFTConfig(replay_ratio=0.2)), Path("outputs/r"))


@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_a_limit_below_the_first_document_scores_its_beginning(here: Path, limit: int) -> None:
    (text,) = texts_of_run(Run(Path("outputs/base")), "val", limit)
    assert 1 <= len(text.encode()) <= limit
    assert (TEXT * 300).count(str(text)) > 0


def test_a_score_of_nothing_is_an_error_and_never_zero() -> None:
    for nothing in (total([]), Score(0.0, 0, 3), Score(0.0, 3, 0)):
        with pytest.raises(UserError, match="nothing to score"):
            _ = nothing.bpb, nothing.perplexity
    with pytest.raises(UserError, match="no text to measure on"):
        compare([], [], "The", 1, 0)


@pytest.mark.parametrize("damage", ["config", "checkpoint", "tokenizer", "link"])
def test_one_broken_run_is_named_and_left_out_of_a_comparison(here: Path, damage: str, logged: list[str]) -> None:
    shutil.copytree("outputs/base", "outputs/z")
    if damage == "config":
        Path("outputs/z/config.json").write_text("{broken")
    for path in Path("outputs/z/checkpoints").glob("*.ckpt") if damage == "checkpoint" else ():
        path.write_bytes(path.read_bytes()[:100])
    if damage == "link":
        Path("outputs/z/notes").symlink_to("/etc/hostname")
    if damage == "tokenizer":
        Path("outputs/z/tokenizer/tokenizer.json").write_text("[")
    runs = find_runs(["base", "s1", "z"] if damage == "link" else [], Path("outputs"))
    rows = compare(runs, [TEXT], "The", 2, 0)
    assert sorted(row.run for row in rows) == ["outputs/base", "outputs/s1"]
    assert any(line.startswith("left out: outputs/z: ") for line in logged)
    with pytest.raises(UserError, match="outputs/z"):
        compare(find_runs(["z"], Path("outputs")), [TEXT], "The", 2, 0)


def test_a_run_is_compared_once_however_often_it_is_named(here: Path) -> None:
    Path("link").symlink_to("outputs/base")
    names = ["base", "outputs/base", str(here / "outputs" / "base"), "link", "outputs"]
    assert [run.folder.name for run in find_runs(names, Path("outputs"))] == ["base", "s1"]


def test_a_run_that_is_a_link_is_found_without_its_name(here: Path) -> None:
    shutil.move("outputs/s1", "elsewhere")
    Path("outputs/s1").symlink_to(here / "elsewhere")
    assert find_run(None).folder == Path("outputs/s1")  # trained last
    Path("outputs/twin").symlink_to("s1")
    assert [run.folder.name for run in find_runs([], Path("outputs"))] == ["base", "s1"]


@pytest.mark.parametrize("rank", [33, 100_000])
def test_a_lora_rank_above_the_matrices_is_refused_with_the_largest(here: Path, rank: int) -> None:
    with pytest.raises(UserError, match=f"sft.lora.rank={rank} .*: give at most sft.lora.rank=32"):
        sft(tuned("outputs/base", sft=SFTConfig(lora=LoraConfig(rank))), Path("outputs/l"))
    assert sft(tuned("outputs/base", sft=SFTConfig(lora=LoraConfig(32))), Path("outputs/m")).status == "finished"


@pytest.mark.parametrize("given", [{"tokenizer": {"kind": "char"}}, {"model": {"context_length": 256}}, {"model": {}}])
def test_model_and_tokenizer_cannot_be_chosen_in_sft(here: Path, given: dict[str, Any]) -> None:
    values = dataclasses.asdict(tuned("outputs/base"))
    del values["model"], values["tokenizer"]
    with pytest.raises(UserError, match="takes the architecture and tokenizer of the base run"):
        configure({**values, **given})


@pytest.mark.parametrize("given", ["tokenizer=char", "+tokenizer=char", "+model.context_length=256", "model=debug"])
def test_a_command_that_asks_sft_for_another_model_is_refused_with_the_reason(
    here: Path, run_command: Callable[..., Result], given: str
) -> None:
    refused = run_command("sft", "init_from=base", "data=instruct", "name=w", given, folder=here)
    assert refused.code == 2, refused.err
    assert "takes the architecture and tokenizer of" in refused.err.splitlines()[-1]
    assert "use +" not in refused.err
    assert not Path("outputs/w").exists()


def test_the_base_is_recorded_by_a_path_that_can_be_shared(here: Path) -> None:
    values = dataclasses.asdict(tuned(str(here / "outputs" / "base"))) | {"name": "new"}
    del values["model"], values["tokenizer"]
    assert configure(values).init_from == "outputs/base"
    facts = sft(configure(values), Path("outputs/new"))
    assert facts.forked_from.startswith("outputs/base/checkpoints/")
