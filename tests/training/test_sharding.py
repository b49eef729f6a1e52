"""`device.strategy=fsdp` divides weights, gradients and moments, and trains what one process trains."""

import datetime
import functools
import json
from types import SimpleNamespace

import pytest
import torch
import torch.testing._internal.distributed.fake_pg
from conftest import FAST, CommandProcess, apart, side_by_side
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from traces import assert_same_trace, weights
from two_processes import as_srun, as_torchrun

from positron.config import GPTConfig, OptimizerConfig
from positron.model.gpt import GPT
from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.folder import Run
from positron.run.kept_weights import kept_weights, read_kept_weights
from positron.run.load import bare_names
from positron.run.paths import RunPaths
from positron.run.samples import read_samples
from positron.system.errors import UserError
from positron.training.optim.groups import build_optimizer, clip_gradients
from positron.training.sharded_tensors import own_part, whole_state
from positron.training.sharding import FullyShardedStrategy, shard, whole_model

SETTINGS = (
    *("model=debug", *FAST, "device=cpu", "train.micro_batch_size=3", "train.max_steps=6", "train.save_every=3"),
    *("train.val_every=3", "train.sample_every=3", "train.keep_history=3", "train.log_every=1", "train.grad_clip=0.3"),
    *("schedule.warmup_steps=0", "optimizer.lr=3e-3", "schedule.average_share=0.3"),
)
SHARDED = ("device.devices=2", "device.strategy=fsdp")
# fewer rows than processes, rows that 8 does not divide, tied and untied heads, biases
SHAPES = [
    GPTConfig(vocab_size=65, context_length=16, d_model=36, n_layer=2, n_head=3, norm="layernorm", bias=True),
    GPTConfig(vocab_size=50, context_length=16, d_model=4, n_layer=1, n_head=1, activation="swiglu", position="rope"),
    GPTConfig(vocab_size=64, context_length=16, d_model=32, n_layer=2, n_head=4, n_kv_head=2, tie_embeddings=False),
]


def moments(folder):
    (state,) = load_checkpoint(checkpoints(folder / "checkpoints")[-1], to_continue=True)["optimizer_states"]
    return [value for values in state["state"].values() for value in values.values()]


def without_mean(folder):
    return load_checkpoint(checkpoints(folder / "checkpoints")[-1])["weights_without_mean"]


def assert_close(other, one, optimizer):
    """Compare metrics, weights and moments, whose rounding differs, because two processes add in another order.

    Muon rounds the gradients to bf16, which can turn a difference in the seventh digit into one in the third.
    """
    before = read_kept_weights(kept_weights(Run(one).history_folder)[0])
    change = max(float((weights(one)[f"model.{name}"] - value).abs().max()) for name, value in before.items())
    share = {"adamw": 0.002, "muon": 0.05}[optimizer]
    assert_same_trace(other, one)
    torch.testing.assert_close(weights(other), weights(one), rtol=0, atol=share * change)
    torch.testing.assert_close(without_mean(other), without_mean(one), rtol=0, atol=share * change)
    torch.testing.assert_close(moments(other), moments(one), rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that returns a run that one process trained with an optimizer."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def trained(optimizer):
        arguments = (*SETTINGS, f"optimizer={optimizer}", f"name={optimizer}")
        result = CommandProcess("train", arguments, folder, "", {}).wait()
        assert result.code == 0, result.err
        return folder / "outputs" / optimizer

    return trained


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_two_processes_train_what_one_trains(start, alone, tmp_path, optimizer):
    as_torchrun(start, "train", *SETTINGS, *SHARDED, f"optimizer={optimizer}", "name=two")
    two = tmp_path / "outputs" / "two"
    assert_close(two, alone(optimizer), optimizer)
    assert [sample.step for sample in read_samples(RunPaths(two))] == [3, 6]
    ours, theirs = (kept_weights(Run(folder).history_folder) for folder in (two, alone(optimizer)))
    assert [kept.step for kept in ours] == [kept.step for kept in theirs] != []


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("first", "second"), [(True, False), pytest.param(False, True, marks=pytest.mark.slow)], ids=["fewer", "more"]
)
def test_a_run_continues_on_another_number_of_processes(start, run_command, alone, tmp_path, first, second, optimizer):
    def train(sharded, *more):
        arguments = (*SETTINGS, f"optimizer={optimizer}", "name=run", *more)
        if sharded:
            as_torchrun(start, "train", *arguments, *SHARDED)
        else:
            result = run_command("train", *arguments)
            assert result.code == 0, result.err

    train(first, "train.stop_at=3")
    train(second)
    assert_close(tmp_path / "outputs" / "run", alone(optimizer), optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [functools.partial(as_torchrun, nodes=2), as_srun], ids=["torchrun", "srun"])
