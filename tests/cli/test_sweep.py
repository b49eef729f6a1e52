"""Sweeps: one folder per job, failures visible, the others go on, the same command again finishes the rest."""

import csv
import json
import random
import re
import statistics
import time

import pytest
from conftest import FAST, PATIENCE, tiny
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

import positron
from positron.cli.hydra_app import hydra_errors_as_ours
from positron.cli.sweep_callback import _share_machine
from positron.cli.sweeps import claim_folder, share_of
from positron.run.facts import Resolved
from positron.run.folder import PRETRAIN, Run
from positron.system.errors import UserError
from positron.system.locks import is_locked, lock
from positron.text.char_word import CharTokenizer
from positron.training.callbacks.pruning import is_hopeless

SWEEP = ("-m", "model=debug", *FAST, "name=sweep", "train.max_steps=6", "train.val_every=6", "schedule.warmup_steps=2")


def test_a_failing_job_is_visible_and_the_others_go_on_and_again_only_the_rest_is_done(run_command, tmp_path):
    # n_head=5 does not divide 32: the second job cannot be built
    jobs = (*(o for o in SWEEP if not o.startswith("model.n_head")), "model.n_head=4,5,2")
    first = run_command("train", *jobs)
    folder = tmp_path / "outputs" / "sweeps" / "sweep"
    assert first.code == 1, first.err
    assert (
        "1 of 3 jobs cannot start; the reason for the first of these jobs (model.n_head=5): model.d_model=32 is not"
        in first.err
    )
    *table, last = first.out.strip().splitlines()[-4:]
    assert last.startswith("next:")
    assert table[-1].split()[0] == "1"
    assert "failed" in table[-1]
    assert "not divisible" in table[-1]
    scores = [float(line.split()[-1]) for line in table[:2]]
    assert scores == sorted(scores)
    assert "not divisible" in json.loads((folder / "1" / "job.json").read_text())["failed"]
    for job in ("0", "2"):
        facts = json.loads((folder / job / "run.json").read_text())
        assert (facts["status"], facts["step"]) == ("finished", 6)
    heads = [json.loads((folder / job / "config.json").read_text())["model"]["n_head"] for job in ("0", "2")]
    assert heads == [4, 2]
    lines = (folder / "sweep.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][-1] == "| 1"
    written = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["model.n_head"] for row in written][-1] == "5"
    assert [float(row["val/bpb"]) for row in written[:2]] == sorted(float(row["val/bpb"]) for row in written[:2])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    before = [(folder / job / "metrics.jsonl").read_bytes() for job in ("0", "2")]
    again = run_command("train", *jobs)
    assert again.code == 1
    assert again.err.count("nothing to do") == 2
    assert before == [(folder / job / "metrics.jsonl").read_bytes() for job in ("0", "2")]


@pytest.mark.slow
def test_a_mistake_of_all_jobs_is_said_once_before_the_first_job(run_command, tmp_path):
    jobs = (*(o for o in SWEEP if not o.startswith("model.n_head")), "model.n_head=5", "seed=1,2,3")
    refused = run_command("train", *jobs)
    assert (refused.code, refused.err.count("not divisible")) == (2, 1), refused.err
    assert not list(tmp_path.glob("outputs/sweeps/sweep/*/job.json"))
    different = run_command("train", *SWEEP, "optimizer.lr=-1,-2")
    assert (different.code, different.out, different.err) == (2, "", "positron: optimizer.lr=-1 must be positive\n")


@pytest.mark.slow
def test_seeds_are_repetitions_whose_mean_ranks_the_settings(run_command, tmp_path):
    result = run_command("train", *SWEEP, "optimizer.lr=1e-5,1e-2", "seed=0,1")
    assert result.code == 0, result.err
    lines = result.out.strip().splitlines()
    start = lines.index(next(line for line in lines if line.startswith("optimizer.lr  seeds")))
    assert [line.split()[:2] for line in lines[start + 1 : start + 3]] == [["0.01", "2"], ["1e-05", "2"]]
    assert [line.split()[0] for line in lines[-5:-1]] in (
        ["2", "3", "0", "1"],
        ["3", "2", "0", "1"],
        ["2", "3", "1", "0"],
    )
    assert (
        "compare --paired outputs/sweeps/sweep:optimizer.lr=0.01 outputs/sweeps/sweep:optimizer.lr=1e-05" in result.err
    )
    paired = run_command("compare", "--paired", "sweeps/sweep", "--limit", "2000")
    assert paired.code == 0, paired.err
    assert "optimizer.lr: 1e-05 -> 0.01" in paired.out


