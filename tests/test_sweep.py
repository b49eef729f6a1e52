"""Sweeps: one folder per job, failures visible, the others go on, the same command again finishes the rest."""

import json

from conftest import FAST

SWEEP = ("-m", "model=debug", *FAST, "name=sweep", "train.max_steps=6", "train.val_every=6", "schedule.warmup_steps=2")


def test_a_failing_job_is_visible_and_the_others_go_on_and_again_only_the_rest_is_done(door, tmp_path):
    # n_head=5 does not divide 32: the second job cannot be built
    jobs = (*(o for o in SWEEP if not o.startswith("model.n_head")), "model.n_head=4,5,2")
    first = door("train", *jobs)
    folder = tmp_path / "outputs" / "sweeps" / "sweep"
    assert first.code == 1, first.err
    table = first.out.strip().splitlines()[-3:]
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
    before = [(folder / job / "metrics.jsonl").read_bytes() for job in ("0", "2")]
    again = door("train", *jobs)
    assert again.code == 1
    assert again.err.count("nothing to do") == 2
    assert before == [(folder / job / "metrics.jsonl").read_bytes() for job in ("0", "2")]


def test_a_job_that_raises_or_exits_is_in_its_own_log(door, tmp_path):
    # one job's training text does not exist
    (tmp_path / "there.txt").write_text("The cat sat on the mat.\n" * 300)
    result = door("train", *SWEEP, "data=text", "data.path=there.txt,missing.txt")
    assert result.code == 1
    log = tmp_path / "outputs" / "sweeps" / "sweep" / "1" / "train.log"
    assert "missing.txt" in log.read_text()


def test_a_sweep_on_several_devices_is_refused_before_any_work(door, tmp_path):
    result = door("train", *SWEEP, "optimizer.lr=1e-3,1e-2", "device.devices=2", "device.strategy=ddp")
    assert result.code == 2
    assert "one device each" in result.err
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_key_ends_the_sweep_before_the_first_job(door, tmp_path):
    result = door("train", *SWEEP, "optimizer.lrr=1e-3,1e-2")
    assert result.code == 2
    assert "did you mean optimizer.lr?" in result.err
    assert not list(tmp_path.glob("outputs/sweeps/*/*/metrics.jsonl"))


def test_a_sweep_over_a_choice_keeps_its_jobs_in_one_folder_without_a_name(door, tmp_path):
    jobs = [o for o in SWEEP if not o.startswith(("name=", "model="))]
    result = door("train", *jobs, "model=debug", "schedule=cosine,constant", "data=stories")
    assert result.code == 0, result.err
    folders = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("outputs/sweeps/*/*/run.json"))
    assert folders == [f"outputs/sweeps/debug-stories/{i}/run.json" for i in (0, 1)]
    more = door("train", *jobs, "model=debug,nano", "model.n_kv_head=2")
    assert more.code == 0, more.err
    assert len(list(tmp_path.glob("outputs/sweeps/tinygpt-stories/*/run.json"))) == 2


def test_tensorboard_gets_the_curves(door, tmp_path):
    result = door("train", *SWEEP[1:], "logger=tensorboard")
    assert result.code == 0, result.err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "outputs" / "sweep" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/bpb")] == [6]
