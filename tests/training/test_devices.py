"""Two processes train what one trains, and runs move between them."""

import os
import subprocess
import sys

import pytest
from conftest import FAST, PATIENCE
from traces import assert_same_trace
from two_processes import TWO, free_port, run


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


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(run_command):
    result = run_command("train", "model=debug", *FAST, *TWO, "train.batch_tokens=96")
    assert result.code == 2
    assert "train.batch_tokens=128" in result.err