@pytest.mark.slow
def test_a_job_that_raises_or_exits_is_in_its_own_log(run_command, tmp_path):
    # one job's training text does not exist
    (tmp_path / "there.txt").write_text("The cat sat on the mat.\n" * 300)
    jobs = (option for option in SWEEP if not option.startswith("data.size_mb"))
    result = run_command("train", *jobs, "data=text", "data.path=there.txt,missing.txt")
    assert result.code == 1
    log = tmp_path / "outputs" / "sweeps" / "sweep" / "1" / "train.log"
    assert "missing.txt" in log.read_text()


def test_a_sweep_on_several_devices_is_refused_before_any_work(run_command, tmp_path):
    result = run_command("train", *SWEEP, "optimizer.lr=1e-3,1e-2", "device.devices=2", "device.strategy=ddp")
    assert result.code == 2
    assert "runs on one device" in result.err
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_key_ends_the_sweep_before_the_first_job(run_command, tmp_path):
    result = run_command("train", *SWEEP, "optimizer.lrr=1e-3,1e-2")
    assert result.code == 2
    assert "did you mean optimizer.lr?" in result.err
    assert not list(tmp_path.glob("outputs/sweeps/*/*/metrics.jsonl"))


@pytest.mark.slow
def test_a_sweep_over_a_choice_keeps_its_jobs_in_one_folder_without_a_name(run_command, tmp_path):
    jobs = [o for o in SWEEP if not o.startswith(("name=", "model="))]
    result = run_command("train", *jobs, "model=debug", "schedule=cosine,constant", "data=stories")
    assert result.code == 0, result.err
    folders = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("outputs/sweeps/*/*/run.json"))
    assert folders == [f"outputs/sweeps/debug-stories/{i}/run.json" for i in (0, 1)]
    more = run_command("train", *jobs, "model=debug,nano", "model.n_kv_head=2")
    assert more.code == 0, more.err
    assert len(list(tmp_path.glob("outputs/sweeps/tinygpt-stories/*/run.json"))) == 2


@pytest.mark.slow
def test_the_name_of_a_sweep_may_contain_an_apostrophe(run_command, tmp_path):
    words = [word for word in SWEEP if not word.startswith(("name=", "train.max_steps="))]
    result = run_command("train", *words, "name=it's", "train.max_steps=1", "seed=0,1")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "outputs" / "sweeps" / "it's").glob("*/metrics.jsonl"))) == 2


@pytest.mark.slow
def test_tensorboard_gets_the_curves(run_command, tmp_path):
    result = run_command("train", *SWEEP[1:], "logger=tensorboard")
    assert result.code == 0, result.err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "outputs" / "sweep" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/bpb")] == [6]


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_is_finished_by_the_same_command(start, run_command, tmp_path):
    jobs = (*SWEEP, "optimizer.lr=1e-3,1e-2,1e-1")
    folder = tmp_path / "outputs" / "sweeps" / "sweep"
    process = start("train", *jobs).process
    while not (folder / "1" / "metrics.jsonl").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    first = (folder / "0" / "metrics.jsonl").read_bytes()
    finished = sum(
        json.loads(path.read_text())["status"] == "finished" for path in folder.glob("?/run.json")
    )  # more than one where this process was too slow to kill the second job
    # the header, and a line for each job that had ended; the kill may have come just before it was written
    assert (folder / "sweep.csv").read_text().count("\n") - 1 in (finished - 1, finished)
    result = run_command("train", *jobs)
    assert result.code == 0, result.err
    assert result.err.count("nothing to do") == finished
    assert first == (folder / "0" / "metrics.jsonl").read_bytes()
    assert len(result.out.strip().splitlines()) == 6


