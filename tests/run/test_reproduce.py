"""Where a run comes from stands in its folder, and what it says is enough to make the same losses again."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, tiny
from tuning import tuned

from positron import reproduce
from positron.config import DeviceConfig, SFTConfig
from positron.evaluation.report import write_report
from positron.run import provenance
from positron.run.facts import Resolved
from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.run.provenance import checkout, command, read_provenance, recorded_changes, start_of
from positron.run.samples import Sample, append_sample
from positron.sft import sft
from positron.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose outputs/ has one run, begun for 5 steps and then continued to 12; the tests' current folder."""
    folder, before = tmp_path_factory.mktemp("place"), Path.cwd()
    os.chdir(folder)
    config = tiny(folder, model__context_length=64, train__max_steps=12, train__save_every=5, train__log_every=2)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, warmup_steps=12))
    part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=5))
    for start in (part, config):
        train(start, folder / "outputs" / "x")
    yield folder
    os.chdir(before)


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    with pytest.raises(SystemExit) as exit_:
        reproduce.main()
    return int(str(exit_.value.code)), *capsys.readouterr()


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_run_is_reproduced_and_an_edited_trace_is_said_to_differ_at_its_step(place, monkeypatch, capsys) -> None:
    code, out, err = said(monkeypatch, capsys, "outputs/x", "--steps", "7")
    assert (code, out.strip()) == (0, "identical: logged steps 2 to 8 (5 of them) have the same losses bit for bit"), (
        err
    )
    new = Run(place / "outputs" / "x-again")
    assert (new.facts().step, new.facts().status) == (8, "stopped")
    assert "the warmup" in (place / "outputs" / "x" / "train.log").read_text()
    assert "the warmup" not in new.log_path.read_text()  # nobody can shorten the warmup of a reproduction
    there = {row["step"]: row for row in read_metrics(place / "outputs" / "x" / "metrics.jsonl")}
    for row in read_metrics(new.folder / "metrics.jsonl"):
        assert row["train/loss"] == there[row["step"]]["train/loss"]

    shutil.copytree("outputs/x", "outputs/kept")
    try:
        rows = [json.loads(line) for line in Path("outputs/x/metrics.jsonl").read_text().splitlines()]
        rows[3]["train/loss"] += 1e-7
        Path("outputs/x/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, out, _ = said(monkeypatch, capsys, "x", "--steps", "7", "--name", "edited")
        assert code == 1
        assert (
            f"different: at step {rows[3]['step']} train/loss is {rows[3]['train/loss']} in the first run and " in out
        )
        assert f" in the new run (-1e-07); 3 logged steps before step {rows[3]['step']} are identical" in out
        assert "no recorded difference explains this" in out

        def others(value):
            value["environments"][0]["versions"]["torch"] = "0.1"
            value["environments"][0]["resolved"]["threads"] = 77

        edit(Path("outputs/x/provenance.json"), others)
        _, out = reproduce.verdict(Run(Path("outputs/x")), Run(Path("outputs/edited")), 8)
        assert "\n  versions.torch: 0.1 -> 2." in out
        assert "\n  resolved.threads: 77 -> " in out
    finally:
        shutil.rmtree("outputs/x")
        Path("outputs/kept").rename("outputs/x")


def test_only_an_unfinished_reproduction_by_the_same_code_is_continued(place, monkeypatch, capsys) -> None:
    assert said(monkeypatch, capsys, "x", "--steps", "3", "--name", "part")[0] == 0
    code, out, _ = said(monkeypatch, capsys, "x", "--steps", "7", "--name", "part")
    assert (code, Run(place / "outputs" / "part").facts().step) == (0, 8)
    assert "identical: logged steps 2 to 8" in out

    code, _, err = said(monkeypatch, capsys, "x", "--steps", "7", "--name", "part")
    assert code == 2
    assert err.startswith("positron: outputs/part already reproduced outputs/x up to step 8 on 20")
    assert err.endswith(": to train again, delete outputs/part or give another --name\n")
    assert err.count("\n") == 1

    def other_torch(value):
        value["environments"][0]["versions"]["torch"] = "0.1"

    edit(Path("outputs/part/provenance.json"), other_torch)
    code, _, err = said(monkeypatch, capsys, "x", "--whole", "--name", "part")
    assert code == 2
    assert ", and since then this changed: versions.torch: 0.1 -> 2." in err
    assert Run(place / "outputs" / "part").facts().step == 8


def test_another_number_of_processes_is_a_recorded_difference(place) -> None:
    first = start_of(read_provenance(place / "outputs" / "x"), 1)
    assert first["device"] == {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    second = {**first, "device": {"devices": 2, "num_nodes": 1, "strategy": "ddp"}}
    assert recorded_changes(first, second) == ["device.devices: 1 -> 2", "device.strategy: auto -> ddp"]
    older = {key: value for key, value in first.items() if key != "device"}
    assert recorded_changes(older, second) == recorded_changes(second, older) == []


@pytest.fixture(scope="module")
def stopped(place: Path) -> Run:
    """A run that validates every 5 steps and writes a row every 2, stopped at steps 6 and 7, and then continued to 12."""
    config = tiny(place, model__context_length=64, train__max_steps=12, train__log_every=2, train__val_every=5)
    for stop_at in (6, 7, None):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop_at))
        train(part, place / "outputs" / "stopped")
    return Run(Path("outputs/stopped"))


