"""Training in two processes."""

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import FAST, PATIENCE, CommandProcess, Result
from traces import weights

from positron.run.metrics import read_metrics

TWO = ("device=cpu", "device.devices=2", "device.strategy=ddp")
# Adam divides each gradient by its size, so one of 1e-9 that differs by rounding between the two can change a weight by the
# whole learning rate. Whether it does depends on the kind of CPU. The step of SGD is proportional to the gradient.
PROPORTIONAL = ("precision=fp32", "optimizer=custom", "optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1")


def run(folder, *arguments):
    command = [sys.executable, "-m", "positron.train", "model=debug", *FAST, "train.log_every=1", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return result


def with_one_and_two(
    start: Callable[..., CommandProcess], folder: Path, command: str, *arguments: str
) -> tuple[Path, Path]:
    """Train the same in one process and in two, as torchrun starts them; return the two run folders."""
    result = start(command, *arguments, *PROPORTIONAL, "device=cpu", "name=one").wait()
    assert result.code == 0, result.err
    as_torchrun(start, command, *arguments, *PROPORTIONAL, *TWO, "name=two")
    return folder / "outputs" / "one", folder / "outputs" / "two"


def assert_learned_the_same(one: Path, two: Path, base: Path, metrics: Sequence[str]) -> None:
    """Compare metrics and weights, which differ by at most a thousandth of what the training changed."""
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (one, two))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in metrics:
            if a.get(key) is not None:
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), (a["step"], key)
    before, a, b = weights(base), weights(one), weights(two)
    change = max(float((a[name] - before[name]).abs().max()) for name in a)
    assert change > 0
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=1e-3 * change, msg=name)


def as_torchrun(
    start: Callable[..., CommandProcess],
    name: str,
    *arguments: str,
    nodes: int = 1,
    code: int = 0,
    meanwhile: Callable[..., None] = lambda *_: None,
    **environment: str,
) -> list[Result]:
    """Run a command in two processes on `nodes` machines, with the environment that torchrun gives to each process.

    `meanwhile` is called with both processes. Both must end with the exit code `code`. `environment`: further variables.
    """
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "test"}
    places = {
        1: [{"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"}],
        2: [
            {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"},
            {"RANK": "1", "LOCAL_RANK": "0", "GROUP_RANK": "1"},
        ],
    }
    return _together(start, name, arguments, [environment | common | place for place in places[nodes]], code, meanwhile)


def as_srun(start: Callable[..., CommandProcess], name: str, *arguments: str) -> None:
    """Run a command as two tasks on two machines, with the environment that srun gives to each task."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "localhost", "MASTER_PORT": free_port()}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}
    ranks = [{"SLURM_PROCID": rank, "SLURM_NODEID": rank} for rank in ("0", "1")]
    _together(start, name, arguments, [job | tasks | rank for rank in ranks])


def free_port() -> str:
    """Return the number of a port of this machine that no process uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def _together(
    start: Callable[..., CommandProcess],
    name: str,
    arguments: Sequence[str],
    environments: list[dict[str, str]],
    code: int = 0,
    meanwhile: Callable[..., None] = lambda *_: None,
) -> list[Result]:
    started = [start(name, *arguments, **environment) for environment in environments]
    meanwhile(*started)
    results = [process.wait() for process in started]
    assert [result.code for result in results] == [code, code], "\n".join(result.err for result in results)
    return results
