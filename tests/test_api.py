"""Positron from Python: runs like those of the command line, callable from notebooks and threads."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from composing import composed
from conftest import PATIENCE
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import distributed

import positron
from positron.cli.python_arguments import as_word, full_name
from positron.cli.request import compose_request
from positron.cli.sweeps import run_config
from positron.system import caller
from positron.system.errors import Diverged, UserError
from positron.system.ranks import _OF_PLACES, STARTER
from positron.train import configure
from positron.training.objective.pretrain import PretrainObjective

TINY = {
    "model": "debug",
    "d_model": 32,
    "context_length": 32,
    "tokenizer": "char",
    "device": "cpu",
    "precision": "fp32",
    "train.batch_tokens": 512,
    "max_steps": 6,
    "log_every": 1,
    "val_every": 3,
    "val_tokens": 1000,
    "sample_tokens": 8,
    "warmup_steps": 2,
}
STORIES = {**TINY, "size_mb": 0.2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Norm(L.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        module.metrics["norm/embeddings"] = module.model.wte.weight.norm().item()


class Stateful(L.Callback):
    def state_dict(self):
        return {}


class WithoutKind(PretrainObjective):
    pass


def test_a_run_from_python_is_the_run_of_the_command_line(folder, run_command):
    run = positron.train(**STORIES, lr=1e-3, name="python")
    words = [f"{full_name(key, 'train')}={value}" for key, value in STORIES.items()]
    assert run_command("train", *words, "optimizer.lr=1e-3", "name=command").code == 0
    ours, theirs = run.metrics(), positron.Run(folder / "outputs" / "command").metrics()
    for key in ("train/loss", "val/bpb", "train/lr", "train/grad_norm"):
        np.testing.assert_array_equal(np.asarray(ours[key]), np.asarray(theirs[key]))


@pytest.mark.parametrize(
    ("recipe", "function", "settings"),
    [
        ("train", positron.train, {}),
        ("train", positron.train, {"experiment": "quickstart"}),
        ("train", positron.train, {"experiment": "shakespeare_char", "max_steps": 3}),
        ("train", positron.train, {"init_from": "other"}),
        ("sft", positron.finetune, {"experiment": "story_instruct"}),
        ("prefer", positron.prefer, {}),
        ("reinforce", positron.reinforce, {"experiment": "addition_reward"}),
    ],
)
def test_a_call_composes_the_settings_of_the_command_with_the_same_words(monkeypatch, recipe, function, settings):
    requests = []
    monkeypatch.setattr(
        "positron.cli.sweeps.run_config", lambda recipe, words, *_: requests.append(compose_request(recipe, words))
    )
    function(**settings)
    words = [f"{full_name(key, recipe)}={value}" for key, value in settings.items()]
    assert requests[0].values == composed(*words, recipe=recipe)
    assert requests[0].asked.given == {full_name(key, recipe): str(value) for key, value in settings.items()}


def test_quotation_marks_and_null_in_a_text_are_characters_of_the_text(monkeypatch):
    requests = []
    monkeypatch.setattr(
        "positron.cli.sweeps.run_config", lambda recipe, words, *_: requests.append(compose_request(recipe, words))
    )
    positron.train(sample_prompt='"Hello."', name="null")
    assert (requests[0].values["train"]["sample_prompt"], requests[0].values["name"]) == ('"Hello."', "null")


def test_the_same_call_again_continues_and_another_setting_is_refused(capsys):
    positron.train(**STORIES, stop_at=4, name="again")
    run = positron.train(**STORIES, name="again")
    assert list(run.metrics()["step"]) == [1, 2, 3, 4, 5, 6]
    assert "resuming" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        positron.train(**STORIES, lr=0.5, name="again")


def test_callbacks_see_each_step_and_their_metrics_are_logged():
    norms = positron.train(**STORIES, name="callbacks", callbacks=[Norm()]).metrics()["norm/embeddings"]
    assert len(norms) == 6
    assert np.isfinite(norms).all()


@pytest.mark.parametrize("kind", ["path", "list", "Dataset"])
def test_data_may_be_a_file_a_list_or_a_dataset(folder, kind):
    texts = [f"The cat number {i} sat on the mat and looked at the moon." for i in range(200)]
    if kind == "path":
        data = folder / "my.txt"
        data.write_text("\n".join(texts))
    elif kind == "list":
        data = texts
    else:
        from datasets import Dataset

        data = Dataset.from_dict({"text": texts})
    run = positron.train(data=data, **TINY)
    assert run.facts().status == "finished"
    figures = positron.evaluate(run, limit=500)
    assert figures["bytes"] >= 500
    assert figures["bpb"] > 0


def test_a_run_is_tuned_in_each_way_on_data_in_memory_loaded_and_evaluated():
    base = positron.train(**{**STORIES, "context_length": 64}, name="base")
    talks = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}] for i in range(30)]
    settings = {key: STORIES[key] for key in ("device", "precision", "max_steps", "val_every", "log_every")}
    run = positron.finetune(base, data=talks, name="tuned", replay_ratio=0, batch_tokens=512, **settings)
    assert run.facts().status == "finished"
    assert run.is_chat
    assert isinstance(positron.load(run).generate("1?", max_tokens=3), str)
    settings["max_steps"] = 2
    pairs = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(30)]
    preferred = positron.prefer(run, data=pairs, name="preferred", batch_tokens=512, **settings)
    settings |= {"prompts": 2, "samples": 2, "max_tokens": 4, "val_prompts": 2, "val_samples": 2}
    rewarded = positron.reinforce(run, data=talks, reward="own_rewards.short", name="rewarded", replay=0, **settings)
    assert [(each.kind, Path(each.base).as_posix(), each.facts().status) for each in (preferred, rewarded)] == [
        ("preference", "outputs/tuned", "finished"),
        ("reinforce", "outputs/tuned", "finished"),
    ]
    assert 0 < np.asarray(rewarded.metrics()["train/reward"])[-1] <= 1


def test_a_returned_run_stays_readable_when_the_current_folder_changes(folder, monkeypatch):
    base = positron.train(**STORIES, name="base")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    assert base.facts().status == "finished"
    assert len(base.metrics()["step"]) == 6
    assert positron.evaluate(base, limit=500)["bytes"] >= 500


def test_a_callback_may_change_the_current_folder(folder):
    class Leave(L.Callback):
        def on_train_batch_end(self, *_):
            os.chdir(elsewhere)

    elsewhere, here = folder / "sub", Path.cwd()
    elsewhere.mkdir()
    Path("my.txt").write_text("The cat sat on the mat.\n\n" * 500)
    settings = {**TINY, "sample_every": 3, "save_every": 3, "extend": True, "callbacks": [Leave()]}
    for steps in (6, 8):
        run = positron.train(data="my.txt", name="base", **{**settings, "max_steps": steps})
        assert (run.facts().status, run.facts().step) == ("finished", steps)
        assert Path.cwd() == here
    assert list(elsewhere.iterdir()) == []
    assert {path.name for path in run.checkpoint_folder.iterdir()} == {
        "best.ckpt",
        "step-000006.ckpt",
        "step-000008.ckpt",
    }
    log, relative = run.log_path.read_text(), Path("outputs", "base")
    assert f"fresh start in {relative}" in log
    assert "step 8/8" in log
    assert f"--run {relative}<" in (run.folder / "report.html").read_text()


def test_a_call_leaves_the_random_generators_and_the_threads_of_its_caller_as_they_were():
    def draws():
        return random.random(), float(np.random.rand()), torch.rand(1).item(), torch.get_num_threads()

    def seed():
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    wanted = [draws() for _ in range(4)]
    seed()
    got = [draws()]
    run = positron.train(**STORIES, name="caller", threads=torch.get_num_threads() + 1)
    got.append(draws())
    positron.load(run)
    got.append(draws())
    positron.evaluate(run, limit=2000)
    got.append(draws())
    assert got == wanted


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def rounded_products():
    """Let the CPU round the factors of products to bf16, as set_float32_matmul_precision does on CPUs that gain speed."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "bf16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "medium": rounded_products,
}