@pytest.mark.parametrize("swept", [(), ("optimizer.lr=1e-3",), ("seed=range(3,3)",)])
def test_a_sweep_of_nothing_is_refused(run_command, tmp_path, swept):
    result = run_command("train", *SWEEP, *swept)
    assert result.code == 2
    assert "give a key several values" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("swept", "value"), [("seed=2,1,1", "1"), ("optimizer.lr=choice(0.001,1e-3)", "0.001")])
def test_a_value_that_is_given_twice_is_refused(run_command, tmp_path, swept, value):
    result = run_command("train", *SWEEP, swept)
    assert result.code == 2
    assert f"{swept} has the value {value} twice" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "swept", ["device.threads=1,2", "train.sample_prompt=A,B", "device=cpu,auto", "train.max_time=1m,2m"]
)
def test_values_that_all_train_the_same_run_are_refused(run_command, tmp_path, swept):
    result = run_command("train", *SWEEP, swept)
    key = swept.partition("=")[0]
    assert result.code == 2
    assert f"a sweep over {key}= would train only one run" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_over_the_steps_that_also_extends_runs_is_refused(run_command, tmp_path):
    jobs = [word for word in SWEEP if not word.startswith("train.max_steps")]
    result = run_command("train", *jobs, "train.max_steps=6,9", "train.extend=true", "seed=0,1")
    assert result.code == 2
    assert "leave train.extend=true out to train one run for each value" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_jobs_that_begin_with_different_runs_have_different_folders(tmp_path):
    folders = [
        claim_folder(tmp_path, n, [f"init_from={run}", f"train.save_every={n + 1}"], None) for n, run in enumerate("ab")
    ]
    assert [folder.name for folder in folders] == ["0", "1"]
    assert claim_folder(tmp_path, 7, ["init_from=b", "train.save_every=9"], None) == folders[1]


@pytest.mark.parametrize("key", ["ckpt_path", "init_from", "data.path", "data.dir", "data.url", "data.sha256"])
def test_jobs_that_differ_only_in_their_start_or_in_the_place_of_their_text_are_two_runs(tmp_path, key):
    configs = [tiny(tmp_path, **{key.replace(".", "__"): f"{tmp_path}/{name}"}) for name in "ab"]
    folders = []
    for number, config in enumerate(configs):
        folders.append(claim_folder(tmp_path / "sweep", number, [f"{key}={number}"], config))
        run = Run(folders[number])
        run.begin(config, CharTokenizer("abc"), kind=PRETRAIN, new=True, forked_from=None)
        run.update(resolved=Resolved(512, 512, 40, threads=1), data_fingerprint="same")
    assert [folder.name for folder in folders] == ["0", "1"]
    # in other words, as in another spelling of the command
    assert claim_folder(tmp_path / "sweep", 7, ["schedule=cosine"], configs[1]) == folders[1]