def validations(run: Run) -> list[int]:
    return [row["step"] for row in read_metrics(run.metrics_path) if "val/loss" in row]


def rewrite_metrics(run: Run, change) -> None:
    rows = {row["step"]: row for row in read_metrics(run.metrics_path)}
    change(rows)
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


@pytest.mark.slow
def test_a_validation_because_one_of_two_runs_stopped_is_no_difference(stopped, monkeypatch, capsys) -> None:
    code, out, err = said(monkeypatch, capsys, "stopped", "--steps", "8")
    assert (code, out.strip()) == (0, "identical: logged steps 2 to 8 (5 of them) have the same losses bit for bit"), (
        err
    )
    assert validations(stopped) == [5, 6, 7, 10, 12]
    assert validations(Run(Path("outputs/stopped-again"))) == [5, 8]

    rewrite_metrics(Run(Path("outputs/stopped-again")), lambda rows: rows[5].pop("val/loss"))
    is_identical, out = reproduce.verdict(stopped, Run(Path("outputs/stopped-again")), 8)
    assert not is_identical
    assert re.search(
        r"^different: at step 5 val/loss is \d\.\d+ in the first run and missing in the new run; 2 logged", out, re.M
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "key"), [(10, "val/loss"), (4, "train/loss"), (7, "train/grad_norm"), (5, "train/lr"), (12, "train/lr")]
)
def test_a_metric_that_one_of_two_runs_lacks_is_a_difference(stopped, tmp_path, step, key) -> None:
    lacking = Run(shutil.copytree(stopped.folder, tmp_path / "lacking"))
    rewrite_metrics(lacking, lambda rows: rows[step].pop(key))
    value = next(row[key] for row in read_metrics(stopped.metrics_path) if row["step"] == step)
    for pair, values in (
        ((stopped, lacking), f"{value} in the first run and missing in the new run"),
        ((lacking, stopped), f"missing in the first run and {value} in the new run"),
    ):
        same, text = reproduce.verdict(*pair, 12)
        assert not same
        assert text.startswith(f"different: at step {step} {key} is {values}; ")


@pytest.mark.parametrize("step", [4, 5, 10])
def test_a_row_that_one_of_two_runs_lacks_is_a_difference(stopped, tmp_path, step) -> None:
    lacking = Run(shutil.copytree(stopped.folder, tmp_path / "lacking"))
    rewrite_metrics(lacking, lambda rows: rows.pop(step))
    for pair in ((stopped, lacking), (lacking, stopped)):
        same, text = reproduce.verdict(*pair, 12)
        assert not same
        assert text.startswith(f"different: at step {step} train/loss is ")
        assert "missing" in text


def test_a_run_that_ended_before_the_other_is_compared_up_to_its_end(stopped, tmp_path) -> None:
    """Early stopping counts every validation, and one of two runs may have had more of them, because it was stopped."""
    short = Run(shutil.copytree(stopped.folder, tmp_path / "short"))
    rewrite_metrics(short, lambda rows: [rows.pop(step) for step in (10, 12)])
    for pair in ((stopped, short), (short, stopped)):
        same, text = reproduce.verdict(*pair, 12)
        assert same, text
        assert "2 to 8 (6 of them)" in text


def test_a_whole_run_under_a_name_and_a_job_of_a_sweep(place, monkeypatch, capsys) -> None:
    code, out, err = said(monkeypatch, capsys, "x", "--whole", "--name", "other")
    assert code == 0, out + err
    assert "2 to 12" in out
    assert Run(place / "outputs" / "other").facts().status == "finished"
    job = place / "outputs" / "sweeps" / "lr" / "3"
    shutil.copytree(place / "outputs" / "x", job)
    (job / "job.json").write_text("{}")
    assert reproduce.default_name(Run(job)) == "lr-3-again"


