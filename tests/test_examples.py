"""Every example of docs/examples runs, and a class of the user's that does not fit is refused before anything is made."""

import json
import os
import re
import runpy
import shutil
import sys

import pytest
from conftest import FAST, PATIENCE, PROJECT, apart, shorten_runs

from positron.cli.custom_data import write_custom_data
from positron.cli.request import compose
from positron.cli.user_callbacks import make_callbacks
from positron.config import OptimizerConfig
from positron.system.errors import UserError
from positron.training.optim.custom import refuse_unusable

EXAMPLES = PROJECT / "docs" / "examples"
STEPS = (*FAST, "model=debug", "device=cpu", "train.max_steps=4", "train.log_every=1", "schedule.warmup_steps=1")


def run_example(path: str, folder: str) -> None:
    shorten_runs(pytest.MonkeyPatch())
    os.chdir(folder)
    sys.path.insert(0, str(EXAMPLES))  # as for `python docs/examples/add_a_callback.py`
    runpy.run_path(path, run_name="__main__")


TRAINING = sorted(
    path for path in EXAMPLES.glob("*.py") if path.stem != "score_documents"
)  # tested with `positron floor`


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem == "add_an_objective" else pytest.mark.slow)
        for path in TRAINING  # the tests below train with what the others define
    ],
    ids=lambda path: path.stem,
)
def test_the_example_runs(path, tmp_path):
    apart(run_example, str(path), str(tmp_path))
    (run,) = (tmp_path / "outputs").glob("*/run.json")
    assert json.loads(run.read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook = nbformat.read(EXAMPLES / "train_on_my_text.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("max_steps=200", "max_steps=4").replace("val_every=50", "val_every=2")
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (trained,) = (out for source, out in outputs.items() if "positron.train(" in source)
    assert trained[-1]["data"]["text/plain"] == "'finished'"
    assert "step 4/4" in str(trained) or "100%" in str(trained)
    assert any("image/png" in output.get("data", {}) for out in outputs.values() for output in out)


@pytest.mark.slow
def test_the_notebook_that_looks_inside_runs_and_shows_the_truth_beside_the_model(tmp_path, monkeypatch, run_command):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    words = [word for word in FAST if not word.startswith(("model.context_length", "tokenizer"))]
    result = run_command(
        "train", "experiment=quickstart", *words, "model.context_length=64", "train.max_steps=5", "device=cpu"
    )
    assert result.code == 0, result.err
    notebook = nbformat.read(EXAMPLES / "look_inside.ipynb", as_version=4)
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    own, needed, wasted = map(
        float, re.search(r"holds ([\d.]+) bits.*needs ([\d.]+), so it wastes ([\d.]+)", printed).groups()
    )
    assert needed > own > 0  # a divergence is positive
    assert wasted == pytest.approx(needed - own, abs=2e-3)
    assert "embedding" in printed
    assert "layer 1" in printed


def test_notebooks_hold_no_outputs_that_would_go_out_of_date():
    for path in EXAMPLES.glob("*.ipynb"):
        assert not any(cell.get("outputs") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]), path.name


@pytest.fixture
def own(tmp_path, run_command):
    """A folder with the user's own modules and configuration, and the command that is run in it."""
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "wrong.py").write_text(
        "value = 3\nclass Plain: pass\ndef step(): pass\n"
        "def broken():\n    yield 'a text'\n    raise ValueError('no rows left')\n"
    )
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "callbacks" / "mine.yaml").write_text(
        "norm:\n  _target_: add_a_callback.EmbeddingNorm\n  every: 2\n"
    )
    (tmp_path / "conf" / "model").mkdir()
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("defaults:\n  - debug\n\nn_layer: 1\n")
    return lambda *words: run_command("train", *STEPS, *words)


