"""Each process of a run uses its own device, and all of them agree on the numbers that replace `auto`."""

import contextlib
import dataclasses
import datetime
import functools
import os
import weakref
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from conftest import FAST, apart, side_by_side, tiny
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from torch import distributed
from two_processes import TWO, as_torchrun

from positron.config import DeviceConfig, GPTConfig, OptimizerConfig, PrecisionConfig
from positron.model.gpt import GPT
from positron.run.facts import Resolved
from positron.run.folder import Run
from positron.run.metrics import append_row, read_metrics
from positron.system.disk import make_folder
from positron.system.errors import Diverged, Unreachable, UserError
from positron.system.ranks import _OF_PLACES, STARTER, STARTERS_PRECISION, first_rank, local_rank
from positron.train import train
from positron.training import device, loop, resolve
from positron.training.callbacks.agreement import refuse_different_plans
from positron.training.callbacks.checkpoints import WholeCheckpointIO
from positron.training.callbacks.stopping import CommonEnd
from positron.training.device import (
    Machine,
    choose_machine,
    choose_micro_batch,
    is_lost_connection,
    micro_batch_bytes,
    set_threads,
    use_device,
)
from positron.training.module import TrainingModule
from positron.training.optim.groups import build_optimizer
from positron.training.resume import hold_run
from positron.training.timing import MatmulPeak

SLURM = {"SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}
FOUR = DeviceConfig("cuda", devices=4, strategy="ddp")
FP32 = PrecisionConfig("fp32")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for key in (*_OF_PLACES, "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ({}, 0),  # the process that the user started, which starts the others
        ({"LOCAL_RANK": "2", "NODE_RANK": "0"}, 2),  # started by Lightning
        ({"RANK": "7", "LOCAL_RANK": "3", "SLURM_LOCALID": "0", "SLURM_PROCID": "1"}, 3),  # torchrun in a SLURM job
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, 1),  # srun
    ],
)
def test_each_process_uses_the_gpu_of_its_local_rank(four_gpus, monkeypatch, environment, index):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert choose_machine(FOUR, FP32).device == torch.device("cuda", index)


def test_a_single_process_uses_the_first_gpu_whatever_the_environment_says(four_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert choose_machine(DeviceConfig("cuda"), FP32).device == torch.device("cuda", 0)


def test_more_devices_than_the_machine_has_are_refused(four_gpus, monkeypatch):
    with pytest.raises(UserError, match=r"give device\.devices=4"):
        choose_machine(dataclasses.replace(FOUR, devices=5), FP32)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"give device\.devices=1"):
        choose_machine(DeviceConfig("mps", devices=2, strategy="ddp"), FP32)


def test_a_launcher_that_gives_each_process_a_gpu_of_its_own_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match=r"sees only 1 CUDA device.*--gpus-per-node= and neither --gpus-per-task="):
        choose_machine(FOUR, FP32)


