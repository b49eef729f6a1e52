"""The order of runs and decisions of a research, with a pure function of the settings in place of a training."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shlex
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT

from positron.cli import request as cli_request
from positron.cli.candidates import read_plan
from positron.cli.hydra_app import conf_folder
from positron.config import DataConfig
from positron.data.open import open_source
from positron.evaluation.research import Plan, Trial, begin, merged, research
from positron.evaluation.research_report import as_record, recipe, write_report
from positron.research import main, refuse_other_settings
from positron.run.facts import Facts, Resolved, write_record
from positron.run.folder import OUTPUTS, Run
from positron.system.disk import make_folder, write_json
from positron.system.errors import Diverged, Interrupted, Occupied, Unreachable, UserError
from positron.train import configure
from scripts.render_log import rendered

EFFECTS = {"good=1": 0.02, "better=1": 0.03, "useless=1": 0.0, "harmful=1": -0.05}
PLAN = Plan(["a=1"], {name.removesuffix("=1"): [name] for name in EFFECTS}, pairs=8, min_gain=0.002, first_seed=3)
ORDER = ["harmful", "good", "useless", "better"]
PLAN = dataclasses.replace(PLAN, candidates={name: PLAN.candidates[name] for name in ORDER})


class Machine:
    """Train by a formula. It is killed before the runs with these numbers, before or after their last step."""

    def __init__(self, killed_before: int | None = None, after_training: bool = False) -> None:
        self.trained: list[tuple[str, ...]] = []
        self.killed_before, self.after_training = killed_before, after_training

    def __call__(self, overrides: list[str], folder: Path) -> Facts:
        if len(self.trained) == self.killed_before and not self.after_training:
            raise Interrupted(15)
        self.trained.append(tuple(overrides))
        if len(self.trained) == self.killed_before and self.after_training:
            raise KeyboardInterrupt
        (seed,) = (word for word in overrides if word.startswith("seed="))
        common = zlib.crc32(seed.encode()) / 2**32  # of all runs with this seed, as the data order
        noise = np.random.default_rng(zlib.crc32(" ".join(overrides).encode())).normal(0, 5e-4)
        gain = sum(EFFECTS.get(word, 0.0) for word in overrides)
        return Facts(status="finished", val_bpb=float(0.8 + 0.1 * common - gain + noise), time_s=10.0)


def last(folder: Path, machine, plan: Plan = PLAN, budget_s: float = float("inf")) -> list[Trial]:
    begin(folder, plan)
    return list(research(folder, plan, machine, budget_s))[-1]


def test_winners_accumulate_and_losers_do_not(tmp_path):
    machine = Machine()
    trials = last(tmp_path, machine)
    assert {trial.name: trial.verdict for trial in trials} == {
        "harmful": "rejected",
        "good": "adopted",
        "useless": "rejected",
        "better": "adopted",
    }
    assert [trial.against for trial in trials] == ["base", "base", "good", "good"]
    assert recipe(PLAN, trials) == ["a=1", "good=1", "better=1"]
    assert len(set(machine.trained)) == len(machine.trained), "a run is trained once"
    assert all(trial.seeds == list(range(3, 3 + len(trial.seeds))) for trial in trials)
    assert len(trials[0].seeds) < PLAN.pairs


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0"])
def test_a_candidate_whose_settings_were_adopted_before_is_rejected_without_training(tmp_path, spelling):
    machine = Machine()
    plan = dataclasses.replace(PLAN, candidates={"both": ["good=1", "better=1"], "again": [f"good={spelling}"]})
    trials = last(tmp_path, machine, plan)
    assert [(trial.verdict, len(trial.seeds)) for trial in trials] == [("adopted", 5), ("rejected", 0)]
    assert trials[1].reason == "the recipe has its settings already"
    assert len(machine.trained) == 10
    write_report(tmp_path, "2026-01-01", "c.yaml", plan, trials)


def test_a_candidate_replaces_the_value_of_the_base_in_its_place():
    assert merged(["x=1", "y=2"], ["+x=3", "z=4"]) == ["+x=3", "y=2", "z=4"]


@pytest.mark.parametrize("after_training", [False, True])
def test_the_same_research_continues_after_every_kill_to_the_same_files(tmp_path, after_training):
    whole = Machine()
    expected = last(tmp_path / "whole", whole)
    write_report(tmp_path / "whole", "2026-01-01", "c.yaml", PLAN, expected)
    for kill in (1, 7, len(whole.trained) - 1):
        folder = tmp_path / str(kill) / "whole"
        first, second = Machine(kill, after_training), Machine()
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            last(folder, first)
        trials = last(folder, second)
        assert trials == expected
        lost = 1 if after_training else 0
        assert first.trained[: kill - lost] + second.trained == whole.trained
        write_report(folder, "2026-01-01", "c.yaml", PLAN, trials)
        for path in (tmp_path / "whole").glob("2026*"):
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_replay_trains_nothing_and_decides_the_same(tmp_path):
    expected = last(tmp_path, Machine())
    again = Machine()
    assert last(tmp_path, again) == expected
    assert again.trained == []


def test_the_budget_ends_between_two_runs_and_a_larger_one_continues(tmp_path):
    first = Machine()
    trials = last(tmp_path, first, budget_s=65)
    assert len(first.trained) == 7  # the seventh begins after 60 seconds of training
    assert trials[-1].verdict == "open"
    again = Machine()
    assert last(tmp_path, again, budget_s=65) == trials
    assert again.trained == []
    assert last(tmp_path, again) == last(tmp_path / "whole", Machine())


@pytest.mark.parametrize("fault", [Diverged("loss"), UserError("too large"), RuntimeError("kernel"), None])
def test_a_candidate_with_a_failing_run_is_lost_and_the_others_are_tested(tmp_path, fault):
    machine = Machine()

    def train(overrides: list[str], folder: Path) -> Facts:
        facts = machine(overrides, folder)
        if "good=1" in overrides and "seed=4" in overrides:
            if fault is None:
                return dataclasses.replace(facts, status="pruned")
            raise fault
        return facts

    trials = last(tmp_path, train)
    assert [trial.verdict for trial in trials] == ["rejected", "failed", "rejected", "adopted"]
    assert trials[1].failure.startswith("seed 4: ")
    assert trials[3].against == "base"
    assert last(tmp_path, Machine()) == trials, "the failure is recorded"


def test_a_network_failure_ends_the_research_and_the_same_command_continues_it(tmp_path):
    machine = Machine()

    def train(overrides: list[str], folder: Path) -> Facts:
        if "good=1" in overrides and "seed=4" in overrides:
            raise Unreachable("the dataset some/stories cannot be downloaded")
        return machine(overrides, folder)

    with pytest.raises(Unreachable):
        last(tmp_path, train)
    assert last(tmp_path, Machine()) == last(tmp_path / "whole", Machine())


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), Occupied("in use")])
def test_a_fault_of_the_machine_ends_the_research_and_the_same_command_continues_it(tmp_path, cause):
    machine = Machine()

    def train(overrides: list[str], folder: Path) -> Facts:
        if "good=1" in overrides and "seed=4" in overrides:
            raise UserError("cannot write run.json") from cause
        return machine(overrides, folder)

    with pytest.raises(UserError, match="cannot write"):
        last(tmp_path, train)
    assert last(tmp_path, Machine()) == last(tmp_path / "whole", Machine())


@pytest.mark.parametrize("fault", [UserError("no space left"), OSError("no space left"), Diverged("loss")])
def test_after_the_first_step_only_divergence_is_the_fault_of_the_candidate(tmp_path, fault):
    machine = Machine()

    def train(overrides: list[str], folder: Path) -> Facts:
        if "good=1" in overrides and "seed=4" in overrides:
            run = Run(make_folder(folder))
            assert not run.exists, "the run is new"
            run.metrics_path.write_text('{"step": 50}\n')
            raise fault
        return machine(overrides, folder)

    if isinstance(fault, Diverged):
        assert last(tmp_path, train)[1].failure == "seed 4: loss"
        return
    with pytest.raises(type(fault), match="no space left"):
        last(tmp_path, train)
    assert last(tmp_path, Machine()) == last(tmp_path / "whole", Machine())


def test_a_failing_base_recipe_ends_the_research_and_is_tried_again(tmp_path):
    def train(overrides: list[str], folder: Path) -> Facts:
        raise UserError("no text")

    with pytest.raises(UserError, match="no text"):
        last(tmp_path, train)
    assert last(tmp_path, Machine())[1].verdict == "adopted"


def test_a_changed_plan_is_refused_and_new_candidates_at_the_end_are_tested(tmp_path):
    last(tmp_path, Machine())
    for change in ({"base": ["a=2"]}, {"min_gain": 0.1}, {"candidates": {"new": ["good=1"], **PLAN.candidates}}):
        with pytest.raises(UserError, match=f"the key {next(iter(change))} in the file of candidates differs"):
            last(tmp_path, Machine(), dataclasses.replace(PLAN, **change))
    machine = Machine()
    longer = dataclasses.replace(PLAN, candidates={**PLAN.candidates, "last": ["useless=1", "harmful=1"]})
    assert last(tmp_path, machine, longer)[-1].against == "better"
    assert machine.trained


def test_a_damaged_record_is_named(tmp_path):
    last(tmp_path, Machine())
    path = tmp_path / "base" / "3" / "job.json"
    path.write_text('{"overrides": []}')
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        last(tmp_path, Machine())


def test_a_run_with_other_settings_is_refused(tmp_path):
    last(tmp_path, Machine())
    shutil.copy(tmp_path / "base" / "4" / "job.json", tmp_path / "base" / "3" / "job.json")
    with pytest.raises(UserError, match="was trained with other settings"):
        last(tmp_path, Machine())


def test_a_run_on_another_text_than_the_first_one_is_refused(tmp_path):
    machine = Machine()

    def train(overrides: list[str], folder: Path) -> Facts:
        make_folder(folder)
        Run(folder).update(data_fingerprint="old" if len(machine.trained) < 3 else "new")
        return machine(overrides, folder)

    # a change of a dataset of the hub is noticed only after the training
    settings = SimpleNamespace(data=DataConfig(source="hub", repo="a/b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "settings", lambda _: settings)
        for _ in range(2):  # the run on the other text is not trained again, and does not count
            with pytest.raises(
                UserError, match=r"harmful.4 was trained on another text than .*base.3: restore the earlier text"
            ):
                last(tmp_path, train)
    assert len(machine.trained) == 4


def test_no_run_is_trained_after_the_text_has_changed(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a sentence\n" * 100)
    data = DataConfig(source="text", path=str(text))
    known = open_source(data).fingerprint

    def train(overrides: list[str], folder: Path) -> Facts:
        make_folder(folder)
        Run(folder).update(data_fingerprint=known)
        return machine(overrides, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "settings", lambda _: SimpleNamespace(data=data))
        machine = Machine()
        last(tmp_path / "r", train, budget_s=25)
        text.write_text("another sentence\n" * 100)
        with pytest.raises(UserError, match=r"the training text of .*base.3 has changed since this run was trained"):
            last(tmp_path / "r", train)
        assert len(machine.trained) == 3
        text.write_text("a sentence\n" * 100)
        assert last(tmp_path / "r", train) == last(tmp_path / "whole", Machine())


def test_a_run_of_an_experiment_that_was_edited_since_then_is_refused(tmp_path, monkeypatch, capsys):
    shutil.copytree(conf_folder(), tmp_path / "conf")
    monkeypatch.setattr(cli_request, "conf_folder", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\noptimizer:\n  lr: 0.001\n")
    folder, overrides = OUTPUTS / "research" / "r" / "base" / "0", ["model=debug", "experiment=mine", "seed=0"]
    request = cli_request.compose_request("train", [*overrides, "name=research/r/base/0"])
    run = Run(make_folder(folder / "checkpoints", folder).parent)
    write_record(run.config_path, dataclasses.asdict(request.configured(configure)))
    run.update(resolved=Resolved(batch_tokens=1024, micro_batch_size=1, max_steps=5, threads=1))
    (run.checkpoint_folder / "step-000005.ckpt").touch()
    write_json(run.job_path, {"overrides": overrides, "failed": None, "bpb": 1.0, "time_s": 1.0, "date": "2026-01-01"})
    refuse_other_settings(folder.parent.parent)
    mine.write_text("# @package _global_\noptimizer:\n  lr: 0.002\n")
    Path("r.yaml").write_text("base: [model=debug, experiment=mine]\ncandidates: {x: [optimizer.lr=0.1]}\n")
    monkeypatch.setattr("sys.argv", ["research", "candidates=r.yaml"])
    with pytest.raises(SystemExit):
        main()
    assert "was trained with other settings (optimizer.lr: 0.001 -> 0.002)" in capsys.readouterr().err.splitlines()[-1]


def test_the_report_is_an_entry_of_the_log(tmp_path):
    trials = last(tmp_path, Machine())
    write_report(tmp_path, "2026-01-01", "c.yaml", PLAN, trials)
    name = f"2026-01-01-{tmp_path.name}"
    entry = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert rendered(entry, tmp_path) == entry
    assert entry.startswith(f"## 2026-01-01 · Research {tmp_path.name} (adopted: good, better)\n")
    record = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / "base" / "3 (copy)").mkdir()  # or .ipynb_checkpoints
    assert record == as_record(tmp_path, "2026-01-01", "c.yaml", trials)
    (good,) = (row for row in record["rows"] if row["candidate"] == "good")
    assert good["gain"][0] == pytest.approx(good["bpb_without"] - good["bpb_with"], abs=2e-6)
    assert good["p"] < 0.01
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_a_research_with_a_name_of_any_characters_is_an_entry_of_the_log(tmp_path):
    folder = tmp_path / "über nacht $x_$"
    folder.mkdir()
    write_report(folder, "2026-01-01", "my files/c.yaml", PLAN, last(folder, Machine()))
    entry = (folder / f"2026-01-01-{folder.name}.md").read_text(encoding="utf-8")
    record = json.loads((folder / f"2026-01-01-{folder.name}.json").read_text(encoding="utf-8"))
    assert rendered(entry, folder) == entry
    words = ["positron", "research", "candidates=my files/c.yaml", f"name={folder.name}"]
    assert shlex.split(record["command"]) == words


def test_a_candidate_may_have_spaces_and_umlauts_in_its_name(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base: [model=debug]\ncandidates: {größer und tiefer: [model.n_layer=3]}\n", encoding="utf-8")
    assert list(read_plan(path, configure).candidates) == ["größer und tiefer"]


WRONG = {
    "candidate: {x: [seed=1]}": "unknown key candidate: did you mean candidates",
    "pairs: 4\ncandidates: {x: [optimizer.lr=1]}": "pairs must be a whole number of at least 5",
    "min_gain: 0\ncandidates: {x: [optimizer.lr=1]}": "min_gain must be a number above 0",
    "candidates: {x: [optimizer.lr=1], x: [optimizer.lr=2]}": "line 2: the key x is given twice",
    "candidates: {x: [optimizer.lr=1], X: [optimizer.lr=2]}": "differ only in case",
    "candidates: {../x: [optimizer.lr=1]}": "'../x' cannot be the name of a candidate",
    "candidates: {'': [optimizer.lr=1]}": "cannot be the name of a candidate, because it is empty: give the candidate a name",
    "candidates: {5: [optimizer.lr=1]}": "it is not a text but a YAML value of type int: write the name in quotation marks",
    "candidates: {base: [optimizer.lr=1]}": "it is the name of the base recipe: rename the candidate",
    "candidates: {x: optimizer.lr=1}": ", candidate 'x': give a list of at least one setting",
    "candidates: {x: []}": ", candidate 'x': give a list of at least one setting",
    "candidates: {{x: [optimizer.lr=1]}}": "line 2: a key must be a name, not a list or a mapping: write single braces",
    "candidates: {}": "the key candidates needs at least one name with a list of settings",
    "candidates: {x: [name=y]}": "leave name= out",
    "candidates: {x: [optimizer.lr=1, optimizer.lr=2]}": "'x': optimizer.lr= is given twice: leave one out",
    "candidates: {x: ['optimizer.lr=1,2']}": "optimizer.lr=1,2 gives several values: give one value",
    "min_gain: 1e-3\ncandidates: {x: [optimizer.lr=1]}": "1e-3 as a text and not as a number: write min_gain: 0.001",
    "candidates: {x: [optimizer.rate=1]}": ", candidate 'x': unknown key optimizer.rate",
    "candidates: {x: [seed=9]}": "'x': seed= differs from its value in base",
    "candidates: {x: [data.val_fraction=0.1]}": "'x': data.val_fraction= differs from its value in base",
    "candidates: {x: [data=addition]}": "validation text: remove this candidate, or set data= in base, for all runs",
    "candidates: {x: [seed=9, optimizer.lr=1]}": "text: leave seed= out of the candidate, or set seed= in base, for all runs",
    "candidates: {x: [train.val_tokens=9]}": "'x': train.val_tokens= differs from its value in base",
    "candidates: {x: [tokenizer=char]}": "'x': tokenizer=char changes tokenizer.kind",
    "candidates: {x: [train.max_time=9]}": "leave train.max_time= out, and set the length by train.max_steps=",
    "candidates: {x: [budget=1h]}": "'x': positron research compares runs of a fixed number of steps: leave budget= out, and",
    "candidates: {x: [model=auto]}": "'x': positron research compares runs of a fixed number of steps: leave model=auto out",
    "candidates: {x: [train.stop_at=2]}": "leave train.stop_at= out",
    "candidates: {x: [device.num_nodes=2, device.strategy=ddp]}": "on one device: leave device.num_nodes= out",
    "candidates: {x: [data.packing=documents]}": "'x': base has these settings already: remove the candidate, or give other",
    "candidates: {x: [device.threads=2, train.sample_prompt=A]}": "threads=2 train.sample_prompt=A does not change what a",
    "pairs: 5": 'has no key "candidates"',
    "candidates: {}\n\tpairs: 5": ", line 3, begins with a tab: indent with blanks",
    "  pairs: 5": ", line 2, is indented differently from the lines before it",
    "candidates: [": ", line 3, is not valid YAML: expected the node content, but found '<stream end>'; correct",
}


def test_a_missing_file_of_candidates_asks_for_its_spelling(tmp_path):
    with pytest.raises(UserError, match=r"nope\.yaml: there is no such file; check the spelling of the path$"):
        read_plan(tmp_path / "nope.yaml", configure)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_the_file_is_said(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"base: [model=debug]\n{text}\n")
    with pytest.raises(UserError) as refusal:
        read_plan(path, configure)
    assert WRONG[text] in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("candidates: {x: [seed=1]}", 'has no key "base": add a line such as base: [model=debug, train.max_steps=300]'),
        ("", "must contain the keys base and candidates, each on a line of its own"),
    ],
)
def test_a_file_without_a_base_is_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_plan(path, configure)


def test_a_base_whose_length_depends_on_the_speed_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base: [model=debug, budget=10min]\ncandidates: {x: [optimizer.lr=1]}\n")
    with pytest.raises(UserError, match=r"base: .* leave budget= out, and set the length by train\.max_steps=$"):
        read_plan(path, configure)


def test_a_plan_begins_with_the_seed_of_the_base(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "base: [model=debug, seed=7]\ncandidates: {wide: [model.d_model=128], masked: [data.document_mask=true]}\n"
    )
    plan = read_plan(path, configure)
    assert (plan.first_seed, plan.pairs, plan.min_gain) == (7, 10, 0.001)
    assert plan.candidates == {"wide": ["model.d_model=128"], "masked": ["data.document_mask=true"]}


def test_the_file_of_the_guide_can_be_read(tmp_path):
    guide = (PROJECT / "docs" / "guides" / "experiments.md").read_text(encoding="utf-8")
    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "candidates:" in block)
    path = tmp_path / "candidates.yaml"
    path.write_text(text)
    assert len(read_plan(path, configure).candidates) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the file of candidates"),
        (["c.yaml"], ".research: give candidates=c.yaml"),
        (["candidate=c.yaml"], "did you mean candidates=c.yaml"),
        (
            ["candidates=c.yaml", "optimizer.lr=1"],
            "write settings of runs into the file of candidates=, below the key base",
        ),
        (["candidates=c.yaml", "budget=night"], "budget=night is not a time"),
        (["candidates=c.yaml", "name=../x"], "cannot be called '../x'"),
        (["candidates=c.yaml", "name="], "cannot be called '', which is empty"),
        (["candidates=c.yaml", "name=a", "name=b"], "name= is given twice"),
        (["candidates=missing.yaml"], "missing.yaml"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["research", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in err.splitlines()[-1]


@pytest.mark.slow
def test_a_research_with_real_runs_continues_and_replays_to_the_byte(run_command, tmp_path):
    corpus = [
        "data.size_mb=0.2",
        "tokenizer=char",
        "model=debug",
        "model.d_model=32",
        "train.batch_tokens=512",
        "device=cpu",
    ]
    lengths = ["train.max_steps=6", "train.val_every=6", "train.val_tokens=2000", "schedule.warmup_steps=2"]
    plan = {
        "base": [*corpus, *lengths, "optimizer.lr=3e-3"],
        "candidates": {"slow": ["optimizer.lr=1e-6"], "fast": ["optimizer.lr=1e-2"]},
        "pairs": 5,
    }
    (tmp_path / "c.yaml").write_text(json.dumps(plan))
    first = run_command("research", "candidates=c.yaml", "budget=0.001s")
    assert first.code == 0, first.err
    folder = tmp_path / "outputs" / "research" / "c"
    assert [path.parent.parent.name for path in folder.glob("*/*/job.json")] == ["base"]
    whole = run_command("research", "candidates=c.yaml")
    assert whole.code == 0, whole.err
    record = json.loads(next(folder.glob("2*.json")).read_text(encoding="utf-8"))
    slow, _ = record["rows"]
    assert (slow["candidate"], slow["pairs"], slow["verdict"]) == ("slow", 3, "rejected")
    assert record["commit"]
    files = {path.name: path.read_bytes() for path in folder.glob("2*")}
    assert len(files) == 3
    for name in files:
        (folder / name).unlink()
    again = run_command("research", "candidates=c.yaml")
    assert again.out == whole.out
    assert {path.name: path.read_bytes() for path in folder.glob("2*")} == files