def torch_state():
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    products = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    precision = torch.get_float32_matmul_precision(), products
    return torch.get_default_dtype(), torch.get_default_device(), *precision, *modes, depth


def trained_and_used(name):
    run = positron.train(**STORIES, name=name)
    positron.export(run, "safetensors")  # compares the logits of the written file with those of the run
    writer = positron.load(run)
    text = writer.generate("Once", max_tokens=10)
    return writer.model.state_dict(), (positron.evaluate(run, limit=500)["loss"], text)


trained_in_the_initial_state = functools.cache(lambda: trained_and_used("initial"))


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_torch_in_the_calling_program_neither_changes_the_result_nor_is_changed(state):
    wanted, results = trained_in_the_initial_state()
    with STATES[state]():
        before = torch_state()
        weights, results_there = trained_and_used("there")
        with pytest.raises(UserError):
            positron.load("missing")
        assert torch_state() == before
    assert results_there == results
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


def test_calls_in_two_threads_leave_the_default_dtype_of_their_caller():
    """The call that began first ends first; the second call still computes in float32."""
    first_has_ended, dtypes = threading.Event(), []

    def second():
        with caller.unchanged_state():
            has_begun.set()
            assert first_has_ended.wait(PATIENCE)
            dtypes.append(torch.get_default_dtype())

    has_begun, thread = threading.Event(), threading.Thread(target=second)
    with default_dtype(torch.float64):
        with caller.unchanged_state():
            thread.start()
            assert has_begun.wait(PATIENCE)
        first_has_ended.set()
        thread.join(PATIENCE)
        assert torch.get_default_dtype() == torch.float64
    assert dtypes == [torch.float32]


