"""A model that no memory can hold is refused with its size, before anything is made for it."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, tiny

from positron.config import DeviceConfig
from positron.model import memory
from positron.model.memory import TRAINING_COPIES, check_memory, machine_memory
from positron.run.folder import Run
from positron.run.load import load_model
from positron.system.errors import UserError
from positron.train import train

HUGE = {
    "width": {"d_model": 1_000_000, "n_head": 1},
    "layers": {"n_layer": 10_000, "d_model": 32_768},
    "feed-forward": {"d_ff": 60_000_000, "d_model": 65_536},
}


@pytest.mark.parametrize("what", HUGE)
def test_a_model_that_cannot_fit_is_refused_with_sizes_and_leaves_no_folder(tmp_path, what):
    config = tiny(tmp_path)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **HUGE[what]))
    with pytest.raises(
        UserError, match=r"parameters needs .* [TP]B of memory, more than the [\d.]+ [GT]B of this machine: reduce"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


def test_the_command_names_the_size(tmp_path, run_command):
    result = run_command("train", "model=debug", *FAST, "model.d_model=1000000", "model.n_head=1")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("positron: a model of 24 T parameters needs 384 TB of memory")


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    folder = tmp_path_factory.mktemp("received")
    train(tiny(folder, train__max_steps=1), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("changes", HUGE.values())
def test_a_run_from_somebody_else_with_an_absurd_size_is_refused(tmp_path, received, changes):
    run = Run(shutil.copytree(received, tmp_path / "run"))
    saved = json.loads((run.folder / "config.json").read_text())
    saved["model"] |= changes
    (run.folder / "config.json").write_text(json.dumps(saved))
    path = run.checkpoint_folder / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["gpt_config"] |= changes
    torch.save(checkpoint, path)
    with pytest.raises(
        UserError, match=r"of memory, more than the .*: use a smaller model, or a machine with more memory"
    ):
        load_model(run)


def test_training_needs_four_numbers_for_each_parameter_and_use_one(monkeypatch):
    gpt = tiny(Path()).model.with_vocab(64)
    monkeypatch.setattr(memory, "machine_memory", lambda: gpt.n_params() * 8)
    monkeypatch.setattr(memory, "LAYER_BYTES", 0)
    check_memory(gpt, copies=1)
    with pytest.raises(UserError, match="k parameters needs"):
        check_memory(gpt, copies=TRAINING_COPIES)
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    check_memory(gpt, copies=TRAINING_COPIES)


@pytest.mark.parametrize(
    ("strategy", "nodes", "copies", "held"),
    [("ddp", 1, 4, 5), ("ddp", 2, 4, 5), ("ddp", 1, 1, 1), ("fsdp", 1, 4, 2), ("fsdp", 2, 4, 1), ("fsdp", 2, 1, 0.25)],
)
def test_processes_with_whole_weights_need_the_memory_of_each_and_sharded_ones_their_part(
    monkeypatch, strategy, nodes, copies, held
):
    """With DDP, each process also holds the gradients a second time, unless most weights are frozen (LoRA)."""
    gpt = tiny(Path()).model.with_vocab(64)
    device = DeviceConfig("cuda", devices=2, num_nodes=nodes, strategy=strategy)
    size = 4 * gpt.n_params()
    monkeypatch.setattr(memory, "LAYER_BYTES", 0)
    monkeypatch.setattr(memory, "_table_bytes", lambda _: 0)
    gpus = [10 * size, round(held * size)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(total_memory=gpus[gpu]))
    for accelerator, needed in (("cpu", 2 * max(1, held)), ("cuda", 2)):  # each process creates whole weights
        monkeypatch.setattr(memory, "machine_memory", lambda needed=needed: round(needed * size))
        check_memory(gpt, copies=copies, accelerator=accelerator, device=device)
        monkeypatch.setattr(memory, "machine_memory", lambda needed=needed: round(needed * size) - 8)
        with pytest.raises(UserError, match="of this machine, which 2 processes share"):
            check_memory(gpt, copies=copies, accelerator=accelerator, device=device)
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    gpus[1] -= 8
    with pytest.raises(UserError, match="of a GPU of this machine"):
        check_memory(gpt, copies=copies, accelerator="cuda", device=device)


def test_this_machine_has_memory_for_small_models():
    total = machine_memory()
    assert total is None or 100e6 < total < 1e15
    check_memory(tiny(Path()).model.with_vocab(64), copies=TRAINING_COPIES)