def test_two_machines_train_what_one_process_trains(start, alone, tmp_path, launch):
    machines = ("device.num_nodes=2", "device.strategy=fsdp")
    launch(start, "train", *SETTINGS, *machines, "optimizer=adamw", "name=two")
    assert_close(tmp_path / "outputs" / "two", alone("adamw"), "adamw")


def tune(start, run_command, base, folder, *more):
    """Fine-tune a run in one process and in two; return both folders."""
    chats = [[{"role": "user", "content": f"Is {i} odd?"}, {"role": "assistant", "content": "No."}] for i in range(8)]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    arguments = (
        *(f"init_from={base}", "data=instruct", "data.path=chats.jsonl", "device=cpu", "precision=fp32"),
        *("train.batch_tokens=128", "train.micro_batch_size=1", "train.log_every=1", "schedule.warmup_steps=0", *more),
    )
    result = run_command("sft", *arguments, "name=one")
    assert result.code == 0, result.err
    as_torchrun(start, "sft", *arguments, *SHARDED, "name=two")
    return folder / "outputs" / "one", folder / "outputs" / "two"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_two_processes_fine_tune_what_one_does(start, run_command, alone, tmp_path, rank):
    more = ("train.max_steps=4", "train.sample_every=2", f"sft.lora.rank={rank}", "optimizer.lr=3e-3")
    folders = (alone("adamw"), *tune(start, run_command, alone("adamw"), tmp_path, *more))
    base, one, two = (bare_names(weights(folder)) for folder in folders)
    change = max(float((one[name] - base[name]).abs().max()) for name in one)
    torch.testing.assert_close(two, one, rtol=0, atol=0.01 * change)
    assert len(read_samples(RunPaths(folders[-1]))) == 2


@pytest.mark.slow
def test_two_processes_stop_early_where_one_does(start, run_command, alone, tmp_path):
    more = ("data.val_fraction=0.25", "train.max_steps=50", "train.val_every=1", "sft.patience=2", "optimizer.lr=0.1")
    one, two = map(Run, tune(start, run_command, alone("adamw"), tmp_path, *more))
    assert one.facts().step == two.facts().step < 50
    assert one.facts().best_step == two.facts().best_step
    assert two.facts().status == "finished"


def step(model, kind):
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(kind=kind), fused=True)
    x = torch.arange(32).view(2, 16)
    model(x, x).backward()
    clip_gradients(list(model.parameters()), 1.0)
    optimizer.step()
    return optimizer


def layout(state):
    return tree_map_only(torch.Tensor, lambda tensor: (tensor.shape, tensor.dtype), whole_state(state))


def train_alone_and_as_one_of_two(rank: int, folder: str, checkpoint: int) -> None:
    """Take four steps of two micro-batches with a whole model on all rows, and with a sharded one on this process's half.

    In float64, in which also Muon computes, both must agree to the 9th digit: clipped norms, weights and moments.
    """
    patience = datetime.timedelta(seconds=60)  # if the other process fails, do not wait half an hour for it
    distributed.init_process_group("gloo", f"{folder}/meet", patience, world_size=2, rank=rank)
    numbers = torch.Generator().manual_seed(0)
    for config in SHAPES:
        for kind in ("adamw", "muon"):
            one, sharded = GPT(config).double(), GPT(config).double()
            shard(sharded, "cpu", 2)
            optimizers = []
            for model in (one, sharded):
                model.checkpoint_activations = bool(checkpoint)
                settings = OptimizerConfig(kind=kind, lr=0.01)
                optimizers.append(build_optimizer(model.named_parameters(), settings, fused=True))
            for _ in range(4):
                norms = []
                rows = torch.randint(config.vocab_size, (2, 4, config.context_length), generator=numbers)
                for model, own, optimizer in zip((one, sharded), (rows, rows[:, rank::2]), optimizers, strict=True):
                    for last, x in enumerate(own):
                        if model is sharded:
                            model.set_requires_gradient_sync(bool(last))
                        (model(x, x) / x.numel()).backward()  # the processes' means are averaged
                    norms.append(clip_gradients(list(model.parameters()), 0.1))
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                assert norms[0] > 0.1
                torch.testing.assert_close(norms[1], norms[0], rtol=1e-9, atol=0)
            theirs, ours = (optimizer.state_dict()["state"] for optimizer in optimizers)
            for whole, parts in ((one.state_dict(), sharded.state_dict()), (theirs, ours)):
                torch.testing.assert_close(whole_state(parts), whole, rtol=1e-9, atol=1e-9)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [0, 1], ids=["stored", "recomputed"])