def jobs_of(*overrides):
    """Return the overrides of each job as Hydra's sweeper spells them, which is not always as the user typed them."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return jobs


def test_an_extended_sweep_continues_the_jobs_of_the_shorter_one(tmp_path):
    def folders(config, *overrides):
        return [claim_folder(tmp_path, n, job, config).name for n, job in enumerate(jobs_of("seed=0,1", *overrides))]

    assert folders(tiny(tmp_path), "train.max_steps=6") == ["0", "1"]
    assert folders(tiny(tmp_path, train__extend=True), "train.max_steps=9", "train.extend=true") == ["0", "1"]
    assert folders(tiny(tmp_path), "train.max_steps=9", "train.extend=false") == ["2", "3"]


@pytest.mark.slow
def test_a_sweep_over_source_runs_trains_each_with_its_own_architecture(run_command, tmp_path):
    settings = ("model=debug", *FAST, "train.max_steps=4", "schedule.warmup_steps=2")
    for name, layers in (("a", 1), ("b", 3)):
        assert run_command("train", *settings, f"name={name}", f"model.n_layer={layers}").code == 0
    without_model = [word for word in settings if not word.startswith("model")]
    result = run_command("train", "-m", *without_model, "name=both", "init_from=a,b")
    assert result.code == 0, result.err
    recorded = [json.loads((tmp_path / f"outputs/sweeps/both/{n}/config.json").read_text()) for n in range(2)]
    assert [(each["init_from"], each["model"]["n_layer"]) for each in recorded] == [("a", 1), ("b", 3)]
    assert "\noutputs/sweeps/both/1: " in result.err
    scores = {n: Run(tmp_path / f"outputs/sweeps/both/{n}").facts().val_bpb for n in range(2)}
    best = min(scores, key=lambda n: scores[n])
    assert re.search(rf"^next: .* --run outputs/sweeps/both/{best}$", result.out, re.MULTILINE)


def test_two_sweeps_into_one_folder_at_once_are_refused(run_command, tmp_path):
    folder = tmp_path / "outputs" / "sweeps" / "sweep"
    folder.mkdir(parents=True)
    with lock(folder / "lock", lambda: pytest.fail("nobody else is there")):
        result = run_command("train", *SWEEP, "optimizer.lr=1e-3,1e-2")
    assert result.code == 2
    assert result.err.splitlines() == [
        "positron: another process runs a sweep in outputs/sweeps/sweep: wait until that sweep ends, or give another name="
    ]


@pytest.mark.slow
def test_several_jobs_at_once_share_the_machine(run_command, tmp_path):
    jobs = (*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "model.n_head=4,5,2")
    jobs = tuple(word for word in jobs if word != "model.n_head=4")  # 5 heads do not divide the width of 32
    result = run_command("train", *jobs)
    folder = tmp_path / "outputs" / "sweeps" / "sweep"
    assert result.code == 1, result.err  # of the job with 5 heads
    assert result.err.count("50% of the machine: ") == 2
    assert "\n0: step 1/6" in result.err
    assert [line.split()[0] for line in result.out.splitlines()[-4:-1]][-1] == "1"
    assert json.loads((folder / "2" / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_search_started_again_does_only_what_is_missing(run_command, tmp_path):
    jobs = (*SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "optimizer.lr=tag(log,interval(1e-4,1e-1))")
    first = run_command("train", *jobs, "hydra.sweeper.n_trials=1")
    assert first.code == 0, first.err
    more = run_command("train", *jobs, "hydra.sweeper.n_trials=2")
    assert more.code == 0, more.err
    assert more.err.count("nothing to do") == 1
    rows = list(csv.DictReader((tmp_path / "outputs/sweeps/sweep/sweep.csv").open()))
    assert len({row["optimizer.lr"] for row in rows}) == 2


def test_a_launcher_that_is_not_installed_names_its_package():
    why = "In 'train': Could not find 'hydra/sweeper/optuna'\n\nAvailable options in 'hydra/sweeper':\n\tbasic\nConfig search"
    reason = r"^hydra/sweeper=optuna needs the package hydra-optuna-sweeper: pip install hydra-optuna-sweeper$"
    with pytest.raises(UserError, match=reason), hydra_errors_as_ours():
        raise MissingConfigException(why, "hydra/sweeper/optuna")


def test_a_folder_of_choices_that_does_not_exist_is_named_with_its_option(run_command):
    refused = run_command("train", "--config-dir", "nowhere", "model=own")
    assert refused.code == 2
    assert refused.err.startswith("positron: --config-dir: there is no folder ")
    assert refused.err.endswith("nowhere: correct the path\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${foo}", "train.max_steps=: ${foo} names no key: write a full key, such as ${train.max_steps}"),
        ("${HOME}", "train.max_steps=: ${HOME} names no key: write ${oc.env:HOME} for the environment variable"),
        (
            "${rate:1}",
            "train.max_steps=: there is no function rate for ${rate:...}: give a plain value, or ${oc.env:NAME}",
        ),
        ("${oc.env:MY_STEPS}", "train.max_steps=: the environment variable MY_STEPS is not set: set it"),
    ],
)
def test_a_value_that_refers_to_nothing_names_its_key(run_command, value, said):
    for kind in ((), ("-m", "seed=0,1")):
        refused = run_command("train", *kind, "model=debug", f"train.max_steps={value}")
        assert (refused.code, refused.err.count(said)) == (2, 1), refused.err
    with pytest.raises(UserError, match=re.escape(said)):
        positron.train(model="debug", train={"max_steps": value})


@pytest.mark.slow
def test_submitit_runs_jobs_as_processes_of_their_own(run_command, tmp_path):
    jobs = (*SWEEP, "hydra/launcher=submitit_local")
    result = run_command("train", *jobs, "optimizer.lr=1e-3,1e-2")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "outputs/sweeps/sweep").glob("*/run.json"))) == 2
    for launcher in ("submitit_local", "joblib"):  # every launcher leaves alone what is done
        again = run_command("train", *jobs[:-1], f"hydra/launcher={launcher}", "optimizer.lr=1e-3,1e-2")
        assert again.code == 0, again.err
    lines = (tmp_path / "outputs/sweeps/sweep/0/train.log").read_text()
    assert lines.count("nothing to do") == 2
    crowd = run_command("train", *jobs, "name=crowd", f"optimizer.lr={','.join(f'{i}e-3' for i in range(1, 99))}")
    assert crowd.code == 2
    assert "starts all 98 jobs at once" in crowd.err


@pytest.mark.slow
def test_a_job_worse_than_most_is_pruned_and_stays_so(run_command, tmp_path):
    jobs = (
        *(o for o in SWEEP if not o.startswith(("train.max_steps", "train.val_every"))),
        "train.max_steps=12",
        "train.val_every=4",
        "sweep.prune=median",
        "sweep.startup_jobs=2",
        "optimizer.lr=1e-2,2e-2,1e-5",
    )
    result = run_command("train", *jobs)
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "outputs/sweeps/sweep/2/run.json").read_text())
    assert (facts["status"], facts["step"]) == ("pruned", 4)
    assert "pruned    after 4 steps" in result.out
    again = run_command("train", *jobs)
    assert again.err.count("nothing to do") == 3


def test_pruning_decides_as_optuna_does():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = random.Random(0)
    decisions = []
    for _ in range(60):
        startup = rng.randint(1, 4)
        study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=startup))
        curves = [{s: rng.random() for s in range(1, rng.randint(2, 6))} for _ in range(rng.randint(0, 5))]
        for curve in curves:
            trial = study.ask()
            for step, value in curve.items():
                trial.report(value, step)
            study.tell(trial, curve[max(curve)])
        own, trial = {}, study.ask()
        for step in range(1, 5):
            own[step] = rng.random()
            trial.report(own[step], step)
            decisions.append(is_hopeless(own, curves, startup))
            assert decisions[-1] == trial.should_prune()
    assert 0.1 < statistics.mean(decisions) < 0.9


@pytest.mark.slow
def test_the_parallel_jobs_of_a_killed_sweep_end_with_it(start, tmp_path):
    jobs = (*(word for word in SWEEP if not word.startswith("train.max_steps")), "train.max_steps=1000000")
    sweep = start("train", *jobs, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.lr=1e-3,1e-2")
    runs = [tmp_path / "outputs" / "sweeps" / "sweep" / number for number in "01"]
    while not all((run / "metrics.jsonl").exists() for run in runs):
        assert sweep.process.is_alive()
        time.sleep(0.1)
    sweep.process.kill()
    sweep.wait()
    end = time.monotonic() + PATIENCE
    while any(is_locked(run / "lock") for run in runs):
        assert time.monotonic() < end, "a job is still trained"
        time.sleep(0.1)


def test_parallel_jobs_divide_the_cores_that_a_job_scheduler_has_left(monkeypatch):
    """Otherwise 64 jobs would run at once in a job of 4 cores, or 4 jobs with 16 threads each."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    joblib = {"_target_": "x.JoblibLauncher", "n_jobs": -1}
    local = {"_target_": "x.LocalLauncher", "cpus_per_task": None}
    for launcher, jobs, share in ((joblib, 8, 1 / 4), (local, 2, 1 / 2)):
        config = OmegaConf.create({"hydra": {"launcher": launcher, "overrides": {"hydra": []}}})
        _share_machine(config, jobs)
        assert share_of(config.hydra.launcher) == share
