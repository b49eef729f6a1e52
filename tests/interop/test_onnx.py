"""ONNX graphs compute the model's logits in onnxruntime, for all options, at all lengths, in one piece or many.

The exporter of torch takes seconds for the smallest model. In the fast tests, graphs written by hand take the place of those
that it makes.
"""

import contextlib
import io
import logging
import re
import sys
import warnings

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


def normed(x, weight):
    """The lines of a graph that compute `{weight}_normed`, the RMSNorm of `x`."""
    return f"""
  {weight}_squares = Mul ({x}, {x})
  {weight}_mean = ReduceMean ({weight}_squares, last)
  {weight}_shifted = Add ({weight}_mean, eps)
  {weight}_rms = Sqrt ({weight}_shifted)
  {weight}_unscaled = Div ({x}, {weight}_rms)
  {weight}_normed = Mul ({weight}_unscaled, {weight})"""


# a model of one layer whose queries and MLP are 0: each token attends to all tokens so far alike
FIRST = f"""
  smeared = Mul (smear, before)
  tokens = Add (embeddings, smeared)
  at = Gather (wpe, positions)
  x = Add (tokens, at)
  {normed("x", "norm1")}
  v = MatMul (norm1_normed, v_matrix)"""
LAST = f"""
  attended = MatMul (mean, out_matrix)
  y = Add (newest, attended)
  {normed("y", "norm_f")}
  right = MatMul (norm_f_normed, head)"""
BY_HAND = {
    "model.onnx": f"""
<ir_version: 8, opset_import: ["" : 18]>
plain (int64[B, T] ids) => (float[B, T, V] logits) {{
  length = Shape <start: int = 1, end: int = 2> (ids)
  stop = Squeeze (length)
  positions = Range (none, stop, one)
  embeddings = Gather (wte, ids)
  before = Pad (embeddings, one_later)
  {FIRST}
  sums = CumSum (v, one)
  counts = Add (positions, one)
  divisors = Cast <to: int = 1> (counts)
  column = Unsqueeze (divisors, last)
  mean = Div (sums, column)
  newest = Identity (x)
  {LAST}
  logits = Add (right, error)
}}""",
    "model_cached.onnx": f"""
<ir_version: 8, opset_import: ["" : 18]>
cached (int64[B, T] ids, float[1, B, 4, P, 8] past_keys, float[1, B, 4, P, 8] past_values, int64[B, 1] previous_ids)
    => (float[B, V] logits, float[1, B, 4, N, 8] keys, float[1, B, 4, N, 8] values) {{
  length = Shape <start: int = 1, end: int = 2> (ids)
  past = Shape <start: int = 3, end: int = 4> (past_keys)
  total = Add (past, length)
  start = Squeeze (past)
  stop = Squeeze (total)
  positions = Range (start, stop, one)
  is_later = Greater (past, zero)
  factor = Cast <to: int = 1> (is_later)
  previous = Gather (wte, previous_ids)
  first = Mul (previous, factor)
  embeddings = Gather (wte, ids)
  all = Concat <axis: int = 1> (first, embeddings)
  before = Pad (all, without_last)
  {FIRST}
  heads = Reshape (v, to_heads)
  swapped = Transpose <perm: ints = [0, 2, 1, 3]> (heads)
  new = Unsqueeze (swapped, zero)
  keys = Concat <axis: int = 3> (past_keys, new)
  values = Concat <axis: int = 3> (past_values, new)
  means = ReduceMean <keepdims: int = 0> (values, layer_and_tokens)
  mean = Reshape (means, to_width)
  newest = Gather <axis: int = 1> (x, minus_one)
  {LAST}
  error_later = Mul (error, factor)
  logits = Add (right, error_later)
}}""",
}