def test_two_processes_clip_and_update_as_one_in_float64(tmp_path, checkpoint):
    side_by_side(train_alone_and_as_one_of_two, [(rank, tmp_path.as_uri(), checkpoint) for rank in range(2)])


def custom_optimizers_of_one_of_eight() -> None:
    distributed.init_process_group("fake", rank=0, world_size=8)
    model = GPT(SHAPES[0])
    shard(model, "cpu", 8)
    for name in ("RAdam", "SGD"):
        config = OptimizerConfig(kind="custom", _target_=f"torch.optim.{name}")
        before = [own_part(p.detach()).clone() for p in model.parameters()]
        optimizer = build_optimizer(model.named_parameters(), config, fused=False)
        assert optimizer.state_dict()["state"] == {}
        assert all(torch.equal(own_part(p), a) for p, a in zip(model.parameters(), before, strict=True))
    config = OptimizerConfig(kind="custom", _target_="torch.optim.Adafactor")
    with pytest.raises(UserError, match=r"torch.optim.Adafactor cannot update weights that are divided .*strategy=ddp"):
        build_optimizer(model.named_parameters(), config, fused=False)


def test_an_optimizer_that_cannot_update_sharded_weights_is_refused_before_the_first_step():
    apart(custom_optimizers_of_one_of_eight)


def state_of_a_custom_optimizer_in_one_of_eight() -> None:
    distributed.init_process_group("fake", rank=0, world_size=8)
    model = GPT(SHAPES[0])
    shapes = [parameter.shape for parameter in model.parameters()]
    shard(model, "cpu", 8)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    saved = {number: {"step": 3, "momentum_buffer": torch.ones(shape)} for number, shape in enumerate(shapes)}
    states = [{"state": saved, "param_groups": optimizer.state_dict()["param_groups"]}]
    strategy = SimpleNamespace(optimizers=[optimizer])
    FullyShardedStrategy.load_optimizer_state_dict(strategy, {"optimizer_states": states})
    for parameter in model.parameters():
        assert optimizer.state[parameter]["step"] == 3
        assert own_part(optimizer.state[parameter]["momentum_buffer"]).shape == own_part(parameter).shape


def test_an_optimizer_may_keep_a_number_beside_its_moments():
    apart(state_of_a_custom_optimizer_in_one_of_eight)


def rank_of_eight(rank: int, file: str) -> None:
    """Take a step as one of eight processes whose collective operations do nothing, and save this one's initial weights."""
    distributed.init_process_group("fake", rank=rank, world_size=8)
    parts = []
    for config in SHAPES:
        for kind in ("adamw", "muon"):
            one, sharded = GPT(config), GPT(config)
            shard(sharded, "cpu", 8)
            parts.append([own_part(p.detach()).clone() for p in sharded.parameters()])
            plain, optimizer = (step(model, kind) for model in (one, sharded))
            for a, b in zip(one.parameters(), sharded.parameters(), strict=True):
                rows = -(-len(a) // 8)
                assert b.shape == a.shape
                assert len(own_part(b)) == max(0, min(rows, len(a) - rank * rows))
                for name, value in optimizer.state[b].items():
                    assert isinstance(value, DTensor) == (name != "step")
            assert layout(sharded.state_dict()) == layout(one.state_dict())
            assert layout(optimizer.state_dict()) == layout(plain.state_dict())
            assert layout(whole_model(sharded).state_dict()) == layout(one.state_dict())
    torch.save(parts, file)


@pytest.mark.slow
def test_eight_processes_hold_the_rows_of_one_model_and_write_its_layout(tmp_path):
    files = [tmp_path / str(rank) for rank in range(8)]
    for rank, file in enumerate(files):
        apart(rank_of_eight, rank, str(file))
    models = [GPT(config) for config in SHAPES for _ in ("adamw", "muon")]
    for model, *parts in zip(models, *map(torch.load, files), strict=True):
        for p, *rows in zip(model.parameters(), *parts, strict=True):
            assert torch.equal(torch.cat(rows), p)