def test_torchrun_numbers_the_processes_and_not_slurm(monkeypatch):
    """Its rendezvous may make the second SLURM task rank 0. If both rules had to hold, no process would write."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert first_rank(2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not first_rank(2)
    assert local_rank(2) == 0


def trainer_of_two(folder):
    """Build the trainer of a run on two devices, as the loop does, before it starts or joins the other process."""
    config = tiny(folder, device=DeviceConfig("cpu", devices=2, strategy="ddp"))
    session = SimpleNamespace(config=config, run=Run(folder), is_first_rank=first_rank(2))
    return loop._trainer(session, SimpleNamespace(machine=Machine("cpu", "fp32", ""), world_size=2), [])


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train_with_three_threads(folder: str) -> None:
    os.environ.pop("OMP_NUM_THREADS", None)
    used = []

    class Threads(L.Callback):
        def on_train_batch_start(self, *_):
            used.append(torch.get_num_threads())

    config = tiny(Path(folder), device=DeviceConfig("cpu", strategy="ddp", threads=3), train__max_steps=1)
    train(config, Path(folder) / "run", [Threads()])
    assert used == [3]
    assert Run(Path(folder) / "run").resolved().threads == 3


@pytest.mark.slow
def test_a_process_that_lightning_starts_trains_with_the_threads_that_the_run_records(tmp_path):
    """Lightning chooses another number when it starts the processes if OMP_NUM_THREADS is not set."""
    apart(train_with_three_threads, str(tmp_path))  # because torch keeps the processes connected


def test_the_processes_of_a_machine_divide_its_cores_unless_the_user_says_otherwise(monkeypatch, restored_threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)

    def threads(**settings):
        torch.set_num_threads(7)
        set_threads(DeviceConfig("cpu", strategy="ddp", **settings))
        return torch.get_num_threads()

    assert threads() == 7
    assert threads(devices=5) == 2
    assert threads(devices=5, threads=6) == 6
    assert threads(devices=2, share=0.5) == 3
    assert threads(devices=64) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads(devices=5) == 7


@pytest.mark.parametrize("left", [{}, {"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}])
def test_variables_of_torchrun_without_torchrun_are_ignored(tmp_path, monkeypatch, left):
    for key, value in left.items():
        monkeypatch.setenv(key, value)
    trainer = trainer_of_two(tmp_path)
    assert first_rank(2)
    assert (trainer.is_global_zero, trainer.world_size) == (True, 2)
    assert not trainer.strategy.cluster_environment.creates_processes_externally


@pytest.mark.parametrize(
    "environment",
    [
        {**TORCHRUN, "WORLD_SIZE": "4"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"NODE_RANK": "1"},  # this process would wait for another one with a lower number
        {**SLURM, "SLURM_NTASKS": "1"},  # it would train everything alone
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
        {**SLURM, "SLURM_NTASKS": "2"},
        {**SLURM, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
        {**SLURM, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "LOCAL_RANK": "1"},  # no process would write
    ],
)
def test_an_environment_that_does_not_fit_the_devices_is_refused_and_named(tmp_path, monkeypatch, environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=r"device\.devices=2 device\.num_nodes=1 do not fit the environment") as error:
        trainer_of_two(tmp_path)
    for key, value in environment.items():
        assert key == "SLURM_JOB_NAME" or f"{key}={value}" in str(error.value)


@pytest.mark.parametrize(
    "environment", [{**TORCHRUN, "WORLD_SIZE": "2"}, {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}]
)
def test_a_launcher_without_device_devices_is_named_in_place_of_another_training(tmp_path, monkeypatch, environment):
    run = Run(tmp_path)
    with hold_run(run, 1):
        monkeypatch.setenv("SLURM_NTASKS", "2")  # sbatch without srun starts one process
        with pytest.raises(UserError, match="another process is training"), hold_run(run, 1):
            pass
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        with (
            pytest.raises(UserError, match=r"a launcher has started 2 processes, .*give device\.devices="),
            hold_run(run, 1),
        ):
            pass


def accumulate_as_one_of_two(rank: int, folder: str) -> None:
    """Take the step of a module with a linear model, in which each rank has other micro-batches."""
    patience = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", f"{folder}/meet", patience, world_size=2, rank=rank)
    weight = torch.nn.Parameter(torch.tensor(2.0))
    of_ranks = [[torch.ones(2, 3)], [torch.full((1, 5), 2.0), torch.full((1, 1), 4.0)]]
    module = SimpleNamespace(
        trainer=SimpleNamespace(world_size=2),
        objective=SimpleNamespace(
            count=lambda part: torch.tensor(part[0].numel()), loss=lambda model, part: (model * part[0]).sum()
        ),
        model=weight,
        device=torch.device("cpu"),
        before_micro_batch=lambda: None,
        manual_backward=lambda loss: loss.backward(),
        _synchronise=lambda last: contextlib.nullcontext(),
    )
    loss = TrainingModule._accumulate(module, [(part,) for part in of_ranks[rank]])
    assert module.tokens == 12
    assert loss.item() == pytest.approx(2.0 * (6 + 10 + 4) / 12)
    distributed.all_reduce(weight.grad)
    assert weight.grad.item() / 2 == pytest.approx((6 + 10 + 4) / 12)  # DDP and FSDP average the gradients
    distributed.destroy_process_group()


def test_tokens_and_loss_of_a_step_are_those_of_all_processes_with_unequal_shares(tmp_path):
    side_by_side(accumulate_as_one_of_two, [(rank, tmp_path.as_uri()) for rank in range(2)])


def lose_the_other(rank: int, folder: str) -> None:
    patience = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", f"{folder}/meet", patience, world_size=2, rank=rank)
    distributed.barrier()
    if rank == 0:
        os._exit(0)
    with pytest.raises(RuntimeError) as error:
        distributed.all_reduce(torch.ones(1))
    assert is_lost_connection(error.value)
    assert not is_lost_connection(RuntimeError("another one"))


def test_the_end_of_another_process_is_told_from_other_errors(tmp_path):
    side_by_side(lose_the_other, [(rank, tmp_path.as_uri()) for rank in range(2)])


@pytest.mark.parametrize("is_first", [False, True])
def test_only_the_first_process_shows_the_error_of_a_lost_connection(tmp_path, monkeypatch, is_first):
    def fail(*_):
        raise distributed.DistBackendError("NCCL communicator was aborted")

    monkeypatch.setattr("positron.training.resume.first_rank", lambda _: is_first)
    monkeypatch.setattr("positron.training.loop._train", fail)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    expected = distributed.DistBackendError if is_first else Unreachable
    with pytest.raises(expected, match="NCCL" if is_first else "another process of this run ended; see its message"):
        train(tiny(tmp_path), tmp_path / "run")


def test_a_process_that_lightning_has_started_ends_with_the_one_that_started_it(tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(loop, "end_with", watched.append)
    monkeypatch.setenv(STARTER, "1")
    monkeypatch.delenv(STARTER)  # restored after the test
    trainer = trainer_of_two(tmp_path)
    loop._end_with_starter(trainer, "bf16")
    assert (watched, os.environ[STARTER]) == ([], str(os.getpid()))
    monkeypatch.setenv("LOCAL_RANK", "0")  # Lightning sets it when it starts the others
    loop._end_with_starter(trainer, "bf16")  # in the process that Lightning has made the first
    assert watched == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(STARTER, "7")
    loop._end_with_starter(trainer, "bf16")
    assert watched == [7]


def test_a_process_that_lightning_has_started_computes_in_the_precision_of_the_one_that_started_it(
    tmp_path, monkeypatch
):
    """A measurement of its own could have another result while other programs use the cores."""
    for name in (STARTER, STARTERS_PRECISION):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)  # restored after the test
    auto, two = PrecisionConfig("auto"), DeviceConfig("cpu", devices=2, strategy="ddp")
    measured = []
    monkeypatch.setattr(device, "bf16_is_fast", lambda _: measured.append(1) or False)
    loop._end_with_starter(trainer_of_two(tmp_path), "bf16")
    assert choose_machine(two, auto).precision == "fp32"  # this is the process that starts the others
    monkeypatch.setenv(STARTER, "7")
    assert choose_machine(two, auto).precision == "bf16"
    assert choose_machine(DeviceConfig("cpu"), auto).precision == "fp32"  # a training of its own
    assert len(measured) == 2


def test_under_torchrun_no_process_watches_another(tmp_path, monkeypatch):
    for key, value in {**TORCHRUN, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(key, value)
    loop._end_with_starter(trainer_of_two(tmp_path), "bf16")
    assert STARTER not in os.environ


def test_an_ended_process_kills_the_first_one_while_it_trains_but_not_while_it_writes_the_report(tmp_path, monkeypatch):
    killed = []
    ended = SimpleNamespace(poll=lambda: 143, returncode=143, pid=1, send_signal=lambda _: None)
    observer = _ChildProcessObserver(os.getpid(), [ended], sleep_period=86400)
    monkeypatch.setattr(observer, "_terminate_all", lambda: killed.append("while training"))
    observer.start()

    def diverge(*_):
        observer._run()
        assert killed == ["while training"]
        raise Diverged("the loss is not finite")

    def conclude(*_, **__):
        assert observer._run()  # the observer ends
        assert killed == ["while training"]

    monkeypatch.setattr("positron.training.loop._train", diverge)
    monkeypatch.setattr("positron.training.loop.conclude", conclude)
    with pytest.raises(Diverged):
        train(tiny(tmp_path), tmp_path / "run")


FAILING = """
import lightning


