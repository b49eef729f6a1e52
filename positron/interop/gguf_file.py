"""Write a run as a GGUF file, the format of llama.cpp, Ollama and LM Studio, with the `gguf` package.

llama.cpp fixes the activation function of each architecture, so it can run fewer of Positron's models than transformers can.
In llama.cpp's architectures llama and arcee, RoPE rotates the pairs (2 i, 2 i + 1) of a head's D numbers. Positron rotates the
pairs (i, i + D/2). Therefore the rows of the query and key matrices are reordered for these two architectures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never, get_args

import numpy as np
import torch

from positron.config import GPTConfig
from positron.interop.gguf_tokenizer import add_tokenizer
from positron.interop.hf_architectures import sliding_window
from positron.interop.remedies import Unsupported, chosen
from positron.interop.rules import (
    Rule,
    consecutive_pairs,
    constant,
    linear,
    norm,
    qk_norm,
    same,
    stacked,
    to_ours,
    to_theirs,
)
from positron.interop.source import Source, largest_difference
from positron.model.gpt import sinusoidal_table
from positron.system.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

Precision = Literal["f32", "f16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BLOCK = 32  # numbers that share one scale in Q8_0
FILE = "model.gguf"


@dataclass(frozen=True)
class Architecture:
    """Describe an architecture of llama.cpp.

    `name`: the architecture's name in the GGUF file. `rules`: a function that returns the rules that convert Positron's tensors
    (see `rules.Rule`). `keys`: a function that writes the metadata that only this architecture has.
    """

    name: str
    rules: Callable[[GPTConfig], list[Rule]]
    keys: Callable[[GPTConfig, GGUFWriter], None]


def choose(config: GPTConfig) -> Architecture:
    """Return the llama.cpp architecture that computes this model.

    If there is none, raises UserError. The message names the option, or the combination of options, that no architecture
    supports. It also names the smallest change of options after which an architecture computes the model.
    """
    return chosen(_choose, config, "llama.cpp has no architecture")


def _choose(config: GPTConfig) -> Architecture:
    if config.smear:
        raise Unsupported("model.smear=true")
    if sliding_window(config) is not None:
        raise Unsupported(f"model.window={config.window}")
    match config.norm:
        case "layernorm":
            if config.qk_norm:
                raise Unsupported("model.qk_norm=true with model.norm=layernorm")
            if config.activation != "gelu":
                raise Unsupported(f"model.activation={config.activation} with model.norm=layernorm")
            if config.n_head * config.d_head != config.d_model:
                raise Unsupported(f"model.head_dim={config.head_dim} with model.norm=layernorm")
            return _with_layernorm(config)
        case "rmsnorm":
            if not config.has_rope:
                raise Unsupported(f"model.position={config.position} with model.norm=rmsnorm")
            if config.activation not in ("swiglu", "relu2"):
                raise Unsupported(f"model.activation={config.activation} with model.norm=rmsnorm")
            if config.bias:
                raise Unsupported("model.bias=true with model.norm=rmsnorm")
            if config.qk_norm:
                return QWEN3 if config.is_gated else APERTUS
            return LLAMA if config.is_gated else ARCEE
        case _:
            assert_never(config.norm)


def _with_layernorm(config: GPTConfig) -> Architecture:
    match config.position:
        case "learned" | "sinusoidal":
            return GPT2
        case "rope":
            return STARCODER2
        case _:
            assert_never(config.position)


def _rms_keys(config: GPTConfig, writer: GGUFWriter) -> None:
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _layer_norm_keys(config: GPTConfig, writer: GGUFWriter) -> None:
    writer.add_layer_norm_eps(config.norm_eps)


def _apertus_keys(config: GPTConfig, writer: GGUFWriter) -> None:
    """Write the epsilon of RMSNorm, and the constants with which xIELU, the activation of Apertus, equals relu(x)^2.

    xIELU (arXiv:2411.13010) has the constants a_p, a_n, b and eps. eps is a tiny negative number. xIELU of a number x is
        a_p x^2 + b x                          if x > 0,
        (expm1(min(x, eps)) - x) a_n + b x     otherwise.
    It equals relu(x)^2 for a_p = 1, a_n = 0 and b = 0.
    The file does not store a_p and a_n themselves. It stores two numbers whose softplus is a_p and a_n; softplus(-1e4) is 0.
    """
    _rms_keys(config, writer)
    writer.add_xielu_alpha_p([math.log(math.e - 1)] * config.n_layer)
    writer.add_xielu_alpha_n([-1e4] * config.n_layer)
    writer.add_xielu_beta([0.0] * config.n_layer)
    writer.add_xielu_eps([-1e-6] * config.n_layer)


def _llama_like(config: GPTConfig, *, turned: bool, qk_scale: bool, head: bool) -> list[Rule]:
    """Return the rules that convert the tensors of an architecture with RMSNorm and RoPE.

    `turned`: true if RoPE rotates the pairs (2 i, 2 i + 1). `qk_scale`: true if the architecture normalises queries and keys
    with a learned scale. `head`: true if the file needs the output head even if it is tied to the embedding.
    """
    rules = [same("token_embd.weight", "wte.weight")]
    for i in range(config.n_layer):
        theirs, ours = f"blk.{i}", f"blocks.{i}"
        rules += [same(f"{theirs}.attn_norm.weight", f"{ours}.norm1.weight")]
        for part in ("q", "k"):
            names = (f"{theirs}.attn_{part}.weight", f"{ours}.attn.{part}.weight")
            rules.append(consecutive_pairs(*names, config.d_head) if turned else same(*names))
            if qk_scale:
                rules.append(qk_norm(f"{theirs}.attn_{part}_norm.weight", f"{ours}.attn.{part}_norm.weight", config))
        rules.append(same(f"{theirs}.attn_v.weight", f"{ours}.attn.v.weight"))
        rules.append(same(f"{theirs}.attn_output.weight", f"{ours}.attn.out.weight"))
        rules.append(same(f"{theirs}.ffn_norm.weight", f"{ours}.norm2.weight"))
        parts = ("gate", "up", "down") if config.is_gated else ("up", "down")
        rules += [same(f"{theirs}.ffn_{part}.weight", f"{ours}.mlp.{part}.weight") for part in parts]
    return [*rules, same("output_norm.weight", "norm_f.weight"), *_head(config, always=head)]


def _head(config: GPTConfig, *, always: bool = False) -> list[Rule]:
    if config.tie_embeddings:
        return [same("output.weight", "wte.weight")] if always else []
    return [same("output.weight", "lm_head.weight")]


def _gpt2(config: GPTConfig) -> list[Rule]:
    if config.has_learned_positions:
        positions = same("position_embd.weight", "wpe.weight")
    else:
        table = sinusoidal_table(config.context_length, config.d_model).float()
        positions = constant("position_embd.weight", table)
    rules = [same("token_embd.weight", "wte.weight"), positions]
    groups = config.n_head // config.kv_heads
    for i in range(config.n_layer):
        theirs, ours = f"blk.{i}", f"blocks.{i}"
        q, k, v = (f"{ours}.attn.{part}" for part in "qkv")
        names = (f"{q}.weight", f"{k}.weight", f"{v}.weight")
        rules += norm(f"{theirs}.attn_norm", f"{ours}.norm1", config, always_bias=True)
        rules.append(stacked(f"{theirs}.attn_qkv.weight", names, groups, config.d_head, transpose=False))
        if config.bias:
            names = (f"{q}.bias", f"{k}.bias", f"{v}.bias")
            rules.append(stacked(f"{theirs}.attn_qkv.bias", names, groups, config.d_head, transpose=False))
        else:
            rules.append(constant(f"{theirs}.attn_qkv.bias", torch.zeros(3 * config.d_model)))
        rules += linear(f"{theirs}.attn_output", f"{ours}.attn.out", config, config.d_model)
        rules += norm(f"{theirs}.ffn_norm", f"{ours}.norm2", config, always_bias=True)
        rules += linear(f"{theirs}.ffn_up", f"{ours}.mlp.up", config, config.ff_width)
        rules += linear(f"{theirs}.ffn_down", f"{ours}.mlp.down", config, config.d_model)
    return [*rules, *norm("output_norm", "norm_f", config, always_bias=True), *_head(config)]


def _starcoder2(config: GPTConfig) -> list[Rule]:
    rules = [same("token_embd.weight", "wte.weight")]
    for i in range(config.n_layer):
        theirs, ours = f"blk.{i}", f"blocks.{i}"
        widths = {"q": config.n_head * config.d_head, "k": config.kv_heads * config.d_head}
        widths["v"] = widths["k"]
        rules += norm(f"{theirs}.attn_norm", f"{ours}.norm1", config, always_bias=True)
        for part, width in widths.items():
            rules += linear(f"{theirs}.attn_{part}", f"{ours}.attn.{part}", config, width)
        rules += linear(f"{theirs}.attn_output", f"{ours}.attn.out", config, config.d_model)
        rules += norm(f"{theirs}.ffn_norm", f"{ours}.norm2", config, always_bias=True)
        rules += linear(f"{theirs}.ffn_up", f"{ours}.mlp.up", config, config.ff_width)
        rules += linear(f"{theirs}.ffn_down", f"{ours}.mlp.down", config, config.d_model)
    return [*rules, *norm("output_norm", "norm_f", config, always_bias=True), *_head(config)]


LLAMA = Architecture("llama", lambda c: _llama_like(c, turned=True, qk_scale=False, head=False), _rms_keys)
ARCEE = Architecture("arcee", lambda c: _llama_like(c, turned=True, qk_scale=False, head=False), _rms_keys)
QWEN3 = Architecture("qwen3", lambda c: _llama_like(c, turned=False, qk_scale=True, head=False), _rms_keys)
APERTUS = Architecture("apertus", lambda c: _llama_like(c, turned=False, qk_scale=True, head=True), _apertus_keys)
GPT2 = Architecture("gpt2", _gpt2, _layer_norm_keys)
STARCODER2 = Architecture("starcoder2", _starcoder2, _layer_norm_keys)


def write(source: Source, folder: Path, precision: Precision = "f32") -> float:
    """Write `model.gguf` into a folder, and read the weights back.

    Returns the largest absolute difference between the logits of the run's model and those of the same model with the weights
    that were read back. f16 and q8_0 round only the matrices; norms, biases and the position table stay fp32. With q8_0, a
    matrix whose row length is not a multiple of 32 stays fp32, too. Raises UserError, before anything is written, if llama.cpp
    does not have the architecture or the tokenizer, or if the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader, GGUFWriter, LlamaFileType, dequantize
    except ImportError as error:
        raise UserError("a GGUF file needs the package gguf: pip install 'positron[gguf]'") from error

    config = source.config
    architecture = choose(config)
    writer = GGUFWriter(folder / FILE, architecture.name)
    add_tokenizer(writer, source.tokenizer, is_chat=source.is_chat)
    # if the name contains phi3 or phi-3, llama.cpp removes spaces after special tokens, and fails if there is no token </s>
    writer.add_name(re.sub("(?i)(phi)-?3", r"\1 3", source.name))
    types = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(types[precision])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.n_head)
    # GPT-2 has no grouped queries: the file contains the keys and values of a group once for each query head
    writer.add_head_count_kv(config.n_head if architecture is GPT2 else config.kv_heads)
    if config.has_rope:
        writer.add_rope_dimension_count(config.d_head)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_key_length(config.d_head)
        writer.add_value_length(config.d_head)
    architecture.keys(config, writer)
    rules = architecture.rules(config)
    for name, tensor in to_theirs(rules, source.weights).items():
        _add_tensor(writer, name, tensor.numpy(), precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {
        tensor.name: torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist()).copy()
        )
        for tensor in GGUFReader(folder / FILE).tensors
    }
    return largest_difference(source, to_ours(rules, read))


def _add_tensor(writer: GGUFWriter, name: str, values: np.ndarray, precision: Precision) -> None:
    from gguf import GGMLQuantizationType, quantize

    is_matrix = values.ndim == 2 and not name.startswith("position_embd")
    match precision:
        case "f16" if is_matrix:
            writer.add_tensor(name, values.astype(np.float16))
        case "q8_0" if is_matrix and values.shape[1] % BLOCK == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        case "f32" | "f16" | "q8_0":
            writer.add_tensor(name, values.astype(np.float32))
        case _:
            assert_never(precision)
