"""device.checkpoint_activations: the same losses and gradients to the last bit, in far less memory."""

import dataclasses

import pytest
import torch
from conftest import tiny
from traces import same, trace
from two_processes import TWO, run

from positron.config import DeviceConfig, GPTConfig, ModelConfig, PrecisionConfig
from positron.model.gpt import GPT, Block
from positron.model.kernels import attention
from positron.model.lora import add_lora
from positron.system.errors import UserError
from positron.train import train
from positron.training import device
from positron.training.device import Machine, choose_machine, choose_micro_batch, micro_batch_bytes
from positron.training.module import TrainingModule
from positron.training.resolve import make_plan
from positron.training.resume import Start

BASE = GPTConfig(vocab_size=61, context_length=160, d_model=32, n_layer=3, n_head=4)
CPU = Machine("cpu", "fp32", "")


def batch(config, rows=4):
    """x, y and document numbers, (B, T) each."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(config.vocab_size, (2, rows, config.context_length), generator=generator)
    return x, y, (x == 0).cumsum(dim=1)


def loss_and_gradients(model, dtype, documents):
    """Of two micro-batches whose gradients add up, as in a training step."""
    x, y, numbers = batch(model.config)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    losses = []
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for part in (slice(0, 2), slice(2, 4)):
            loss = model(x[part], y[part], numbers[part] if documents else None)
            loss.backward()
            losses.append(loss.item())
    after = torch.rand(3)  # nor may the second forward pass move the generator that the next step draws from
    return losses, after, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_with_and_without(model, dtype, documents):
    plain = loss_and_gradients(model, dtype, documents)
    runs = []
    hooks = [m.register_forward_pre_hook(lambda *_: runs.append(1)) for m in model.modules() if isinstance(m, Block)]
    model.checkpoint_activations = True
    again = loss_and_gradients(model, dtype, documents)
    for hook in hooks:
        hook.remove()
    assert len(runs) == 2 * 2 * model.config.n_layer  # micro-batches, forward and again, blocks
    assert plain[0] == again[0]
    assert torch.equal(plain[1], again[1])
    assert plain[2].keys() == again[2].keys()
    for name, gradient in plain[2].items():
        assert gradient.any(), name
        assert torch.equal(gradient, again[2][name]), name


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_the_same_to_the_last_bit(dtype, dropout, documents):
    options = {"position": "rope", "activation": "swiglu", "n_kv_head": 2, "qk_norm": True} if documents else {}
    model = GPT(dataclasses.replace(BASE, dropout=dropout, **options))
    assert_same_with_and_without(model, dtype, documents)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_also_where_only_thin_matrices_are_trained(dropout):
    """The first block's input then carries no gradient."""
    model = GPT(dataclasses.replace(BASE, dropout=dropout))
    add_lora(model, 4, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):  # 0, they would leave nothing for lora_a to learn
            torch.nn.init.normal_(parameter, std=0.1)
    assert_same_with_and_without(model, torch.float32, documents=False)


def test_the_second_run_takes_the_attention_of_the_first(monkeypatch):
    choices = []
    fits = attention.blocked_is_faster
    monkeypatch.setattr(attention, "blocked_is_faster", lambda *x: choices.append(fits(*x)) or choices[-1])
    model = GPT(BASE)
    model.checkpoint_activations = True
    loss_and_gradients(model, torch.bfloat16, documents=False)
    assert choices == [True] * 2 * 2 * BASE.n_layer
    with torch.no_grad():
        model(batch(BASE)[0])
    assert choices[-BASE.n_layer :] == [False] * BASE.n_layer


