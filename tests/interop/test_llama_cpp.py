"""llama.cpp runs the GGUF files: the same ids of a text, the same greedy text, the same prompt of a chat.

`POSITRON_LLAMA_CPP` is the node_modules folder of node-llama-cpp, which brings llama.cpp itself, built for this platform:
npm install --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import (
    SHAPES,
    byte_pairs,
    char,
    corpus,
    gpt_config,
    greedy,
    imported_bytes,
    imported_pieces,
    odd_lines,
    random_model,
    save_run,
    sentencepiece,
)

from positron.interop import gguf_file
from positron.interop.formats import export
from positron.interop.rules import to_ours
from positron.interop.source import open_source
from positron.model.gpt import GPT
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

gguf = pytest.importorskip("gguf")
MODULES = os.environ.get("POSITRON_LLAMA_CPP", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("node") is None or not (Path(MODULES) / "node-llama-cpp").is_dir(),
        reason="POSITRON_LLAMA_CPP names no node_modules folder with node-llama-cpp, or Node.js is not installed",
    ),
]
MODELS: dict[str, dict[str, Any]] = {
    **{name: SHAPES[name] for name in ("gpt2", "llama", "arcee", "qwen3", "apertus")},
    "gpt2_sinusoidal": {"position": "sinusoidal", "n_kv_head": 2, "tie_embeddings": False},
    "starcoder2": {"position": "rope", "bias": True, "n_kv_head": 2},
    "llama_untied": {**SHAPES["llama"], "n_kv_head": 2, "tie_embeddings": False},
    "qwen3_scale": {**SHAPES["qwen3"], "qk_scale": True, "head_dim": 16, "rope_base": 1e6, "norm_eps": 1e-6},
}
TOKENIZERS = {
    "sentencepiece": sentencepiece,
    "r50k_base": lambda: byte_pairs("r50k_base"),
    "cl100k_base": lambda: byte_pairs("cl100k_base"),
    "char": char,
    "imported_llama2": imported_pieces,
    "imported_gpt2": lambda: imported_bytes("gpt-2"),
    "imported_smollm": lambda: imported_bytes("smollm"),
    "imported_qwen2": lambda: imported_bytes("qwen2"),
    "imported_llama3": lambda: imported_bytes("llama-bpe"),
}
CONTEXT, COUNT = 256, 100  # llama.cpp makes a context a multiple of 256
MESSAGES = [("system", "Be  brief.\n"), ("user", "A {{x}} <b> 😀?"), ("assistant", "No."), ("user", " Why?")]


def run_llama_cpp(folder: Path, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what llama.cpp gives for each job, by the path of its model."""
    program = Path(__file__).with_name("with_llama_cpp.mjs")
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = ["node", str(program), MODULES, str(folder / "jobs.json"), str(folder / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [[tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(text)] for text in (corpus()[0][:60], "Once")]


def lines(tokenizer: Tokenizer, count: int) -> list[str]:
    """Return odd lines; of a vocabulary of characters only those without unknown ones, which llama.cpp leaves out."""
    drawn = [line for line in (*odd_lines(count), "a<think>b") if "\x00" not in line]
    if tokenizer is imported_bytes("qwen2"):  # llama.cpp does not bring a text into the normal form C
        drawn = [line for line in drawn if unicodedata.is_normalized("NFC", line)]
    return [line for line in drawn if 0 not in tokenizer.encode(line)] if tokenizer.has_unknown else drawn


def of_file(model: GPT, path: Path) -> GPT:
    """Return the model with the weights of a GGUF file, rounded as they are there."""
    rounded = GPT(model.config).eval().requires_grad_(False)
    tensors = {
        tensor.name: torch.from_numpy(
            gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist()).copy()
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
    rounded.load_state_dict(to_ours(gguf_file.choose(model.config).rules(model.config), tensors))
    return rounded


def shortfall(model: GPT, prompt: list[int], written: list[int]) -> float:
    """Return by how much the logit of a written token is below the largest one of ours, at most; 0 if all are the likeliest."""
    logits = model(torch.tensor([prompt + written]))[0, len(prompt) - 1 : -1]
    return float((logits.max(-1).values - logits.gather(1, torch.tensor(written)[:, None])[:, 0]).max())


def test_every_architecture_writes_what_positron_writes(tmp_path, capsys):
    jobs, expected = [], {}
    for number, (name, shape) in enumerate(MODELS.items()):
        tokenizer = list(TOKENIZERS.values())[number % 4]()
        model = random_model(gpt_config(tokenizer.vocab_size, **{"context_length": CONTEXT, **shape}))
        source = open_source(save_run(tmp_path / name, model, tokenizer))
        for precision in ("f32", "f16"):
            folder = tmp_path / f"{name}-{precision}"
            export(source, "gguf", folder, precision)
            path = folder / gguf_file.FILE
            given = prompts(tokenizer)
            jobs.append({"path": str(path), "context": CONTEXT, "prompts": given, "count": COUNT, "texts": []})
            exact = of_file(model, path)
            expected[str(path)] = (name, precision, exact, given)
    results = run_llama_cpp(tmp_path, jobs)
    for path, (name, precision, model, given) in expected.items():
        got = results[path]["greedy"]
        assert results[path]["architecture"] == name.partition("_")[0]
        assert [len(ids) for ids in got] == [COUNT] * len(given)
        ours = [greedy(model, prompt, COUNT) for prompt in given]
        same = sum(a == b for mine, theirs in zip(ours, got, strict=True) for a, b in zip(mine, theirs, strict=True))
        below = max(shortfall(model, prompt, ids) for prompt, ids in zip(given, got, strict=True))
        with capsys.disabled():
            architecture = results[path]["architecture"]
            print(f"\n{name:16} {precision} {architecture:10} {same}/{len(given) * COUNT} {below:.1e}", end="")
        # The logits of random weights are close to each other: where a sum is rounded otherwise, the second may win. llama.cpp
        # takes GELU from a table of fp16, and rounds what it multiplies with fp16 matrices.
        is_exact = precision == "f32" and model.config.activation != "gelu"
        assert below < (1e-3 if is_exact else 2e-2), (name, precision)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_odd_lines_and_chats_have_the_ids_of_positron(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    model = random_model(gpt_config(tokenizer.vocab_size, context_length=CONTEXT, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, tokenizer, chat=True)), "gguf", tmp_path / "out")
    path = str(tmp_path / "out" / gguf_file.FILE)
    texts = lines(tokenizer, 2000)
    assert len(texts) > 900
    said = [Message(*turn) for turn in MESSAGES]
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    job = {"path": path, "context": CONTEXT, "prompts": [], "count": 0, "texts": texts, "messages": messages}
    result = run_llama_cpp(tmp_path, [job])[path]
    ours = [list(ids) for ids in tokenizer.encode_batch(texts)]
    assert [text for text, ids, theirs in zip(texts, ours, result["ids"], strict=True) if ids != theirs] == []
    assert result["begin"] == tokenizer.special_id(END_OF_TEXT)
    if not tokenizer.has_unknown:  # a vocabulary of characters has no piece for the emoji
        assert result["chat"] == conversation.prompt_ids(said, tokenizer)