class Failing(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_rank == 0:
            raise ValueError("the reason")
"""


def test_the_last_line_of_the_other_processes_points_to_the_one_that_failed(tmp_path, start):
    (tmp_path / "failing.py").write_text(FAILING)
    settings = ("model=debug", *FAST, *TWO, "name=run", "callbacks.failing._target_=failing.Failing")
    first, second = as_torchrun(start, "train", *settings, code=1)
    assert "positron: ValueError: the reason" in first.err.splitlines()[-1]
    assert second.err.splitlines()[-1] == "positron: another process of this run ended; see its message"


STOPPING = """
import lightning


class Stop(lightning.Callback):
    def __init__(self, hook):
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            trainer.should_stop = True
"""


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", 3), ("on_train_batch_end", 2)])
def test_a_callback_that_stops_one_process_stops_all_of_them_after_the_same_step(tmp_path, start, hook, step):
    (tmp_path / "stopping.py").write_text(STOPPING)
    callback = ("callbacks.stop._target_=stopping.Stop", f"callbacks.stop.hook={hook}")
    as_torchrun(start, "train", "model=debug", *FAST, *TWO, "name=run", "train.max_steps=5", *callback)
    facts = Run(tmp_path / "outputs" / "run").facts()
    assert (facts.status, facts.step) == ("stopped", step)


def test_the_processes_of_a_run_without_callbacks_of_the_user_do_not_ask_each_other_whether_one_has_stopped():
    asked = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda value, all: asked.append(value) or any(asked))
    trainer = SimpleNamespace(strategy=strategy, should_stop=False)
    end = CommonEnd(has_callbacks=False)
    end.on_train_start(trainer)
    end.on_train_batch_end(trainer)
    assert (asked, trainer.should_stop) == ([False], False)
    asked.append(True)  # another process has callbacks, and one of them has stopped its trainer
    end.on_train_start(trainer)
    end.on_train_batch_end(trainer)
    assert trainer.should_stop


def test_the_peak_of_matrix_products_is_measured_on_the_own_device(monkeypatch):
    measured = []

    def matmul_flops(device, *_, **__):
        measured.append(device)
        return 1e12

    monkeypatch.setattr("positron.training.timing.matmul_flops", matmul_flops)
    gpt = GPTConfig(vocab_size=64, context_length=16, d_model=16, n_layer=1, n_head=2)
    peak = MatmulPeak(gpt, Machine("cuda", "fp32", "", local_rank=3), 4 * gpt.context_length, 4)
    assert measured == [torch.device("cuda", 3)]
    assert peak.flops == 4e12


def test_with_sharded_weights_no_step_is_tried_and_the_estimate_fits_half_of_the_memory(monkeypatch):
    gpt = GPTConfig(vocab_size=64, context_length=64, d_model=32, n_layer=2, n_head=4)
    machine = Machine("cuda", "bf16", "", local_rank=1, shards_weights=True)
    asked = []

    def total_memory(device):
        asked.append(device)
        return 2 * micro_batch_bytes(gpt, 9, machine)

    monkeypatch.setattr("positron.training.device.total_memory", total_memory)

    def try_step(rows):
        raise AssertionError("the whole weights need not fit this device")

    assert choose_micro_batch(gpt, machine, 32, "auto", try_step) == 8
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.parametrize(("processes", "copies"), [(1, 2), (2, 3)])
def test_the_trial_of_a_step_leaves_memory_for_moments_gradients_and_ddp_s_copy_of_them(processes, copies, monkeypatch):
    model = GPT(GPTConfig(vocab_size=64, context_length=16, d_model=16, n_layer=1, n_head=2))
    model.wte.requires_grad_(False)  # as with LoRA
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held, empty, forward = [], torch.empty, model.forward

    def recorded(*size, **options):
        tensor = empty(*size, **options)
        held.append(weakref.ref(tensor))
        return tensor

    def counted(*arguments):
        alive = [tensor for reference in held if (tensor := reference()) is not None]
        assert sum(tensor.nbytes for tensor in alive) == 4 * copies * trained
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(torch, "empty", recorded)
    loss = functools.partial(resolve.next_token_loss, is_masked=False)
    machine, window = Machine("cpu", "fp32", ""), model.config.context_length
    resolve._try_step(2, model=model, machine=machine, trial_loss=loss, world_size=processes, window=window)
    assert not any(reference() is not None for reference in held)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_slurm_does_not_make_lightning_save_or_submit_the_job_again(tmp_path, monkeypatch):
    for key, value in {**SLURM, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}.items():
        monkeypatch.setenv(key, value)
    environment = trainer_of_two(tmp_path)._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    for key, value in {**TORCHRUN, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert isinstance(trainer_of_two(tmp_path)._accelerator_connector.cluster_environment, TorchElasticEnvironment)


def test_processes_that_chose_different_numbers_are_refused_with_a_value_that_fits_all():
    first = Resolved(
        batch_tokens=512, micro_batch_size=8, max_steps=10, accelerator="cuda", precision="bf16", threads=4
    )
    refuse_different_plans([first, dataclasses.replace(first, threads=2)])  # threads change no value of a rank's share
    with pytest.raises(
        UserError, match=r"\(8 on rank 0, 4 on rank 1\): start all processes with train\.micro_batch_size=4"
    ):
        refuse_different_plans([first, dataclasses.replace(first, micro_batch_size=4)])
    with pytest.raises(UserError, match="start all processes with precision=bf16"):
        refuse_different_plans([first, first, dataclasses.replace(first, precision="fp32")])
    with pytest.raises(UserError, match="start all processes with device=cpu"):
        refuse_different_plans([first, dataclasses.replace(first, accelerator="mps")])


def test_a_process_that_reads_the_metrics_before_the_first_one_cuts_them_begins_with_the_same_rows(
    tmp_path, monkeypatch
):
    """Early stopping and the best validation would otherwise depend on which process is faster."""
    run = Run(make_folder(tmp_path / "run"))
    append_row(run.metrics_path, {"step": 1, "val/bpb": 99.0})  # from a process that was killed before it saved
    seen = []

    def open_ends(session, plan, objective, rows, signals):
        seen.extend(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr("positron.training.loop.open_ends", open_ends)
    monkeypatch.setattr("positron.training.resume.first_rank", lambda _: False)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path), run.folder)
    assert seen == []
    assert len(read_metrics(run.metrics_path)) == 1


def test_a_share_of_a_gpu_limits_its_memory(monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 80))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    use_device(Machine("cuda", "fp32", ""))
    assert limits == []
    use_device(Machine("cuda", "fp32", "", share=0.5))
    assert limits == [(0.375, torch.device("cuda", 0))]


@pytest.mark.parametrize("place", ["cuda:0", "mps"])
def test_a_checkpoint_of_a_device_that_is_missing_here_is_read(tmp_path, monkeypatch, place):
    state = {"state_dict": {"model.a": torch.ones(2)}, "bad_steps": 0, "global_step": 1, "tokenizer_hash": ""}
    state |= {"gpt_config": {}, "optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {}}
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: place)
        torch.save(state, tmp_path / "step-000001.ckpt")
    read = WholeCheckpointIO().load_checkpoint(tmp_path / "step-000001.ckpt")
    assert torch.equal(read["state_dict"]["model.a"], torch.ones(2))


def test_a_fused_optimizer_gets_the_step_counts_of_one_that_was_not_fused_on_the_device():
    def optimizer(fused, device):
        parameters = [("wte.weight", torch.nn.Parameter(torch.ones(3, 2, device=device)))]
        return build_optimizer(parameters, OptimizerConfig(lr=0.1), fused=fused)

    saved = optimizer(fused=False, device="cpu")
    saved.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    saved.step()
    loaded = optimizer(fused=True, device="meta")  # a device that is not the CPU
    loaded.load_state_dict(saved.state_dict())
    (state,) = loaded.state.values()
    assert state["step"].device.type == "meta"
