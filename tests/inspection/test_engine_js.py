"""The engine of the page computes what torch does, for every option of GPTConfig, with WebAssembly and without."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from interop.saved_runs import char, gpt_config, random_model

from positron.config import Activation, Norm, Position
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inspection.packed_weights import engine_config, pack, restored
from positron.model.gpt import GPT

STATIC = Path(__file__).parents[2] / "positron" / "inspection" / "static"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")

RMS = {"norm": "rmsnorm", "position": "rope"}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"bias": True},
    "untied": {"tie_embeddings": False},
    "sinusoidal": {"position": "sinusoidal", "bias": True, "activation": "swish"},
    "rope_layernorm": {"position": "rope", "bias": True, "activation": "relu"},
    "rmsnorm_learned": {"norm": "rmsnorm", "activation": "relu2"},
    "llama": {**RMS, "activation": "swiglu"},
    "llama_with_biases": {**RMS, "activation": "swiglu", "bias": True, "n_kv_head": 2, "tie_embeddings": False},
    "one_kv_head": {**RMS, "n_kv_head": 1},
    "window": {**RMS, "window": 5},
    "qk_norm": {**RMS, "qk_norm": True, "activation": "relu2"},
    "qk_norm_learned": {"qk_norm": True},
    "qk_scale": {**RMS, "qk_norm": True, "qk_scale": True, "n_kv_head": 2},
    "qk_scale_without_rope": {"qk_norm": True, "qk_scale": True},
    "head_dim": {**RMS, "head_dim": 20, "activation": "swiglu"},
    "rope_base": {**RMS, "rope_base": 500.0},
    "norm_eps": {"norm_eps": 0.1, "qk_norm": True},
    "smear": {**RMS, "smear": True},
    "odd_sizes": {**RMS, "d_model": 36, "n_head": 6, "n_kv_head": 3, "d_ff": 50, "smear": True, "window": 7},
    "d_ff": {"d_ff": 24, "activation": "gelu"},
    "quickstart": {**RMS, "activation": "relu2", "qk_norm": True, "smear": True},
}
FIELDS = {"norm": Norm, "position": Position, "activation": Activation}
VALUES = [(field, value) for field, kind in FIELDS.items() for value in get_args(kind)]
SHAPES |= {f"{f}={v}": {f: v} for f, v in VALUES if not any((f, v) in shape.items() for shape in SHAPES.values())}
VOCABULARY = 40
SAMPLING = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
# of the trained kind: precision of the matrices and the largest difference of the logits
PRECISIONS = {"fp16": 1e-2, 8: None, 14: 1e-2, 16: 1e-3}


def given(model: GPT, precision="fp32", **more) -> dict:
    weights = pack(model, precision)
    ids = torch.randint(model.config.vocab_size, (16,), generator=torch.Generator().manual_seed(1)).tolist()
    content = base64.b64encode(weights.content).decode()
    config = engine_config(model.config)
    return {"config": config, "tensors": weights.tensors, "content": content, "ids": ids, "greedy": 20, **more}


def rounded(model: GPT, precision) -> GPT:
    """The model with the matrices that the engine computes with."""
    copy = GPT(model.config).eval().requires_grad_(False)
    tensors = {
        name: torch.from_numpy(restored(value.numpy(), precision)) if value.ndim == 2 else value
        for name, value in model.state_dict().items()
    }
    copy.load_state_dict(tensors)
    return copy


def ablated(model: GPT, ablations: list[dict]) -> GPT:
    """The model with zeros for the weights through which these parts act."""
    copy = GPT(model.config).eval().requires_grad_(False)
    copy.load_state_dict(model.state_dict())
    for ablation in ablations:
        block, part, d = copy.blocks[ablation["layer"]], ablation["part"], model.config.d_head
        if part == "mlp":
            linear, columns = block.mlp.down, slice(None)
        else:
            linear = block.attn.out
            columns = slice(None) if part == "attn" else slice(part * d, (part + 1) * d)
        linear.weight[:, columns] = 0
        if part in ("attn", "mlp") and linear.bias is not None:
            linear.bias.zero_()
    return copy


ABLATIONS = {
    "head": [{"layer": 0, "part": 1}],
    "attn": [{"layer": 1, "part": "attn"}, {"layer": 0, "part": 3}],
    "mlp": [{"layer": 0, "part": "mlp"}],
}
ABLATED_SHAPE = {"bias": True, "n_kv_head": 2}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What the engine computed for all cases, in one process of node."""
    folder = tmp_path_factory.mktemp("engine")
    models = {name: random_model(gpt_config(VOCABULARY, **shape)) for name, shape in SHAPES.items()}
    cases = {("shape", name): given(model) for name, model in models.items()}
    cases |= {("precision", p): given(models["quickstart"], p) for p in PRECISIONS}
    trained_like = random_model(gpt_config(VOCABULARY, **ABLATED_SHAPE))
    cases |= {("ablation", name): given(trained_like, ablations=parts) for name, parts in ABLATIONS.items()}
    cases["sampling", ""] = given(random_model(gpt_config(char().vocab_size)), sampling=SAMPLING, seed=7)
    known = given(models["gpt2"])
    cases |= {("refused", field): {**known, "config": {**known["config"], field: "invented"}} for field in FIELDS}
    (folder / "cases.json").write_text(json.dumps(list(cases.values())))
    script = Path(__file__).with_name("engine_cases.mjs")
    command = [NODE, script, STATIC, folder / "cases.json", folder / "out.json"]
    subprocess.run(list(map(str, command)), check=True, timeout=300)
    answer = json.loads((folder / "out.json").read_text())
    assert answer["valid"]
    assert answer["compiled"]
    return {key: (cases[key], result) for key, result in zip(cases, answer["results"], strict=True)}