def test_the_memory_that_a_call_may_take_of_a_gpu_does_not_limit_the_calls_after_it(monkeypatch):
    shares, known = [1.0, 1.0], []
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(known))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", shares.__getitem__)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: shares.__setitem__(gpu, share)
    )
    with caller.unchanged_state():
        known.append("CUDA")
        shares[:] = [1.0, 0.25]
    assert shares == [1.0, 1.0]
    with caller.unchanged_state():
        shares[:] = [0.5, 0.5]
    assert shares == [1.0, 1.0]


class Stop(L.Callback):
    def __init__(self, signum):
        self.signum = signum

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), self.signum)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process on Windows")
def test_ctrl_c_ends_a_training_and_another_signal_the_whole_program():
    assert positron.train(**STORIES, name="c", callbacks=[Stop(signal.SIGINT)]).facts().status == "stopped"
    with pytest.raises(SystemExit) as end:
        positron.train(**STORIES, name="t", callbacks=[Stop(signal.SIGTERM)])
    assert end.value.code == 128 + signal.SIGTERM
    assert positron.Run(Path("outputs/t")).facts().status == "stopped"


@pytest.fixture
def no_launcher(monkeypatch):
    for key in (*_OF_PLACES, "SLURM_STEP_NUM_TASKS", caller._STARTED_FOR):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    monkeypatch.setattr(caller, "_calls", Counter())


def call(name, train):
    """Call `positron.train` on two devices, with `train` in place of the training."""
    words = ["model=debug", f"name={name}", "device=cpu", "device.devices=2", "device.strategy=ddp"]
    return run_config("train", words, configure, lambda *_: train())


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("error", [None, Diverged("the loss is not finite")])
def test_a_training_in_several_processes_leaves_neither_variables_nor_connections(folder, error):
    def train():
        os.environ |= {"LOCAL_RANK": "0", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        os.environ |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "7", STARTER: "1"}  # as Lightning and the loop do
        distributed.init_process_group("gloo", f"{folder.as_uri()}/meet", world_size=1, rank=0)
        if error is not None:
            raise error

    before = dict(os.environ)
    with contextlib.nullcontext() if error is None else pytest.raises(Diverged):
        call("two", train)
    assert dict(os.environ) == before
    assert not distributed.is_initialized()