def saved_bytes(config, precision, checkpoint_activations, rows=4):
    """Of the tensors that the forward pass leaves for the backward pass, weights and their bf16 copies left out."""
    model = GPT(config)
    model.checkpoint_activations = checkpoint_activations
    shapes = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.ndim == 2}
    storages = {}

    def pack(tensor):
        if tensor.shape not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor  # alive until the end, so that no address is used twice

    x, y, _ = batch(config, rows)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = model(x, y)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_saved_activations_fall_to_the_inputs_of_blocks_and_are_what_is_reckoned_with(activation, precision):
    config = dataclasses.replace(BASE, d_model=64, n_layer=6, activation=activation)
    tokens = 4 * config.context_length
    machines = [Machine("cpu", precision, "", checkpoint_activations=flag) for flag in (False, True)]
    full, less = (saved_bytes(config, precision, machine.checkpoint_activations) for machine in machines)
    inputs = 4 * config.d_model * config.n_layer * tokens
    assert inputs < less < inputs + 20 * config.d_model * tokens
    assert less < full / 7
    for machine, saved in zip(machines, (full, less + full / config.n_layer), strict=True):
        assert 0.75 * saved < micro_batch_bytes(config, 4, machine) < 1.6 * saved


@pytest.mark.slow
@pytest.mark.parametrize("window", [100, 512])
def test_with_a_window_memory_grows_with_the_context_and_not_with_its_square(window):
    config = dataclasses.replace(BASE, d_model=64, context_length=2500, window=window)
    assert attention.MAX_BLOCKED_KEYS < 2500
    machine = Machine("cpu", "bf16", "")
    saved = saved_bytes(config, "bf16", False, rows=1)
    assert 0.75 * saved < micro_batch_bytes(config, 1, machine) < 1.6 * saved
    assert saved_bytes(dataclasses.replace(config, context_length=5000), "bf16", False, rows=1) < 2.2 * saved


@pytest.mark.slow
def test_a_run_continues_with_another_value_and_learns_the_same(tmp_path):
    model = ModelConfig(context_length=32, d_model=32, n_layer=2, n_head=4, dropout=0.1)
    settings = {"model": model, "train__max_steps": 6, "train__micro_batch_size": 4, "train__val_every": 3}
    train(tiny(tmp_path, **settings), tmp_path / "plain")
    train(tiny(tmp_path, **settings, device__checkpoint_activations=True, train__stop_at=3), tmp_path / "mixed")
    train(tiny(tmp_path, **settings), tmp_path / "mixed")
    assert len(trace(tmp_path / "plain")) == 6
    assert same(tmp_path / "plain", tmp_path / "mixed")


def test_where_memory_runs_out_the_remedy_is_named_once(monkeypatch):
    def never_fits(rows):
        raise torch.OutOfMemoryError

    gpu = Machine("cuda", "bf16", "")
    enough = micro_batch_bytes(BASE, 64, dataclasses.replace(CPU, checkpoint_activations=True))
    monkeypatch.setattr(device, "free_memory", lambda _: enough)
    for machine, asked in ((gpu, "auto"), (CPU, 64)):
        with pytest.raises(UserError, match=r"device\.checkpoint_activations=true"):
            choose_micro_batch(BASE, machine, 64, asked, never_fits)
        machine = dataclasses.replace(machine, checkpoint_activations=True)
        with pytest.raises(UserError, match="try") as told:
            choose_micro_batch(BASE, machine, 640, asked if asked == "auto" else 640, never_fits)
        assert "checkpoint_activations" not in str(told.value)
    assert choose_micro_batch(BASE, dataclasses.replace(CPU, checkpoint_activations=True), 8, 8, never_fits) == 8
    monkeypatch.setattr(device, "free_memory", lambda _: enough - 1)
    with pytest.raises(UserError, match=r"are free: try train\.micro_batch_size=\d+$"):  # it would not save enough
        choose_micro_batch(BASE, CPU, 64, 64, never_fits)


NO_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"),
}


@pytest.mark.parametrize("accelerator", NO_MEMORY)
def test_the_batch_is_halved_until_it_fits_whatever_the_machine_calls_it(accelerator):
    tried: list[int] = []

    def up_to_five(rows):
        tried.append(rows)
        if rows > 5:
            raise NO_MEMORY[accelerator]

    assert choose_micro_batch(BASE, Machine(accelerator, "bf16", ""), 37, "auto", up_to_five) == 5
    assert tried == [37, 19, 10, 5]