def columns(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_callbacks_come_from_the_command_line_or_from_ones_own_conf(own, tmp_path):
    words = ("callbacks.norm._target_=add_a_callback.EmbeddingNorm", "callbacks.norm.every=1")
    result = own(*words, "name=line")
    assert result.code == 0, result.err
    assert all("norm/embeddings" in row for row in columns(tmp_path / "outputs" / "line"))
    result = own("--config-dir", "conf", "callbacks=mine", "name=file")
    assert result.code == 0, result.err
    assert ["norm/embeddings" in row for row in columns(tmp_path / "outputs" / "file")] == [False, True, False, True]
    assert "EmbeddingNorm" not in (tmp_path / "outputs" / "file" / "config.json").read_text()


@pytest.mark.slow
def test_data_is_what_a_function_returns_and_the_run_needs_it_no_more(own, run_command, tmp_path):
    words = ("data=custom", "data._target_=add_a_data_source.sums", "name=sums", "train.sample_prompt=1")
    words = (*words, "data.options={n:300}", *(word for word in STEPS if not word.startswith("data.size_mb")))
    for chunk in (("train.stop_at=2",), ()):
        result = run_command("train", *words, *chunk)
        assert result.code == 0, result.err
    assert "resuming" in result.err
    assert "add_a_data_source" not in (tmp_path / "outputs" / "sums" / "config.json").read_text()
    (tmp_path / "add_a_data_source.py").unlink()
    assert run_command("evaluate", "--run", "sums").code == 0
    other = tmp_path / "add_a_data_source.py"
    other.write_text("def sums(n):\n    return ['other text'] * n\n")
    result = run_command("train", *words)
    assert result.code == 2
    assert "has changed" in result.err


@pytest.mark.slow
def test_conversations_are_what_a_function_returns(own, run_command, tmp_path):
    assert own("name=base", "model.context_length=64").code == 0
    (tmp_path / "talks.py").write_text(
        "def talks():\n    return [{'instruction': f'{i}?', 'output': f'It is {i}.'} for i in range(30)]\n"
    )
    words = ("init_from=base", "data=custom", "data._target_=talks.talks", "sft.replay_ratio=0", "train.max_steps=2")
    result = run_command("sft", *words, "device=cpu", "precision=fp32", "name=tuned")
    assert result.code == 0, result.err
    assert "30 conversations" in result.err


def test_ones_own_conf_may_hold_any_choice(own, tmp_path):
    result = own("--config-dir", "conf", "model=mine", "name=own")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    "target", [pytest.param("torch.optim.SGD", marks=pytest.mark.slow), "add_an_optimizer.SignDescent"]
)
def test_any_torch_optimizer_trains_and_continues_as_if_never_stopped(own, tmp_path, target):
    words = ("optimizer=custom", f"optimizer._target_={target}", "optimizer.options={momentum:0.8}")
    if target == "torch.optim.SGD":
        words = (*words[:2], "optimizer.options.momentum=0.9")
    for name, chunks in (("whole", [()]), ("stopped", [("train.stop_at=2",), ()])):
        for chunk in chunks:
            result = own(*words, f"name={name}", *chunk)
            assert result.code == 0, result.err
    losses = [[row["train/loss"] for row in columns(tmp_path / "outputs" / name)] for name in ("whole", "stopped")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_class_that_does_not_fit_costs_a_line_and_leaves_no_run(own, tmp_path):
    for words, message in (
        (
            ("optimizer=custom", "optimizer._target_=wrong.Plain"),
            "is not a torch optimizer: name a subclass of torch.optim.Optimizer",
        ),
        (("callbacks.x._target_=wrong.Plain",), "is not a callback: name a subclass of lightning.Callback"),
        (("data._target_=add_a_data_source.sums",), "read by data=custom"),
        (("optimizer._target_=torch.optim.RAdam",), "optimizer=custom"),
        (("callbacks=mine",), "there is no callbacks=mine"),
    ):
        result = own(*words, "name=refused")
        assert result.code == 2, result.err
        assert message in result.err.splitlines()[-1]
        assert not (tmp_path / "outputs" / "refused").exists()


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A module of the user's in which nothing fits."""
    (tmp_path / "misfits.py").write_text(
        "value = 3\nclass Plain: pass\ndef step(): pass\n"
        "def broken():\n    yield 'a text'\n    raise ValueError('no rows left')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"every": 2},
            "callbacks.x needs a class: give callbacks.x._target_=my_module.MyCallback, and callbacks.x.NAME=VALUE",
        ),
        ({"_target_": "misfits.Plain"}, "is not a callback: name a subclass of lightning.Callback"),
        ({"_target_": "misfits.Absent"}, "has no attribute Absent"),
        ({"_target_": "absent.Plain"}, "No module named 'absent'"),
        ({"_target_": "Plain"}, "must name a module"),
        (
            {"_target_": "add_a_callback.EmbeddingNorm", "often": 1},
            r"give the arguments as callbacks\.x\.NAME=",
        ),
    ],
)
def test_a_callback_that_cannot_be_made_is_named(modules, entry, message):
    with pytest.raises(UserError, match=message):
        make_callbacks({"x": entry})


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("misfits.Plain", None, "is not a torch optimizer: name a subclass of torch.optim.Optimizer"),
        ("torch.optim.Radam", None, "has no attribute Radam: did you mean torch.optim.RAdam?"),
        ("sys.RAdam", None, "the module sys has no attribute RAdam: correct the name"),
        ("RAdam", None, "optimizer._target_=my_module.RAdam"),
        ("torch.optim.LBFGS", None, "several times per step"),
        ("torch.optim.SGD", {"a": 1}, "refuses its arguments"),
        ("torch.optim.SGD", {"momentum": -1}, "Invalid momentum"),
        ("torch.optim.SGD", {"weight_decay": 0.01}, "no effect.*: give optimizer.weight_decay=0.01 instead"),
        ("torch.optim.SGD", {"lr": 0.1}, "no effect.*: give optimizer.lr=0.1 instead"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_named(modules, target, options, message):
    with pytest.raises(UserError, match=message):
        refuse_unusable(OptimizerConfig(kind="custom", weight_decay=0.0, _target_=target, options=options), "fp32")


@pytest.mark.parametrize("target", ["SGD", "AdamW", "Adagrad"])
def test_a_fused_optimizer_is_refused_in_fp16_where_it_would_clip_scaled_gradients(target):
    name = f"torch.optim.{target}"
    plain = OptimizerConfig(kind="custom", weight_decay=0.0, _target_=name)
    fused = OptimizerConfig(kind="custom", weight_decay=0.0, _target_=name, options={"fused": True})
    for config, precision in ((plain, "fp16"), (fused, "bf16"), (fused, "fp32")):
        refuse_unusable(config, precision)
    with pytest.raises(UserError, match="leave fused out"):
        refuse_unusable(fused, "fp16")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"_target_": "platform.system"}, "data._target_=platform.system returns the type str, not a list"),
        ({}, "data=custom needs data._target_=my_module.my_function"),
        ({"_target_": "misfits.value"}, "is of type int, not a function"),
        ({"_target_": "misfits.step"}, "returns the type NoneType, not a list or generator"),
        ({"_target_": "builtins.dict", "options": {"train": ["a"]}}, "builtins.dict returns the type dict, not a list"),
        (
            {"_target_": "add_a_data_source.sums", "options": {"m": 1}},
            "raised TypeError: .*; correct the function, or its arguments in data.options=",
        ),
        ({"_target_": "misfits.broken"}, "misfits.broken raised ValueError: no rows left; correct the function"),
    ],
)
def test_a_function_that_gives_no_text_is_named(modules, data, message):
    with pytest.raises(UserError, match=message):
        write_custom_data({"data": {"source": "custom", "dir": "data", **data}})


def test_settings_of_other_optimizers_are_refused():
    with pytest.raises(UserError, match=r"needs optimizer\._target_=module\.Class"):
        OptimizerConfig(kind="custom")
    words = ["optimizer=custom", "optimizer._target_=torch.optim.RAdam", "optimizer.betas=[0.1,0.2]", "name=x"]
    with pytest.raises(UserError, match="not by optimizer=custom"):
        compose("train", words)