@pytest.mark.usefixtures("no_launcher")
def test_a_process_started_for_a_training_leaves_out_those_before_it_and_the_rest_of_the_program(monkeypatch):
    started_for = []
    call("a", lambda: None)
    call("b", lambda: None)
    call("a", lambda: started_for.append(os.environ[caller._STARTED_FOR]))
    monkeypatch.setattr(caller, "_calls", Counter())  # the program begins again
    monkeypatch.setenv(caller._STARTED_FOR, *started_for)
    monkeypatch.setenv("LOCAL_RANK", "1")
    trained = []
    assert call("a", lambda: trained.append("a")).folder.name == "a"
    assert call("b", lambda: trained.append("b")).folder.name == "b"
    with pytest.raises(SystemExit) as end:
        call("a", lambda: trained.append("a again"))
    assert (end.value.code, trained) == (0, ["a again"])


@pytest.mark.usefixtures("no_launcher")
def test_several_processes_are_refused_where_no_program_can_be_started_again(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(UserError, match=r"2 processes needs a program in a file.*write the call to a file"):
        call("two", lambda: None)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    call("two", lambda: None)


TWICE = """
import os
import sys

import positron

settings = dict(model="debug", tokenizer="char", size_mb=0.2, **{"train.batch_tokens": 512, "device": "cpu"})
settings |= {"val_tokens": 1000, "context_length": 32, "d_model": 32, "sample_tokens": 8}
for devices, steps in ((2, 2), (1, 3), (2, 4)):
    strategy = {"device.devices": devices, "device.strategy": "ddp"} if devices > 1 else {}
    run = positron.train(**settings, **strategy, name=f"on{devices}", max_steps=4, stop_at=steps)
    if os.environ.get("LOCAL_RANK") is None:
        print(run.folder.name, run.facts().step)
"""


@pytest.mark.slow
def test_a_program_can_train_on_two_devices_and_one_in_turn(folder):
    (folder / "program.py").write_text(TWICE)
    result = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["on2 2", "on1 3", "on2 4"], result.stderr


@pytest.mark.parametrize("value", [np.int64(3), np.array(3), torch.tensor(3)])
def test_a_number_of_numpy_or_torch_is_a_setting(value):
    assert as_word("seed", value) == "3"
    assert as_word("optimizer.lr", torch.tensor(0.5)) == "0.5"


def test_a_thread_can_train():
    found = []
    thread = threading.Thread(target=lambda: found.append(positron.train(**STORIES, name="thread").facts().status))
    thread.start()
    thread.join()
    assert found == ["finished"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1}, r"did you mean lr=\.\.\.\?"),
        ({"learning_rate": 1}, r"did you mean lr=\.\.\.\?"),
        ({"patience": 1}, "sft.patience= is read by .*, not by .*: leave sft.patience= out"),
        ({"every": 1, "kind": "x"}, "kind= could mean"),
        ({"lr": 1e-3, "optimizer.lr": 5e-4}, "optimizer.lr= sets optimizer.lr, which another argument .* also sets"),
        (
            {"data": "a.txt", "data.path": "b.txt"},
            "data.path= sets data.path, which another argument of this call also sets",
        ),
        ({"model": "quikstart"}, "did you mean model=quickstart"),
        ({"data": 3}, "data= takes a path, a list"),
        ({"data": "Once upon a time. " * 300}, r"takes the path of a file, not a text: .* as in data=\[text\]$"),
        ({"data": "Once upon a time\nthere was"}, r"takes the path of a file, not a text: give a list of texts"),
        ({"data": []}, "contains no text"),
        ({"data": ["a", 3]}, r"item 1 \(counted from 0\) must be a text"),
        ({"lr": object()}, "lr= cannot hold an object of type object"),
        (
            {"optimizer._target_": dict},
            'takes the name of a function or class, such as "builtins.dict", not the object itself',
        ),
        (
            {"optimizer": torch.optim.SGD},
            'takes the name of a choice, not a class: give optimizer="custom", _target_="torch.optim.sgd.SGD"',
        ),
        (
            {"callbacks": Norm()},
            r"takes a list of callbacks, not an object of type Norm: give callbacks=\[MyCallback\(\)\]",
        ),
        ({"callbacks": None}, "takes a list of callbacks, not an object of type NoneType"),
        ({"callbacks": [Stateful(), Stateful()]}, "two callbacks with a state_dict have the same state_key, Stateful"),
        ({"callbacks": [Norm]}, r"takes objects, not the class Norm: give callbacks=\[Norm\(\)\]"),
        (
            {"callbacks": [Timer(), EarlyStopping("x")]},
            "callbacks=: EarlyStopping cannot be used: Lightning's validation does",
        ),
        ({"callbacks": ["norm"]}, "takes objects of lightning.Callback, not of type str: derive"),
        ({"objective": "mine.Loss"}, "takes a subclass of PretrainObjective .*, not type str: see docs"),
        (
            {"objective": WithoutKind},
            "WithoutKind has the kind pretrain, so that a command .* such as kind = .my_loss.$",
        ),
        ({"objective": Norm}, "takes a subclass of PretrainObjective .*, not the class Norm: see docs"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(folder, settings, message):
    with pytest.raises(UserError, match=message):
        positron.train(**{"model": "debug", **settings})
    assert not list(folder.glob("outputs/*/config.json"))


def test_a_file_whose_name_begins_with_a_hyphen_is_measured(monkeypatch):
    monkeypatch.setattr("positron.evaluate.figures", vars)
    options = positron.evaluate("-run", "-x.txt", limit=-1)
    assert (options["run"], options["text"], options["limit"]) == ("-run", "-x.txt", -1)
    with pytest.raises(UserError, match="text= takes the path of a file or folder, not an object of type list"):
        positron.evaluate("-run", ["a text"])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(positron.finetune, ()), (positron.distill, ()), (positron.evaluate, ()), (positron.export, ("hf",))],
)
def test_an_object_that_names_no_run_is_refused(folder, function, arguments):
    with pytest.raises(UserError, match="3 is of type int, not a run: give the name or the folder of one run"):
        function(3, *arguments)


def test_a_function_is_refused_as_a_reward_with_the_way_to_name_it():
    talks = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    with pytest.raises(
        UserError, match=r'reward= takes the name of a function or class, such as "\w*test_api.call", not'
    ):
        positron.reinforce("none", data=talks, reward=call)


@pytest.mark.parametrize("function", [positron.finetune, positron.distill, positron.prefer, positron.reinforce])
def test_each_training_names_a_wrong_callback(folder, function):
    with pytest.raises(UserError, match="takes objects, not the class Norm"):
        function("none", callbacks=[Norm])
    assert not list(folder.iterdir())


def test_an_unknown_format_of_an_export_is_answered_with_the_formats():
    with pytest.raises(
        UserError, match="there is no format onxx: choose from hf, gguf, ollama, onnx, llama2c, safetensors"
    ):
        positron.export("none", "onxx")


def test_last_words_stand_for_the_key_that_training_reads():
    assert full_name("lr", "train") == "optimizer.lr"
    assert full_name("batch_tokens", "train") == "train.batch_tokens"
    assert full_name("rank", "sft") == "sft.lora.rank"
    assert full_name("model", "train") == "model"
    assert full_name("optimizer.options.momentum", "train") == "optimizer.options.momentum"