def test_fine_tuning_is_reproduced_from_the_weights_that_it_began_with(place, monkeypatch, capsys) -> None:
    records = [{"instruction": f"The hat {n}?", "output": "It is red."} for n in range(30)]
    Path("conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = tuned(place)
    short = dataclasses.replace(config.train, stop_at=4, val_every=4, sample_every=4)
    sft(
        dataclasses.replace(config, train=short, sft=SFTConfig(patience=0), init_from="outputs/x"),
        Path("outputs/tuned"),
    )
    code, out, err = said(monkeypatch, capsys, "tuned", "--whole")
    assert code == 0, out + err
    assert "1 to 4" in out
    start = read_provenance(Path("outputs/tuned"))["starts"][0]
    assert start["weights"]["path"] == "outputs/x/checkpoints/best.ckpt"
    best = Path(start["weights"]["path"])
    best.rename("gone.ckpt")
    try:
        code, _, err = said(monkeypatch, capsys, "tuned", "--name", "never")
    finally:
        Path("gone.ckpt").rename(best)
    assert code == 2
    assert "which no longer exists" in err
    assert not Path("outputs/never").exists()


def test_what_cannot_be_reproduced_is_one_line_with_exit_code_2(place, monkeypatch, capsys) -> None:
    shutil.copytree("outputs/x", "outputs/mute")
    (place / "outputs" / "mute" / "metrics.jsonl").unlink()
    shutil.copytree("outputs/x", "outputs/old")
    (place / "outputs" / "old" / "provenance.json").unlink()
    shutil.copytree("outputs/x", "outputs/begun")
    (place / "outputs" / "begun" / "metrics.jsonl").write_text(
        '{"step": 0, "tokens": 0, "time_s": 0.0, "val/bpb": 5.0}\n'
    )
    for arguments, message in (
        (["begun"], "has trained no step, so there is nothing to reproduce: name another run"),
        (["nobody"], "no run nobody"),
        (["mute"], "has no metrics to compare with"),
        (["old"], "provenance.json does not exist: restore this file from a copy"),
        (["x", "--name", "old"], "is not a reproduction of outputs/x"),
        (["x", "--name", "x"], "outputs/x is the run that is reproduced: give another --name"),
        (["x", "--steps", "0"], "at least 1"),
    ):
        before = sorted(place.rglob("*"))
        code, out, err = said(monkeypatch, capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
        assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("group", "values", "named"),
    [
        ("optimizer", {"kind": "custom", "_target_": "evil.Code"}, "the optimizer class evil.Code"),
        ("reward", {"kind": "custom", "function": "evil.code"}, "the reward function evil.code"),
        ("reward", {"kind": "sum", "terms": [{"kind": "custom", "function": "evil.code"}]}, "function evil.code"),
    ],
)
def test_code_that_a_run_folder_names_is_not_imported(place, monkeypatch, capsys, group, values, named) -> None:
    folder = f"outputs/{group}{len(str(values))}"
    shutil.copytree("outputs/x", folder)
    edit(place / folder / "config.json", lambda config: (config.pop("checksum"), config.update({group: values})))
    (place / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(place))
    code, out, err = said(monkeypatch, capsys, folder)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err
    assert "does not import code that a run folder names" in err


def test_a_damaged_configuration_is_refused_in_one_line(place, monkeypatch, capsys) -> None:
    shutil.copytree("outputs/x", "outputs/damaged")
    edit(place / "outputs/damaged/config.json", lambda config: (config.pop("checksum"), config.update(optimizer=3)))
    code, out, err = said(monkeypatch, capsys, "outputs/damaged")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "config.json is damaged" in err
    assert "optimizer=3 is not a group of settings" in err


def test_a_run_notes_each_start_and_no_secret(place) -> None:
    text = (place / "outputs" / "x" / "provenance.json").read_text(encoding="utf-8")
    known = json.loads(text)
    assert [start["step"] for start in known["starts"]] == [0, 5]
    assert len(known["environments"]) == 1
    first = start_of(known, 1)
    assert first["seed"] == 1
    assert first["command"] == command()
    assert first["resolved"] == dataclasses.asdict(Run(place / "outputs" / "x").resolved())
    wanted = {
        "python",
        "positron",
        "torch",
        "lightning",
        "hydra-core",
        "numpy",
        "sentencepiece",
        "tiktoken",
        "datasets",
    }
    assert set(first["versions"]) == wanted
    assert {"cpu", "cores", "memory_gb", "accelerator", "system"} <= set(first["hardware"])
    assert start_of(known, 5)["step"] == 0
    assert start_of(known, 6)["step"] == 5
    assert not start_of({"starts": [], "environments": []}, 1)
    assert str(Path.home()) not in first["command"]
    assert os.environ["PATH"] not in text


def test_a_checkpoint_that_a_base_run_has_deleted_meanwhile_does_not_end_the_start(tmp_path: Path) -> None:
    resolved, missing = Resolved(512, 8, 10, "cpu", "fp32", 1), tmp_path / "step-10.ckpt"
    provenance.record_start(tmp_path, step=0, seed=1, device=DeviceConfig(), resolved=resolved, weights=missing)
    assert start_of(read_provenance(tmp_path), 1)["weights"] == {"path": str(missing)}


def test_the_report_tells_of_the_surroundings_that_the_run_noted(place) -> None:
    shutil.copytree("outputs/x", "outputs/elsewhere")
    run = Run(place / "outputs" / "elsewhere")

    def others(value):
        value["environments"][0]["versions"]["torch"] = "9.8.7"
        value["environments"][0]["hardware"]["cpu"] = "Abacus <1>"

    edit(run.folder / "provenance.json", others)
    write_report(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "9.8.7" in page
    assert "Abacus &lt;1&gt;" in page
    (run.folder / "provenance.json").unlink()
    write_report(run)
    assert "9.8.7" not in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_report_shows_what_a_model_writes_as_text(place) -> None:
    shutil.copytree("outputs/x", "outputs/markup")
    run = Run(place / "outputs" / "markup")
    text = f"<script>alert('1')</script> & {{{{ 7 * 7 }}}}\n\n## Step 9 · loss 1.0\n\n  {Path.home()}/secret"
    append_sample(run, Sample(99, 1.5, None, text))
    write_report(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    quotes = re.findall(r"<blockquote>(.*?)</blockquote>", page, re.DOTALL)
    assert html.unescape(quotes[-1]) == text.replace(str(Path.home()), "~")
    assert "<script" not in page


def test_the_command_is_what_was_typed_without_the_home(monkeypatch) -> None:
    argv = ["/somewhere/positron/train.py", "model=debug", f"data.path={Path.home()}/my text.txt"]
    monkeypatch.setattr(sys, "argv", argv)
    assert command() == "python -m positron.train model=debug 'data.path=~/my text.txt'"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "QUERY_TIMEOUT_S", PATIENCE)

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("one\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_commit_diff_and_untracked_files_of_a_checkout(repository: Path) -> None:
    clean = checkout(repository)
    assert clean is not None
    assert (clean["diff"], clean["diff_sha256"], clean["untracked"]) == ("", None, [])
    assert len(clean["commit"]) == 40
    (repository / "a.py").write_text("two\n")
    (repository / "new.py").write_text("three\n")
    dirty = checkout(repository)
    assert dirty is not None
    assert "-one\n+two\n" in dirty["diff"]
    assert dirty["untracked"] == ["new.py"]
    assert dirty["commit"] == clean["commit"]
    (repository / "a.py").write_text("é" * 300_000)
    for i in range(150):
        (repository / f"{i}.txt").touch()
    large = checkout(repository)
    assert large is not None
    assert len(large["diff"].encode()) < 200_100
    assert "[cut here: the diff has 600," in large["diff"]
    assert large["diff_sha256"] != dirty["diff_sha256"]
    assert large["untracked"][-1] == "... and 51 more"


def test_no_checkout_no_git_and_a_git_that_hangs_hurt_nothing(repository: Path, monkeypatch) -> None:
    (repository / "inside").mkdir()
    assert checkout(repository / "inside") is None  # a package that lies in somebody else's checkout
    tools = repository / "inside" / "tools"
    tools.mkdir()
    monkeypatch.setattr(provenance, "QUERY_TIMEOUT_S", 0.3)
    monkeypatch.setenv("PATH", str(tools))
    assert checkout(repository) is None
    # it would answer, but so late that an unbounded wait shows as an answer
    (tools / "git").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\nprint('an answer')\n")
    (tools / "git").chmod(0o755)
    assert checkout(repository) is None