def floats(text: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(shape).copy())


def difference(result: dict, model: GPT, ids: list[int]) -> float:
    logits = model(torch.tensor([ids]))[0]
    return float((floats(result["logits"], *logits.shape) - logits).abs().max())


def greedy(model: GPT, ids: list[int], count: int) -> list[int]:
    sampling = Sampling(temperature=0, top_p=None)
    stream = Engine(model, char()).ids([ids], sampling, max_tokens=count, stop_ids=[], seed=0)
    return [i for (i,) in stream if i is not None]


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_computes_the_logits_and_the_greedy_text_of_torch(computed, name, kernels):
    case, result = computed["shape", name]
    model = random_model(gpt_config(VOCABULARY, **SHAPES[name]))
    assert difference(result[kernels], model, case["ids"]) < 1e-4
    # past the context length, too: both read the last half of the text again
    assert result[kernels]["greedy"] == greedy(model, case["ids"][:4], case["greedy"])


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
@pytest.mark.parametrize("field", FIELDS)
def test_the_engine_refuses_a_value_that_it_does_not_know(computed, field, kernels):
    assert computed["refused", field][1][kernels]["error"].startswith(f"model.{field}=invented: ")


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounded_weights_give_the_logits_of_torch_with_the_same_rounded_weights(computed, precision, kernels):
    case, result = computed["precision", precision]
    model = random_model(gpt_config(VOCABULARY, **SHAPES["quickstart"]))
    assert difference(result[kernels], rounded(model, precision), case["ids"]) < 1e-4
    limit = PRECISIONS[precision]
    if limit is not None:
        assert difference(result[kernels], model, case["ids"]) < limit


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablated_part_has_no_effect_on_the_logits(computed, name, kernels):
    case, result = computed["ablation", name]
    model = random_model(gpt_config(VOCABULARY, **ABLATED_SHAPE))
    assert difference(result[kernels], ablated(model, ABLATIONS[name]), case["ids"]) < 1e-4
    assert difference(result[kernels], model, case["ids"]) > 1e-2


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
@pytest.mark.parametrize("name", ["window", "qk_norm", "one_kv_head", "smear", "gpt2"])
def test_the_engine_reports_attention_and_residual_stream_of_torch(computed, name, kernels):
    case, result = computed["shape", name]
    model = random_model(gpt_config(VOCABULARY, **SHAPES[name]))
    streams: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0][0]))
        block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.norm_f.register_forward_pre_hook(lambda _, args: streams.append(args[0][0]))
    T = len(case["ids"])
    model(torch.tensor([case["ids"]]))
    rms = torch.stack([x.square().mean(-1).sqrt() for x in streams])
    torch.testing.assert_close(floats(result[kernels]["residual"], *rms.shape), rms, atol=1e-5, rtol=1e-5)
    rope = (model.cos[:T], model.sin[:T]) if model.config.has_rope else None
    expected = []
    for block, x in zip(model.blocks, inputs, strict=True):
        q, k, _ = block.attn.heads(x, rope)
        k = k.repeat_interleave(model.config.n_head // model.config.kv_heads, dim=1)
        scores = (q @ k.transpose(-1, -2))[0] / model.config.d_head**0.5
        behind = torch.arange(T)[:, None] - torch.arange(T)
        window = model.config.window or T
        expected.append(scores.masked_fill((behind < 0) | (behind >= window), -torch.inf).softmax(-1))
    attention = torch.stack(expected)
    torch.testing.assert_close(floats(result[kernels]["attention"], *attention.shape), attention, atol=1e-5, rtol=1e-4)


@needs_node
@pytest.mark.parametrize("kernels", ["wasm", "js"])
def test_a_seed_draws_the_tokens_that_generate_draws(computed, kernels):
    case, result = computed["sampling", ""]
    model = random_model(gpt_config(char().vocab_size))
    stream = Engine(model, char()).ids(
        [case["ids"][:4]], Sampling(**SAMPLING), max_tokens=case["greedy"], stop_ids=[], seed=7
    )
    assert result[kernels]["sampled"] == [i for (i,) in stream]


@needs_node
def test_engine_wasm_holds_the_bytes_of_engine_wat(tmp_path):
    compiler = shutil.which("wat2wasm")
    if compiler is None:
        pytest.skip("wat2wasm (WABT) is not installed")
    subprocess.run([compiler, STATIC / "engine.wat", "-o", tmp_path / "engine.wasm"], check=True, timeout=60)
    assert (tmp_path / "engine.wasm").read_bytes() == (STATIC / "engine.wasm").read_bytes()
