"""Two processes train what one trains, and runs move between them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import FAST, PATIENCE
from traces import assert_same_trace
from two_processes import TWO, free_port, run

import positron
from positron.system.errors import UserError


@pytest.mark.slow
def test_two_processes_have_the_trace_of_one_also_when_the_number_changes_midway(run_command, tmp_path):
    common = ("train.max_steps=12", "train.val_every=6", "train.micro_batch_size=3", "train.save_every=6")

    def alone(*arguments):
        result = run_command("train", "model=debug", *FAST, "train.log_every=1", *arguments, "device=cpu", *common)
        assert result.code == 0, result.err

    alone("name=one")
    run(tmp_path, "name=two", *TWO, "train.stop_at=6", *common)
    alone("name=two")
    alone("name=back", "train.stop_at=6")
    run(tmp_path, "name=back", *TWO, *common)
    for name in ("two", "back"):
        assert_same_trace(tmp_path / "outputs" / name, tmp_path / "outputs" / "one")


def with_node_ranks(port, rank):
    """Return the command and the environment of a machine whose processes Lightning starts."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": rank}
    return [sys.executable, "-m", "positron.train"], environment


def with_torchrun(port, rank):
    """Return the command and the environment of a machine whose processes torchrun starts."""
    where = (
        "--nnodes=2",
        "--nproc-per-node=1",
        f"--node-rank={rank}",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    )
    return [sys.executable, "-m", "torch.distributed.run", *where, "-m", "positron.train"], {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "launch"),
    [("ddp", with_node_ranks), ("ddp", with_torchrun), ("fsdp", with_torchrun)],
    ids=["ddp by node ranks", "ddp by torchrun", "fsdp by torchrun"],
)
def test_two_machines_have_the_trace_of_one(run_command, tmp_path, strategy, launch):
    """Here two commands on one machine, which know of each other by an address and their number alone."""
    common = ("train.max_steps=6", "train.val_every=6", "train.micro_batch_size=3", "train.log_every=1")
    result = run_command("train", "model=debug", *FAST, "device=cpu", "name=one", *common)
    assert result.code == 0, result.err
    nodes = ("device=cpu", "device.num_nodes=2", f"device.strategy={strategy}", "name=two", *common)
    port = free_port()
    started = []
    for rank in ("0", "1"):
        command, environment = launch(port, rank)
        words, environment = [*command, "model=debug", *FAST, *nodes], {**os.environ, **environment}
        started.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert_same_trace(tmp_path / "outputs" / "two", tmp_path / "outputs" / "one")


MACHINES = ("model=debug", *FAST, "device=cpu", "device.num_nodes=2", "device.strategy=ddp")


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({}, "MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        ({"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "0"}, "MASTER_PORT"),
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, "NODE_RANK"),
        ({"MASTER_ADDR": "10.0.0.1", "TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, "MASTER_PORT"),
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "RANK": "0"}, "NODE_RANK"),
    ],
)
def test_machines_without_an_address_are_refused_instead_of_waiting_for_each_other(monkeypatch, environment, missing):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=f"device.num_nodes=2 needs {missing} in the environment: start the command with"
    ):
        positron.train("debug", device="cpu", **{"device.num_nodes": 2, "device.strategy": "ddp"})


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        (MACHINES, {"NODE_RANK": "0"}),
        pytest.param(("model=debug", *FAST, *TWO), {"LOCAL_RANK": "0"}, marks=pytest.mark.slow),
    ],
    ids=["machines", "left over"],
)
def test_a_signal_ends_a_command_that_waits_for_other_processes(tmp_path, settings, environment):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **environment}
    command = [sys.executable, "-m", "positron.train", *settings]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if "waiting for 1 other process" in line)
    assert all(f"{name}={value}" in line for name, value in environment.items())
    time.sleep(1)  # torch listens at the port, and does not return to Python
    process.terminate()
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == -signal.SIGTERM, line + said


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(run_command):
    result = run_command("train", "model=debug", *FAST, *TWO, "train.batch_tokens=96")
    assert result.code == 2
    assert "train.batch_tokens=128" in result.err
