"""ONNX graphs compute the model's logits in onnxruntime, for all options, at all lengths, in one piece or many."""

import contextlib
import io
import re
import sys

import numpy as np
import pytest
import torch
from saved_runs import SHAPES, gpt_config, greedy, random_model, save_run, sentencepiece

from positron.interop import onnx_file
from positron.interop.formats import export
from positron.interop.source import open_source
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CONTEXT = 48
SMEAR = {**SHAPES["qwen3_window"], "smear": True, "n_kv_head": 2}  # with a window of 5
QUANTISED = {"d_model": 64, "n_head": 4, **SHAPES["gpt2"]}


def made(folder, shape, **more):
    tokenizer = sentencepiece()
    model = random_model(gpt_config(tokenizer.vocab_size, **{"context_length": CONTEXT, **shape}))
    return open_source(save_run(folder / "run", model, tokenizer, **more))


def check(source, folder):
    """Compare both graphs with the model at batches 1 and 3 and at lengths from one token to the whole context."""
    config, model = source.config, source.model
    plain, cached = (onnxruntime.InferenceSession(folder / name) for name in (onnx_file.PLAIN, onnx_file.CACHED))
    generator = torch.Generator().manual_seed(5)
    for batch, length in [(1, 1), (3, 1), (1, 4), (3, 17), (1, CONTEXT), (3, CONTEXT)]:
        ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
        expected = model(ids).numpy()
        (logits,) = plain.run(None, {"ids": ids.numpy()})
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4
        keys = values = np.zeros((config.n_layer, batch, config.kv_heads, 0, config.d_head), np.float32)
        before = 0
        for stop in sorted({1, length // 2, length - 1, length} - {0}):
            inputs = {"ids": ids[:, before:stop].numpy(), "past_keys": keys, "past_values": values}
            if config.smear:
                inputs["previous_ids"] = ids[:, max(0, before - 1) : max(1, before)].numpy()
            logits, keys, values = cached.run(None, inputs)
            assert keys.shape[3] == values.shape[3] == stop
            assert np.abs(logits - expected[:, stop - 1]).max() < 1e-4
            before = stop


def program_of_the_card(folder, monkeypatch):
    """Run the program that the exported README prints; return the ids it wrote."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names["ids"]


@pytest.mark.slow
def test_smear_and_a_window_are_in_both_graphs_and_the_card_writes_greedily(tmp_path, monkeypatch, capfd):
    pytest.importorskip("tokenizers")
    source = made(tmp_path, SMEAR)
    difference = export(source, "onnx", tmp_path / "out")
    output = capfd.readouterr()
    assert not output.out
    assert not output.err  # what the exporter says of itself
    assert difference < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "model_cached.onnx",
        "tokenizer.json",
        "README.md",
    }
    assert b".py" not in (tmp_path / "out" / "model.onnx").read_bytes()  # no paths of this machine
    check(source, tmp_path / "out")
    ids = program_of_the_card(tmp_path / "out", monkeypatch)
    prompt = [source.tokenizer.special_id(END_OF_TEXT), *source.tokenizer.encode("Once upon a time")]
    assert ids[: len(prompt)] == prompt
    assert len(ids) == CONTEXT
    assert ids == prompt + greedy(source.model, prompt, CONTEXT - len(prompt))


@pytest.mark.slow
def test_rounding_to_8_bits_keeps_the_likeliest_token_almost_everywhere(tmp_path):
    source = made(tmp_path, QUANTISED)
    difference = export(source, "onnx", tmp_path / "out", "int8")
    assert 1e-4 < difference < 2
    session = onnxruntime.InferenceSession(tmp_path / "out" / onnx_file.PLAIN)
    ids = torch.randint(source.config.vocab_size, (3, CONTEXT), generator=torch.Generator().manual_seed(6))
    (logits,) = session.run(None, {"ids": ids.numpy()})
    expected = source.model(ids).numpy()
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.85
    assert np.abs(logits - expected).mean() < 0.1 * expected.std()


@pytest.mark.slow
def test_a_context_of_one_token_has_a_graph(tmp_path):
    assert export(made(tmp_path, {"context_length": 1}), "onnx", tmp_path / "out") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_onnxruntime_computes_the_logits_of_every_architecture(name, tmp_path):
    source = made(tmp_path, SHAPES[name])
    assert export(source, "onnx", tmp_path / "out") < 1e-4
    check(source, tmp_path / "out")


def test_an_unknown_rounding_names_the_formats_that_have_it(tmp_path):
    with pytest.raises(
        UserError, match=r"--to onnx has only f32, int8: leave --precision out, or give --to gguf or ollama$"
    ):
        export(made(tmp_path, {}), "onnx", tmp_path / "out", "q8_0")


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'positron\[onnx\]'$"):
        export(made(tmp_path, {}), "onnx", tmp_path / "out")


def test_a_model_above_the_limit_of_a_file_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="smaller than 2 GB"):
        export(made(tmp_path, {}), "onnx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