def test_a_micro_batch_that_was_chosen_when_the_run_started_is_kept_whatever_memory_is_free(tmp_path, monkeypatch):
    settings = {"train__batch_tokens": 8 * BASE.context_length, "train__micro_batch_size": "auto"}
    config, model = tiny(tmp_path, **settings), GPT(BASE)
    monkeypatch.setattr(device, "free_memory", lambda _: 1)
    known = make_plan(config, model, CPU, Start()).resolved()
    assert known.micro_batch_size > 1
    assert make_plan(config, model, CPU, Start(is_own=True, resolved=known)).micro_batch_size == known.micro_batch_size
    elsewhere = Start(is_own=True, resolved=dataclasses.replace(known, accelerator="cuda"))
    given = dataclasses.replace(
        config, train=dataclasses.replace(config.train, micro_batch_size=known.micro_batch_size)
    )
    for settings, start in ((config, elsewhere), (given, Start(is_own=True, resolved=known))):
        with pytest.raises(UserError, match="out of memory"):
            make_plan(settings, model, CPU, start)


def test_another_fault_while_trying_is_not_taken_for_a_lack_of_memory():
    def broken(rows):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        choose_micro_batch(BASE, Machine("mps", "bf16", ""), 8, "auto", broken)


def test_where_one_sequence_does_not_fit_a_smaller_batch_is_not_the_advice(tmp_path, monkeypatch):
    enough = micro_batch_bytes(BASE, 1, dataclasses.replace(CPU, checkpoint_activations=True))
    monkeypatch.setattr(device, "free_memory", lambda _: enough)
    with pytest.raises(UserError, match=r"try a smaller model, a smaller model\.context_length=, or device"):
        choose_micro_batch(BASE, CPU, 8, 1, lambda rows: None)

    def never_fits(*_):
        raise NO_MEMORY["mps"]

    monkeypatch.undo()
    monkeypatch.setattr(TrainingModule, "training_step", never_fits)
    with pytest.raises(UserError, match=r"out of memory: try a smaller model, a smaller model\.context_length="):
        train(tiny(tmp_path, train__micro_batch_size=1), tmp_path / "run")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_step_that_runs_out_of_memory_ends_the_run_with_the_remedy(tmp_path, monkeypatch, checkpointed):
    def never_fits(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TrainingModule, "training_step", never_fits)
    with pytest.raises(UserError, match=r"out of memory: try train\.micro_batch_size=8") as told:
        train(tiny(tmp_path, device__checkpoint_activations=checkpointed), tmp_path / "run")
    assert ("device.checkpoint_activations=true" in str(told.value)) != checkpointed


def test_the_machine_knows_of_it():
    chosen = choose_machine(DeviceConfig("cpu", checkpoint_activations=True), PrecisionConfig("fp32"))
    assert chosen.checkpoint_activations


def test_dropout_that_cannot_be_drawn_again_is_refused(tmp_path):
    machine = Machine("mps", "bf16", "", checkpoint_activations=True)
    model = GPT(dataclasses.replace(BASE, dropout=0.1))
    config = tiny(tmp_path, model=ModelConfig(context_length=160, d_model=32, n_layer=3, n_head=4, dropout=0.1))
    with pytest.raises(UserError, match=r"model\.dropout=0"):
        make_plan(config, model, machine, Start())


@pytest.mark.slow
def test_two_processes_learn_the_same_with_it(tmp_path):
    common = (*TWO, "train.max_steps=4", "model.dropout=0.1", "train.micro_batch_size=2")
    run(tmp_path, "name=plain", *common)
    run(tmp_path, "name=again", "device.checkpoint_activations=true", *common)
    plain, again = (trace(tmp_path / "outputs" / name) for name in ("plain", "again"))
    assert len(plain) == 4
    assert plain == again
