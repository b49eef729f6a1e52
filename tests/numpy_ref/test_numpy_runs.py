"""A Positron run through numpy_ref: the exported weights give the same text, and scripts/verify_run.py proves it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, PROJECT, CommandProcess

import numpy_ref
from numpy_ref.config import InputError
from numpy_ref.generate import complete as write
from positron.inference.text_model import Writer
from positron.run.folder import Run
from positron.run.load import load_model

ARCHITECTURES = {
    "plain": ("tokenizer=char", "model.bias=true"),
    "modern": (
        "tokenizer=spm_2k",
        "model.norm=rmsnorm",
        "model.position=rope",
        "model.activation=swiglu",
        "model.n_kv_head=2",
        "model.qk_norm=true",
        "model.smear=true",
        "model.tie_embeddings=false",
    ),
}


@pytest.fixture(scope="module", params=["plain", pytest.param("modern", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    arguments = (
        "model=debug",
        *(option for option in FAST if not option.startswith("tokenizer")),
        "train.max_steps=10",
        "optimizer.lr=1e-2",
        "name=x",
        *ARCHITECTURES[request.param],
    )
    made = CommandProcess("train", arguments, folder, "", {}).wait()
    assert made.code == 0, made.err
    return folder / "outputs" / "x"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "outputs" / "x")


def verify_run() -> Any:
    spec = importlib.util.spec_from_file_location("verify_run", PROJECT / "scripts" / "verify_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_numpy_writes_the_torch_models_text_and_verify_run_shows_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, config, tokenizer = numpy_ref.from_torch_run(run)
    model, torch_tokenizer, _ = load_model(Run(run))
    for prompt in ("Once upon a time", "Tom", ""):
        wanted = Writer(model, torch_tokenizer).generate(prompt, max_tokens=12, temperature=0)
        assert write(params, config, tokenizer, prompt, max_tokens=12, temperature=0.0) == wanted

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["verify_run", str(run), "--max-tokens", "10"])
    script = verify_run()
    script.main()
    out = capsys.readouterr().out
    assert "the same text" in out
    assert "DIFFERENT" not in out
    assert "gradient of blocks.1.mlp.down.weight" in out

    # a wrong model must not pass
    forward = numpy_ref.forward
    monkeypatch.setattr(
        numpy_ref, "forward", lambda params, *rest: forward({n: p * 1.001 for n, p in params.items()}, *rest)
    )
    with pytest.raises(SystemExit, match="1"):
        script.main()
    assert "DIFFERENT" in capsys.readouterr().out

    # and neither must a damaged one
    weights = run / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="beyond the end"):
        numpy_ref.from_torch_run(run)
    shutil.rmtree(run / "model")
    with pytest.raises(InputError, match=r"no model/weights\.safetensors"):
        numpy_ref.from_torch_run(run)


def test_numpy_weights_go_back_to_torch(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from positron.model.gpt import GPT

    params, _, _ = numpy_ref.from_torch_run(run)
    numpy_ref.to_safetensors(params, tmp_path / "w.safetensors")
    model, _, _ = load_model(Run(run))
    assert isinstance(model, GPT)
    back = load_file(tmp_path / "w.safetensors")
    assert back.keys() == dict(model.named_parameters()).keys()
    assert all((back[name] == p).all() for name, p in model.named_parameters())