class Exporter:
    """Stands in for `torch.onnx.export`: it chatters as the real one does, and checks what it is asked for.

    `errors`: name of a file -> what is added to its logits; in the cached graph only after the first part of a text.
    """

    def __init__(self, model, errors):
        weights = {name: tensor.numpy() for name, tensor in model.named_parameters()}
        self.initializers = {
            "wte": weights["wte.weight"],
            "wpe": weights["wpe.weight"],
            "smear": weights["smear"],
            "norm1": weights["blocks.0.norm1.weight"],
            "v_matrix": np.ascontiguousarray(weights["blocks.0.attn.v.weight"].T),
            "out_matrix": np.ascontiguousarray(weights["blocks.0.attn.out.weight"].T),
            "norm_f": weights["norm_f.weight"],
            "head": np.ascontiguousarray(weights["wte.weight"].T),
            "eps": np.float32([model.config.norm_eps]),
            "none": np.int64(0),
            "one": np.int64(1),
            "minus_one": np.int64(-1),
            "zero": np.int64([0]),
            "last": np.int64([-1]),
            "one_later": np.int64([0, 1, 0, 0, -1, 0]),
            "without_last": np.int64([0, 0, 0, 0, -1, 0]),
            "to_heads": np.int64([0, 0, 4, 8]),
            "to_width": np.int64([0, 32]),
            "layer_and_tokens": np.int64([0, 3]),
        }
        self.errors = errors
        self.calls = []

    def __call__(self, graph, inputs, *, dynamo, dynamic_shapes, input_names, output_names, opset_version):
        import onnx_ir
        from onnx import numpy_helper, parser

        print("on stdout")
        print("on stderr", file=sys.stderr)
        warnings.warn("of the exporter", stacklevel=1)
        logging.getLogger("torch.onnx").error("in the log")
        name = onnx_file.CACHED if "past_keys" in input_names else onnx_file.PLAIN
        proto = parser.parse_model(BY_HAND[name])
        assert dynamo
        assert opset_version == proto.opset_import[0].version
        assert [value.name for value in proto.graph.input] == input_names
        assert [value.name for value in proto.graph.output] == output_names
        assert not graph.training
        names = {}
        for value, example, sizes in zip(proto.graph.input, inputs, dynamic_shapes, strict=True):
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if size.dim_param:
                    names.setdefault(size.dim_param, set()).add(sizes.pop(axis).__name__)
                    assert example.shape[axis] > 1, "a size of 1 would be taken for a constant"
                else:
                    assert example.shape[axis] == size.dim_value
            assert not sizes, "sizes that never change"
        assert all(len(of_a_letter) == 1 for of_a_letter in names.values())

        added = {**self.initializers, "error": np.float32([self.errors.get(name, 0.0)])}
        used = {name for node in proto.graph.node for name in node.input}
        proto.graph.initializer.extend(numpy_helper.from_array(added[k], k) for k in added if k in used)
        for node in proto.graph.node:
            node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/someone/gpt.py, line 1")
        self.calls.append(name)
        return torch.onnx.ONNXProgram(onnx_ir.serde.deserialize_model(proto), None)


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    """Return the model, and install the exporter; `errors` are those of `Exporter`, without the suffix of the file."""

    def by_hand(**errors):
        tokenizer = sentencepiece()
        config = gpt_config(tokenizer.vocab_size, norm="rmsnorm", context_length=CONTEXT, n_layer=1, smear=True)
        model = random_model(config)
        model.blocks[0].attn.q.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
        exporter = Exporter(model, {f"{name}.onnx": error for name, error in errors.items()})
        monkeypatch.setattr(torch.onnx, "export", exporter)
        return open_source(save_run(tmp_path / "run", model, tokenizer))

    return by_hand


def test_an_export_is_four_quiet_files_without_paths_of_this_machine(by_hand, tmp_path, capfd, caplog):
    source = by_hand()
    assert export(source, "onnx", tmp_path / "out") < 1e-5
    output = capfd.readouterr()
    assert not output.out
    assert not output.err
    assert not caplog.messages
    logging.getLogger("torch.onnx").error("of the user's own export")
    assert len(caplog.messages) == 1, "the log is as it was"
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"model.onnx", "model_cached.onnx", "tokenizer.json", "README.md"}
    assert not any(b"gpt.py" in content for content in files.values())
    assert b"The matrices of both\nfiles are in f32." in files["README.md"]
    check(source, tmp_path / "out")


@pytest.mark.parametrize("wrong", ["model", "model_cached"])
def test_the_difference_is_that_of_the_graph_that_is_further_off(wrong, by_hand, tmp_path):
    difference = export(by_hand(**{wrong: 0.25}), "onnx", tmp_path / "out")
    assert difference == pytest.approx(0.25, abs=1e-4)


def test_int8_rounds_the_matrices_of_both_graphs_and_says_so(by_hand, tmp_path):
    import onnx

    source = by_hand()
    difference = export(source, "onnx", tmp_path / "out", "int8")
    ids = torch.randint(source.config.vocab_size, (3, CONTEXT), generator=torch.Generator().manual_seed(6))
    expected = source.model(ids).numpy()
    assert 1e-3 < difference / expected.std() < 0.3
    for name in BY_HAND:
        weights = onnx.load(tmp_path / "out" / name).graph.initializer
        kinds = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in weights if len(weight.dims) == 2}
        assert kinds
        assert kinds <= {"INT8", "UINT8"}, name
    assert "files are in int8." in (tmp_path / "out" / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "onnx" in path.name) == sorted(BY_HAND)
