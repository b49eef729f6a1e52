"""numpy_ref as a program: train, resume, generate, explain, benchmark; saved files, whole or not at all; bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from safetensors.numpy import load_file, save_file

import numpy_ref
from numpy_ref import benchmark, explain, train, training
from numpy_ref import generate as writing
from numpy_ref.checkpoint import from_safetensors, read_arrays, write_arrays
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.gpt import forward, init_params
from numpy_ref.multihead import Past

PROJECT = Path(__file__).parents[2]
CONFIG = GPTConfig(vocab_size=60, context_length=8, d_model=16, n_layer=2, n_head=4, n_kv_head=2, bias=True)
TINY = ["--context", "8", "--batch", "4", "--epochs", "1"]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and the dog ran to the cat. " * 8, encoding="utf-8")
    return str(path)


def fails(capsys: pytest.CaptureFixture[str], main: Any, *arguments: str, code: int = 2) -> str:
    """The one line that a command prints before it exits."""
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments)])
    assert exit_.value.code == code
    error = capsys.readouterr().err
    assert error.startswith("numpy_ref: ")
    assert error.count("\n") == 1
    return error


# the package


def test_numpy_ref_imports_nothing_but_numpy() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'hydra', 'lightning', 'omegaconf', 'positron', 'matplotlib', 'sentencepiece'):\n"
        "    sys.modules[name] = None\n"
        "import numpy_ref, numpy_ref.train, numpy_ref.explain, numpy_ref.benchmark\n"
        "roots = {m.split('.')[0] for m in sys.modules if not m.startswith('_')} - set(sys.stdlib_module_names)\n"
        "print(sorted(r for r in roots if sys.modules.get(r) is not None))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    known = {"numpy", "numpy_ref", "threadpoolctl", "sitecustomize", "distutils-precedence", "coverage"}
    assert "numpy_ref" in out.stdout
    assert set(eval(out.stdout)) - known - {r for r in eval(out.stdout) if r.startswith("__")} == set()


def test_the_table_of_contents_names_every_file() -> None:
    files = {path.name for path in (PROJECT / "numpy_ref").glob("*.py")} - {"__init__.py"}
    for name in files:
        assert name in numpy_ref.__doc__, name


# generation

OPTIONS = [
    {},
    {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True},
    {"position": "sinusoidal", "n_kv_head": 1, "smear": True, "window": 3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_numpy_cached_logits_equal_uncached_ones_at_every_length(options: dict[str, Any]) -> None:
    config = GPTConfig(**{**vars(CONFIG), **options})
    params = init_params(config, seed=1, dtype=np.float64)
    params = {name: p + 0.1 * np.random.default_rng(7).standard_normal(p.shape) for name, p in params.items()}
    ids = np.random.default_rng(0).integers(0, 60, (3, 8))
    for prompt in range(1, 8):
        past = [Past(3, config, 8, np.float64) for _ in range(2)]
        got = [forward(params, config, ids[:, :prompt], past=past)]
        got += [forward(params, config, ids[:, t : t + 1], past=past) for t in range(prompt, 8)]
        wanted = forward(params, config, ids)
        assert np.allclose(np.concatenate(got, axis=1), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_numpy_generation_with_cache_equals_generation_without(options: dict[str, Any], temperature: float) -> None:
    config = GPTConfig(**{**vars(CONFIG), **options})
    params = {name: p * 12 for name, p in init_params(config, seed=1, dtype=np.float64).items()}
    rules = {"temperature": temperature, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}
    with_cache = list(writing.generate_ids(params, config, [1, 2, 3], 40, seed=3, **rules))
    assert with_cache == list(writing.generate_ids(params, config, [1, 2, 3], 40, seed=3, cached=False, **rules))
    assert len(with_cache) == 40  # five times the context


def test_numpy_generation_stops_and_needs_a_beginning() -> None:
    params = init_params(CONFIG, dtype=np.float64)
    first = next(writing.generate_ids(params, CONFIG, [1], 5, temperature=0))
    assert list(writing.generate_ids(params, CONFIG, [1], 5, temperature=0, stop=first)) == []
    with pytest.raises(InputError, match="empty"):
        next(writing.generate_ids(params, CONFIG, [], 5))


def test_numpy_trace_names_every_array() -> None:
    params = init_params(CONFIG)
    logits, trace = forward(params, CONFIG, np.arange(5)[None], trace=True)
    assert trace["logits"] is logits
    for name in ("blocks.0.norm1.x", "blocks.1.attn.attention.blocks.0.weights", "blocks.1.mlp.down.x", "norm_f.h"):
        assert isinstance(trace[name], np.ndarray), name
    assert not {id(p) for p in params.values()} & {id(a) for a in trace.values()}
    assert np.array_equal(forward(params, CONFIG, np.arange(5)[None]), logits)


# checkpoints


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_checkpoints_round_trip(tmp_path: Path, dtype: Any) -> None:
    params = init_params(CONFIG, seed=2, dtype=dtype)
    numpy_ref.save(CONFIG, params, tmp_path / "c.json", tmp_path / "w.npz")
    again, config = numpy_ref.load(tmp_path / "c.json", tmp_path / "w.npz")
    assert config == CONFIG
    assert all(np.array_equal(again[n], p) and again[n].dtype == p.dtype for n, p in params.items())


def test_numpy_safetensors_are_those_of_the_library(tmp_path: Path) -> None:
    params = init_params(CONFIG, seed=2)
    numpy_ref.to_safetensors(params, tmp_path / "mine.safetensors", {"made": "here"})
    theirs = load_file(tmp_path / "mine.safetensors")
    assert all(np.array_equal(theirs[n], p) for n, p in params.items())
    save_file(params, tmp_path / "theirs.safetensors")
    mine = from_safetensors(tmp_path / "theirs.safetensors")
    assert all(np.array_equal(mine[n], p) for n, p in params.items())
    from safetensors.torch import save_file as save_torch

    half = torch.tensor([1.5, -2.25, 3e38], dtype=torch.bfloat16)
    save_torch({"x": half}, tmp_path / "bf16.safetensors")
    assert np.array_equal(from_safetensors(tmp_path / "bf16.safetensors")["x"], half.float().numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("wte.weight"), "wte.weight is missing"),
        (lambda p: p.update(extra=np.zeros(3)), "extra is not part"),
        (lambda p: p.update({"norm_f.weight": np.ones(3)}), r"norm_f.weight has the shape \(3,\)"),
        (lambda p: p.update({"norm_f.weight": np.ones(16, dtype=np.int64)}), "contains int64"),
    ],
)
def test_numpy_wrong_weights_are_named(tmp_path: Path, change: Any, said: str) -> None:
    params = init_params(CONFIG)
    numpy_ref.save(CONFIG, params, tmp_path / "c.json", tmp_path / "w.npz")
    change(params)
    write_arrays(tmp_path / "w.npz", params)
    with pytest.raises(InputError, match=said):
        numpy_ref.load(tmp_path / "c.json", tmp_path / "w.npz")


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_numpy_cut_off_files_are_refused_in_one_line(tmp_path: Path, keep: float) -> None:
    numpy_ref.save(CONFIG, init_params(CONFIG), tmp_path / "c.json", tmp_path / "w.npz")
    numpy_ref.to_safetensors(init_params(CONFIG), tmp_path / "w.safetensors")
    for name, read in (("w.npz", read_arrays), ("w.safetensors", from_safetensors)):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


def test_numpy_flipped_bits_and_pickles_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "w.npz", {"x": np.arange(1000.0)})
    data = bytearray((tmp_path / "w.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"w\.npz"):
        read_arrays(tmp_path / "w.npz")
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"p\.npz"):
        read_arrays(tmp_path / "p.npz")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"d_model": 8}', '{"colour": 1}'])
def test_numpy_damaged_configurations_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=r"c\.json"):
        numpy_ref.load(tmp_path / "c.json", tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_model": 10, "n_head": 4}, "not divisible by n_head=4: try d_model=8"),
        ({"n_kv_head": 3}, "must divide"),
        ({"window": 0}, "window=0"),
        ({"norm": "batchnorm"}, "unknown: use one of layernorm, rmsnorm"),
        ({"position": "rope", "d_model": 12}, "even head"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_layer": 0}, "n_layer=0"),
    ],
)
def test_numpy_impossible_architectures_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GPTConfig(**{**vars(CONFIG), **change})


# training


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_numpy_train_then_generate(
    tmp_path: Path, text: str, tokenizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main([text, *TINY, "--tokenizer", tokenizer])
    folder = tmp_path / "outputs/numpy_ref"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "small_config.json",
        "small_weights.npz",
        "small_tokenizer.json",
        "small_training.npz",
        "training_loss.png",
    }
    assert (folder / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert "nats per token" in capsys.readouterr().out
    writing.main(["the cat", "--temperature", "0.5", "--top-k", "5", "--top-p", "0.9", "--max-tokens", "5"])
    assert capsys.readouterr().out.startswith("the cat")


@pytest.mark.slow
def test_numpy_training_learns_and_validates(text: str, tmp_path: Path) -> None:
    options = train.argument_parser().parse_args([text, "--context", "16", "--batch", "4", "--epochs", "30"])
    job = train.new_training(options)
    training.run(job, tmp_path, "x")
    assert np.mean(job.losses[-5:]) < 0.4 * job.losses[0]
    assert len(job.validations) == 30
    assert job.validations[-1][1] < job.validations[0][1]


def test_numpy_resume_is_bit_identical(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    arguments = [text, "--config", "improved", "--context", "8", "--batch", "2", "--epochs", "2", "--out"]
    train.main([*arguments, str(tmp_path / "whole")])
    steps, codes = {"n": 0}, []
    real = training.Training.step

    def interrupted(self: training.Training) -> float:
        loss = real(self)
        steps["n"] += 1
        if steps["n"] % 7 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(training.Training, "step", interrupted)
    pieces = [*arguments, str(tmp_path / "pieces")]
    with pytest.raises(SystemExit, match="130"):
        train.main(pieces)
    for _ in range(50):
        try:
            train.main(pieces)
            break
        except SystemExit as exit_:
            codes.append(exit_.code)
    assert len(codes) > 2
    assert set(codes) == {130}
    whole, pieced = (read_arrays(tmp_path / name / "improved_training.npz") for name in ("whole", "pieces"))
    assert whole.keys() == pieced.keys()
    for name in whole:
        assert np.array_equal(whole[name], pieced[name]), name


def test_numpy_batches_see_every_window_once_in_an_epoch(text: str) -> None:
    job = train.new_training(train.argument_parser().parse_args([text, *TINY]))
    seen = [tuple(row) for step in range(1, job.steps_per_epoch + 1) for row in job.batch(step)[0].tolist()]
    x, y = job.batch(3)
    assert np.array_equal(x[:, 1:], y[:, :-1])
    assert np.array_equal(job.batch(3)[0], x)
    assert not np.array_equal(job.batch(3 + job.steps_per_epoch)[0], x)
    assert len(seen) == job.steps_per_epoch * 4


@pytest.mark.slow
def test_numpy_ctrl_c_in_a_terminal_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "numpy_ref.train", "--out", str(tmp_path), "--epochs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for expected in (["step 1/"], ["continuing at step", " tokens/s"]):  # a line of speed: training is under way
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for said in expected:
            while said not in (line := process.stdout.readline()):
                assert line, f"it ended before it said {said!r}"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert "saved at step" in out
        assert err == "numpy_ref: interrupted\n"


@pytest.mark.slow
def test_numpy_the_same_command_on_a_finished_training_changes_nothing(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [text, *TINY, "--out", str(tmp_path)]
    train.main(command)
    before = read_arrays(tmp_path / "small_training.npz")
    capsys.readouterr()
    moved = Path(text).with_name("moved.txt")
    Path(text).rename(moved)
    train.main([str(moved), *command[1:]])  # the same text elsewhere is the same text
    assert "nothing to do" in capsys.readouterr().out
    after = read_arrays(tmp_path / "small_training.npz")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    command[0] = str(moved)
    assert "lr was 0.004 and is now 0.1" in fails(capsys, train.main, *command, "--lr", "0.1")
    assert "seed was 0 and is now 3" in fails(capsys, train.main, *command, "--seed", "3")
    moved.write_text("other " * 200)
    assert "has changed since" in fails(capsys, train.main, *command)
    train.main([*command, "--fresh"])
    assert "continuing" not in capsys.readouterr().out


# bad input


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"too short", "needs at least"),
        (b"caf\xe9 " * 50, "not UTF-8 at byte 3"),
    ],
)
def test_numpy_train_refuses_bad_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    assert said in fails(capsys, train.main, tmp_path / "t.txt", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lr", "-1"], "--lr -1"),
        (["--epochs", "0"], "--epochs 0"),
        (["--context", "1000"], "smaller --context"),
        (["--resume"], "cannot resume"),
        (["--resume", "--fresh"], "give only one of them"),
        (["--resume", "--long-training"], "leave --long-training out"),
        (["--seed", "-1"], "--seed -1"),
        (["--vocab-size", "50"], "--tokenizer word and bpe"),
        (["--lr", "1e30", *TINY], "lower --lr"),
    ],
)
def test_numpy_train_refuses_bad_options(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert said in fails(capsys, train.main, text, "--out", tmp_path / "o", *arguments)
    assert not (tmp_path / "o").exists()


def test_numpy_resume_refuses_other_settings_another_text_and_damage(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([text, *TINY, "--out", str(tmp_path)])
    resume = [text, "--resume", "--out", tmp_path]
    assert "started with lr=0.004, not 0.1" in fails(capsys, train.main, *resume, "--lr", "0.1")
    Path(text).write_text("other " * 200)
    assert "has changed since" in fails(capsys, train.main, *resume)
    saved = tmp_path / "small_training.npz"
    saved.write_bytes(saved.read_bytes()[:-100])
    assert "small_training.npz" in fails(capsys, train.main, *resume)


def test_numpy_generate_refuses_bad_options_and_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "train one" in fails(capsys, writing.main)
    for option, value in (("temperature", "-1"), ("top-k", "0"), ("top-p", "0"), ("min-p", "2"), ("max-tokens", "0")):
        assert f"--{option}" in fails(capsys, writing.main, f"--{option}", value)
    assert "nowhere" in fails(capsys, writing.main, "--run", "nowhere")


def test_numpy_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    write_arrays(tmp_path / "w.npz", {"x": np.arange(3.0)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_arrays(tmp_path / "w.npz", {"x": np.arange(4.0)})
    assert len(read_arrays(tmp_path / "w.npz")["x"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


# looking inside, and speed


def test_numpy_explain_prints_and_draws(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main([text, *TINY])
    capsys.readouterr()
    explain.main(["the cat", "--out", str(tmp_path / "pictures")])
    out = capsys.readouterr().out
    assert "8 tokens: <end> | t | h | e | · | c | a | t" in out
    assert out.count("layer ") >= 16
    assert "the 10 likeliest next tokens" in out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5
    assert "reads 8" in fails(capsys, explain.main, "a prompt that is too long")


def test_numpy_logit_lens_of_the_last_layer_is_the_models_answer() -> None:
    params = init_params(CONFIG, dtype=np.float64)
    logits, trace = forward(params, CONFIG, np.arange(6)[None], trace=True)
    stream = explain.residual_stream(trace, CONFIG)
    assert [name for name, _ in stream] == ["embedding", "attention 0", "mlp 0", "attention 1", "mlp 1"]
    p = explain.logit_lens(params, CONFIG, stream[-1][1])
    wanted = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    assert np.allclose(p, wanted, rtol=1e-12)
    for weights in explain.attention_maps(trace, CONFIG):
        assert weights.shape == (4, 6, 6)
        assert np.allclose(weights.sum(-1), 1)
        assert (np.triu(weights, 1) == 0).all()


def test_numpy_benchmark_runs_every_job_beside_torch(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    shape = GPTConfig(vocab_size=30, context_length=8, d_model=16, n_layer=1, n_head=2)
    monkeypatch.setattr(benchmark, "SHAPES", {"tiny": (shape, 2)})
    monkeypatch.setattr(benchmark, "TURN_S", 0.001)
    benchmark.main(["--rounds", "1"])
    out = capsys.readouterr().out
    assert "whole training step" in out
    assert "ratio" in out
