"""What wandb gets, read back from its own files, and what its own `wandb sync` makes of them on a server.

The fast tests log without a training. Where wandb has to fail, a stand-in takes the place of `wandb.init`.
"""

import dataclasses
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FAST, ONE_PIXEL, PATIENCE, tiny
from traces import same
from wandb_server import Logged, WandbServer, logged

from positron.config import GPTConfig, LoggerConfig, TensorboardConfig, WandbConfig
from positron.model.gpt import GPT
from positron.model.probes import attention_probabilities
from positron.run.metrics import append_row, read_metrics
from positron.run.paths import RunPaths
from positron.run.samples import Sample, append_sample, read_samples
from positron.system.errors import UserError
from positron.train import train
from positron.training.trackers import wandb as tracker
from positron.training.trackers.open import open_trackers

WITH_WANDB = LoggerConfig(wandb=WandbConfig())


def outside(folder: Path) -> dict[str, str]:
    """What wandb keeps outside of runs, in the test's folder. HOME stays: in a new one matplotlib looks for all fonts."""
    return {
        "NETRC": str(folder / "netrc"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
    }


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """wandb in this process writes below the test's folder, and its service ends with the test."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    no_list = {"WANDB_X_SAVE_REQUIREMENTS": "false"}  # of all packages, which takes a while to make
    for name, value in {"WANDB_MODE": "offline", **no_list, **outside(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that what a tracker sets is undone
    monkeypatch.delenv("WANDB_DATA_DIR")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def server():
    server = WandbServer()
    yield server
    server.close()


def short(folder: Path, **changes):
    return tiny(folder, train__max_steps=12, train__val_every=4, train__save_every=4, train__sample_every=4, **changes)


def folders(run: Path) -> list[Logged]:
    return [logged(path) for path in sorted(run.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)]


def wait_for_the_next_second(run: Path) -> None:
    """Wait for the next second, because wandb names its folders by the second of their start."""
    while list(run.glob(time.strftime("wandb/*run-%Y%m%d_%H%M%S-*"))):
        time.sleep(0.02)


def sync(server: WandbServer, *paths: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", *map(str, paths)]
    environment = {**os.environ, **server.environment, "WANDB_DIR": os.environ["WANDB_CACHE_DIR"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_is_one_run_in_wandb_with_each_step_once(tmp_path, server):
    config, run = short(tmp_path, logger=WITH_WANDB, model__dropout=0.1), tmp_path / "run"
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=10)), run)
    (run / "checkpoints" / "step-000010.ckpt").unlink()  # as if it had been killed after step 10, saved at step 8
    wait_for_the_next_second(run)
    train(config, run)
    first, second = folders(run)
    assert first.id == second.id == (run / "wandb_id").read_text()
    assert (first.name, first.group, first.exit_code, second.exit_code) == ("run", "", 0, 0)
    assert [row["_step"] for row in first.history] == list(range(1, 11))
    assert [row["_step"] for row in second.history] == list(range(1, 13))

    rows = read_metrics(run / "metrics.jsonl")
    for mine, row in zip(second.history, rows, strict=True):
        assert {key: mine[key] for key in row} == row
    names = {"train/loss", "train/lr", "train/grad_norm", "val/bpb", "speed/tokens_per_s", "speed/mfu"}
    assert {*names, "memory/peak_gb"} <= set(rows[-1])
    assert second.config["optimizer"]["lr"] == 3e-3
    assert second.config["resolved"]["batch_tokens"] == 512

    samples = read_samples(RunPaths(run))
    assert [sample.step for sample in samples] == [4, 8, 12]
    assert second.table() == {"columns": ["step", "loss", "bpb", "text"], "data": [list(one) for one in samples]}
    pictures = {row["_step"]: row["attention.path"] for row in second.history if "attention.path" in row}
    assert list(pictures) == [4, 8, 12]
    for step, path in pictures.items():
        picture = (second.folder / "files" / path).read_bytes()
        assert picture == (run / "attention" / f"step-{step:06d}.png").read_bytes()
    assert list((run / "wandb" / "artifacts" / "staging").iterdir()), "a run is a folder: its tables are in it"

    sync(server, first.folder)  # as if it had been uploaded before it went on
    assert server.steps(first.id) == list(range(1, 11))
    sync(server, run / "wandb")
    assert server.steps(first.id) == list(range(1, 13))
    assert list(server.exit_codes) == [first.id]
    assert [row["train/loss"] for _, row in sorted(server.history[first.id].items())] == [r["train/loss"] for r in rows]


@pytest.mark.slow
def test_training_with_dashboards_is_bit_identical_to_training_without(tmp_path):
    both = LoggerConfig(wandb=WandbConfig(), tensorboard=TensorboardConfig())
    train(short(tmp_path, model__dropout=0.1, logger=both), tmp_path / "watched")
    train(short(tmp_path, model__dropout=0.1), tmp_path / "alone")
    assert same(tmp_path / "watched", tmp_path / "alone")
    assert (tmp_path / "watched" / "samples.md").read_text() == (tmp_path / "alone" / "samples.md").read_text()
    assert not (tmp_path / "alone" / "attention").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("attention")] == [4, 8, 12]
    assert [event.step for event in events.Scalars("memory/peak_gb")] == list(range(1, 13))

    # wandb asked for afterwards gets the run from its beginning
    train(short(tmp_path, model__dropout=0.1, logger=WITH_WANDB), tmp_path / "alone")
    (late,) = folders(tmp_path / "alone")
    assert [row["_step"] for row in late.history] == list(range(1, 13))
    assert len(late.table()["data"]) == 3


def processes_with(word: str) -> list[str]:
    """Command lines of the processes of this machine that hold it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in lines if word in line]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_runs_of_one_group_and_the_failed_one_is_marked(start, tmp_path):
    arguments = ("model=debug", *FAST, "name=rates", "train.max_steps=6", "train.log_every=1", "train.val_every=5")
    swept = ("optimizer.lr=1e-3,1e30,1e-2", "schedule.warmup_steps=0", "logger=wandb")
    training = start("train", "-m", *arguments, *swept, WANDB_API_KEY="", **outside(tmp_path))
    result = training.wait()
    assert result.code == 1, result.err
    assert "the training diverged" in result.err  # after a validation that gave NaN
    sweep = tmp_path / "outputs" / "sweeps" / "rates"
    jobs = [logged(folder) for job in "012" for folder in (sweep / job / "wandb").glob("offline-run-*")]
    assert [job.name for job in jobs] == ["rates/0", "rates/1", "rates/2"]
    assert {job.group for job in jobs} == {"rates"}
    assert len({job.id for job in jobs}) == 3
    assert [job.config["optimizer"]["lr"] for job in jobs] == [1e-3, 1e30, 1e-2]
    assert [job.exit_code for job in jobs] == [0, 1, 0]
    for number in (0, 2):
        assert [row["_step"] for row in jobs[number].history] == [1, 2, 3, 4, 5, 6]
        assert (
            jobs[number].history[-1]["train/loss"]
            == read_metrics(sweep / str(number) / "metrics.jsonl")[-1]["train/loss"]
        )
    for job in jobs:
        assert f"wandb sync {job.folder}" in result.err
    if Path("/proc").exists():
        until = time.monotonic() + PATIENCE
        while processes_with(f"--pid {training.process.pid}") and time.monotonic() < until:
            time.sleep(0.05)
        assert not processes_with(f"--pid {training.process.pid}"), "wandb's service outlived the program"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "rope", "n_kv_head": 2, "qk_norm": True},
        {"position": "sinusoidal", "smear": True, "norm": "rmsnorm", "bias": True, "dropout": 0.5},
    ],
    ids=["plain", "rope, grouped, normalised", "smear, dropout"],
)
def test_the_probabilities_are_those_that_the_blocks_attend_with(options):
    """In float64: P v through the output matrix is what the block's own attention returned."""
    torch.set_default_dtype(torch.float64)
    try:
        model = GPT(GPTConfig(vocab_size=50, context_length=80, d_model=32, n_layer=3, n_head=4, **options), seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        parameter.data *= 3  # heads that look somewhere
    model.train()
    idx = torch.randint(50, (2, 70), generator=torch.Generator().manual_seed(0))
    seen = []
    hooks = [
        b.attn.register_forward_hook(lambda attn, given, out: seen.append((attn, given[0], out))) for b in model.blocks
    ]
    state = torch.get_rng_state()
    layers = attention_probabilities(model, idx)
    for hook in hooks:
        hook.remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    assert len(layers) == len(seen) == 3
    for probabilities, (attn, x, out) in zip(layers, seen, strict=True):
        assert probabilities.shape == (2, 4, 70, 70)
        v = attn.v(x).view(2, 70, attn.n_kv_head, 8).transpose(1, 2).repeat_interleave(4 // attn.n_kv_head, dim=1)
        mine = attn.out((probabilities @ v).transpose(1, 2).reshape(2, 70, 32))
        torch.testing.assert_close(mine, out, rtol=0, atol=1e-12)
        assert probabilities.triu(1).abs().max() == 0


@pytest.mark.parametrize(
    ("there", "text"),
    [
        (True, "machine api.forge.coreweave.com\n  login user\n  password 123\n"),
        (True, "machine api.wandb.ai login user password 123"),
        (True, "machine wandb.example.org:8080 login user password 123"),
        (False, "machine huggingface.co login wandb password 123"),
        (False, "machine"),
    ],
)
def test_a_key_is_found_where_wandb_login_leaves_it(monkeypatch, tmp_path, there, text):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not tracker.has_wandb_key()
    (tmp_path / "netrc").write_text(text)
    assert tracker.has_wandb_key() == there


@pytest.fixture
def online(monkeypatch, server):
    for name, value in {**server.environment, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.slow
def test_a_killed_run_that_continues_online_sends_each_step_once(tmp_path, online):
    config, run = short(tmp_path, logger=WITH_WANDB), tmp_path / "run"
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=10)), run)
    (run / "checkpoints" / "step-000010.ckpt").unlink()
    run_id = (run / "wandb_id").read_text()
    assert online.steps(run_id) == list(range(1, 11))
    del online.history[run_id][9]  # the last row did not arrive any more
    wait_for_the_next_second(run)
    train(config, run)
    assert online.steps(run_id) == list(range(1, 13))
    losses = [row["train/loss"] for _, row in sorted(online.history[run_id].items())]
    assert losses == [row["train/loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert online.exit_codes == {run_id: 0}


@pytest.mark.slow
def test_a_server_that_falls_silent_holds_a_run_up_for_a_bounded_time(tmp_path, online, monkeypatch):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 2.0)
    online.silent.set()
    facts = train(short(tmp_path, logger=WITH_WANDB), tmp_path / "run")
    assert facts.status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the upload is incomplete after 2 s" in log
    (folder,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"wandb sync {folder}" in log
    assert [row["_step"] for row in logged(folder).history] == list(range(1, 13))


@pytest.mark.slow
def test_without_an_answer_it_is_logged_offline(tmp_path, online, monkeypatch):
    monkeypatch.setattr(tracker, "INIT_SECONDS", 2.0)
    online.close()
    facts = train(short(tmp_path, logger=WITH_WANDB), tmp_path / "run")
    assert facts.status == "finished"
    (part,) = folders(tmp_path / "run")
    assert [row["_step"] for row in part.history] == list(range(1, 13))


EARLIER = [
    {"step": 1, "train/loss": 4.5, "val/bpb": 3.25},
    {"step": 2, "train/loss": 3.5, "train/grad_norm": None},  # it was infinite
    {"step": 4, "train/loss": 1.5},
]
SAMPLES = [Sample(3, 2.5, 3.0, "Once"), Sample(5, 0.5, None, "Once upon")]  # one between two rows, and one to come


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The folder of a run that recorded three rows, and a sample with its picture, and has the id `kept` in wandb."""
    run = RunPaths(tmp_path / "run")
    run.attention_picture(3).parent.mkdir(parents=True)
    for row in EARLIER:
        append_row(run.metrics_path, row)
    append_sample(run, SAMPLES[0])
    run.attention_picture(3).write_bytes(ONE_PIXEL)
    run.wandb_id_path.write_text("kept")
    # not needed, and slow: pandas, to see that a list is not one of its tables, and the code that starts jobs
    monkeypatch.setattr("wandb.util.pd_available", False)
    monkeypatch.setattr("wandb.Run._detect_and_apply_job_inputs", lambda _: None, raising=False)
    return run.folder


def continue_to_step_5(folder: Path, config: WandbConfig, exit_code: int) -> None:
    (mine,) = open_trackers(LoggerConfig(wandb=config), folder, {"seed": 7}, 5)
    mine.log({"step": 5, "train/loss": 0.5}, 5)
    mine.sample(SAMPLES[1])
    mine.finish(exit_code)


class StandIn:
    """Stands in for `wandb.init` and for the run that it returns; `faults`: name of a call -> the error that it raises."""

    starting_step = 0  # the first step that wandb accepts

    def __init__(self, faults: dict[str, Exception]) -> None:
        import wandb

        self.real, self.faults = inspect.signature(wandb.init), faults
        self.starts: list[dict] = []
        self.calls: list[str] = []

    def init(self, **options):
        self.real.bind(**options)
        self.starts.append(options)
        self._call(f"init_{options['mode']}")
        self.offline = options["mode"] == "offline"
        self.dir = f"{options['dir']}/wandb/run-1/files"
        return self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.faults:
            raise self.faults[name]

    def define_metric(self, *_, **__):
        self._call("define_metric")

    def log(self, row, step):
        self._call(f"log {step}")

    def finish(self, exit_code):
        self._call("finish")

    def teardown(self):
        self._call("teardown")


@pytest.fixture
def stand_in(monkeypatch):
    def stand_in(faults: dict[str, Exception] | None = None) -> StandIn:
        made = StandIn(faults or {})
        monkeypatch.setattr("wandb.init", made.init)
        monkeypatch.setattr("wandb.teardown", made.teardown)
        return made

    return stand_in


STEPS = ["log 1", "log 2", "log 3", "log 4"]  # of a run that begins with what `begun` recorded


def test_a_step_that_wandb_does_not_accept_again_is_not_offered(stand_in, begun, monkeypatch):
    made = stand_in()
    monkeypatch.setattr(made, "starting_step", 4)
    continue_to_step_5(begun, WandbConfig(), exit_code=0)
    assert made.calls[2:] == ["log 4", "log 5", "log 5", "finish"]


@pytest.mark.parametrize(
    ("environment", "mode", "resume"),
    [
        ({}, "offline", None),
        ({"WANDB_API_KEY": "0123456789" * 4}, "online", "allow"),
        ({"WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "offline"}, "offline", None),
        ({"WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "disabled"}, "disabled", "allow"),
        ({"WANDB_MODE": "online"}, "online", "allow"),
    ],
    ids=["no key", "a key", "offline with a key", "disabled", "online without a key"],
)
def test_the_mode_is_that_of_the_user_or_follows_from_the_key(
    environment, mode, resume, monkeypatch, stand_in, tmp_path
):
    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = stand_in()
    config = WandbConfig(project="p", entity="e", group="g", name="n", tags=("t",))
    ids = set()
    for _ in range(2):
        tracker.Wandb(config, tmp_path, {"seed": 7})
        given = made.starts.pop()
        assert (given["mode"], given["resume"]) == (mode, resume)
        assert [given[name] for name in ("project", "entity", "group", "name", "tags")] == ["p", "e", "g", "n", ["t"]]
        assert (given["dir"], given["config"]) == (str(tmp_path), {"seed": 7})
        assert given["settings"].init_timeout == tracker.INIT_SECONDS
        assert given["settings"].finish_timeout == tracker.FINISH_SECONDS
        ids.add(given["id"])
    assert ids == {(tmp_path / "wandb_id").read_text()}, "a run has one id, and keeps it"


def test_a_server_that_refuses_a_run_leaves_it_offline_with_the_command_that_uploads_it(
    stand_in, begun, monkeypatch, caplog
):
    from wandb.errors import CommError

    monkeypatch.setenv("WANDB_MODE", "online")
    caplog.set_level("INFO")
    made = stand_in({"init_online": CommError("project p\n is full")})
    (mine,) = open_trackers(WITH_WANDB, begun, {}, 5)
    assert made.calls == ["init_online", "teardown", "init_offline", "define_metric", *STEPS]
    first, second = made.starts
    assert (first["id"], first["resume"], second["id"], second["resume"]) == ("kept", "allow", "kept", None)
    assert "wandb cannot be used online, so the run is logged offline: project p is full" in caplog.messages
    assert caplog.messages[-1].endswith(f"upload it later with wandb sync {begun / 'wandb' / 'run-1'}")
    mine.log({"step": 5}, 5)
    assert made.calls[-1] == "log 5"


@pytest.mark.parametrize("fails_at", ["init_offline", "define_metric", "log 2", "log 5"])
def test_any_other_failure_of_wandb_disables_it_with_one_warning(fails_at, stand_in, begun, caplog):
    made = stand_in({fails_at: RuntimeError("no\nluck")})
    continue_to_step_5(begun, WandbConfig(), exit_code=0)
    mine = [record for record in caplog.records if record.name.startswith("positron.")]
    warnings = [record.getMessage() for record in mine if record.levelname == "WARNING"]
    assert warnings == ["wandb failed and is disabled for this run: RuntimeError: no luck"]
    assert made.calls[-1] == fails_at, "a disabled tracker is called no more"


def test_an_upload_that_takes_too_long_ends_with_the_command_that_completes_it(stand_in, begun, caplog):
    caplog.set_level("INFO")
    stand_in({"finish": TimeoutError()})
    continue_to_step_5(begun, WandbConfig(), exit_code=0)
    command = f"wandb sync {begun / 'wandb' / 'run-1'}"
    assert caplog.messages[-1] == f"wandb: the upload is incomplete after 30 s; complete it with {command}"
    assert not any("disabled" in message for message in caplog.messages)


@pytest.mark.parametrize("content", ["", "../../other", "two words", "x" * 129])
def test_a_file_without_the_id_of_a_run_is_named_before_wandb_starts(content, stand_in, begun):
    made = stand_in()
    (begun / "wandb_id").write_text(content)
    with pytest.raises(UserError, match=r"wandb_id is damaged: .*; delete it to begin a new wandb run$"):
        open_trackers(WITH_WANDB, begun, {}, 5)
    assert made.calls == []


def test_a_link_to_another_folder_is_not_followed(stand_in, begun, tmp_path):
    made = stand_in()
    (tmp_path / "elsewhere").mkdir()
    (begun / "wandb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        open_trackers(WITH_WANDB, begun, {}, 5)
    assert made.calls == []


@pytest.mark.parametrize("chosen", [None, "/somewhere/else"])
def test_tables_are_staged_in_the_run_unless_the_user_names_a_folder(chosen, stand_in, begun, monkeypatch):
    monkeypatch.setattr(tracker, "_DATA_DIR", chosen)
    stand_in()
    tracker.Wandb(WandbConfig(), begun, {})
    assert os.environ["WANDB_DATA_DIR"] == (chosen or str(begun / "wandb"))


def test_the_settings_of_a_run_contain_no_path_of_the_home_folder(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("positron.training.loop.open_trackers", lambda *arguments: given.append(arguments[2]) or [])
    monkeypatch.setenv("HOME", str(tmp_path))
    train(tiny(tmp_path, train__max_steps=1), tmp_path / "run")
    assert given[0]["data"]["dir"] == "~/data"
    assert str(tmp_path) not in str(given)


def test_a_run_that_is_refused_for_another_tracker_does_not_begin_in_wandb(stand_in, begun, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if tensorboard were not installed
    made = stand_in()
    with pytest.raises(UserError, match=r"pip install 'positron\[tensorboard\]'"):
        open_trackers(LoggerConfig(wandb=WandbConfig(), tensorboard=TensorboardConfig()), begun, {}, 5)
    assert made.calls == []


def test_a_run_that_continues_offline_is_logged_from_its_beginning(begun):
    continue_to_step_5(begun, WandbConfig(group="rates"), exit_code=1)
    (mine,) = folders(begun)
    assert (mine.id, mine.name, mine.group, mine.exit_code) == ("kept", "run", "rates", 1)
    assert mine.config["seed"] == 7
    names = {"step", "train/loss", "train/grad_norm", "val/bpb"}
    assert [{name: row[name] for name in names & row.keys()} for row in mine.history] == [
        {"step": 1, "train/loss": 4.5, "val/bpb": 3.25},
        {"step": 2, "train/loss": 3.5},
        {"step": 3},
        {"step": 4, "train/loss": 1.5},
        {"step": 5, "train/loss": 0.5},
    ]
    assert mine.table() == {"columns": ["step", "loss", "bpb", "text"], "data": [list(sample) for sample in SAMPLES]}
    pictures = {row["_step"]: row["attention.path"] for row in mine.history if "attention.path" in row}
    assert list(pictures) == [3]
    assert (mine.folder / "files" / pictures[3]).read_bytes() == ONE_PIXEL


def test_a_run_that_continues_online_sends_only_the_steps_that_wandb_does_not_have(begun, server, monkeypatch):
    for name, value in server.environment.items():  # with a key, and without WANDB_MODE, the mode is online
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")
    sent = [{"_step": step, "step": step, "train/loss": "sent before"} for step in (1, 2)]
    server.runs["kept"] = {"config": "{}"}
    server.history["kept"] = dict(enumerate(sent))
    continue_to_step_5(begun, WandbConfig(tags=("long", "small")), exit_code=0)
    assert server.steps("kept") == [1, 2, 3, 4, 5]
    losses = [row.get("train/loss") for _, row in sorted(server.history["kept"].items())]
    assert losses == ["sent before", "sent before", None, 1.5, 0.5]
    assert server.exit_codes == {"kept": 0}
    assert server.runs["kept"]["tags"] == ["long", "small"]
