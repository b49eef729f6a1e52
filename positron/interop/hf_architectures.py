"""Choose the class of Hugging Face's transformers that computes the same as a model of Positron.

A class is described by its config.json and its tensors. The class computes exactly the same function as the Positron model, up
to the rounding of fp32. RoPE needs no change, because transformers also rotates the pairs (i, i + D/2). A QK-norm without a
learned scale is written as a QK-norm with a scale of ones. Positron applies it after RoPE, and transformers before RoPE. Both
give the same result, because a rotation keeps the root mean square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

import torch

from positron.config import Activation, GPTConfig
from positron.interop.remedies import Unsupported, chosen
from positron.interop.rules import Rule, constant, linear, norm, qk_norm, same, stacked, transposed
from positron.model.gpt import sinusoidal_table
from positron.text.tokenizer import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class Architecture:
    """Describe a model class of Hugging Face's transformers.

    `name`: the name of the class. `model_type`: its type in config.json. `settings`: a function that returns the entries that
    config.json has for this class, in addition to those that it has for every class. `rules`: a function that returns the rules
    that convert the tensors (see `rules.Rule`).
    """

    name: str
    model_type: str
    settings: Callable[[GPTConfig], dict[str, Any]]  # `config_json` adds the entries of every class
    rules: Callable[[GPTConfig], list[Rule]]


def choose(config: GPTConfig) -> Architecture:
    """Return the transformers class that computes the same function as a model with this configuration.

    If there is none, raises UserError. The message names the option, or the combination of options, that no class supports. It
    also names the smallest change of options after which a class computes the same.
    """
    return chosen(architecture_of, config, "Hugging Face's transformers has no class")


def architecture_of(config: GPTConfig) -> Architecture:
    """Return the transformers class that computes the same function as a model with this configuration.

    If there is none, raises Unsupported. The message is only the option, or the combination of options, that no class supports,
    such as "model.qk_norm=true with model.norm=layernorm". `choose` adds advice to the message for the user.
    """
    if config.smear:
        raise Unsupported("model.smear=true")
    match config.norm:
        case "layernorm":
            return _with_layernorm(config)
        case "rmsnorm":
            return _with_rmsnorm(config)
        case _:
            assert_never(config.norm)


def _with_layernorm(config: GPTConfig) -> Architecture:
    position, activation = f"model.position={config.position}", f"model.activation={config.activation}"
    if config.n_head * config.d_head != config.d_model:
        raise Unsupported(f"model.head_dim={config.head_dim} with model.norm=layernorm")
    if config.qk_norm:
        raise Unsupported("model.qk_norm=true with model.norm=layernorm")
    match config.position:
        case "learned" | "sinusoidal":
            if config.is_gated:
                raise Unsupported(f"{activation} with {position}")
            if sliding_window(config) is not None:
                raise Unsupported(f"model.window={config.window} with {position}")
            return GPT2
        case "rope":
            if not config.is_gated:
                return STARCODER2
            if config.bias:
                raise Unsupported(f"model.bias=true with {activation} and model.norm=layernorm")
            if sliding_window(config) is not None:
                raise Unsupported(f"model.window={config.window} with {activation} and model.norm=layernorm")
            return STABLELM
        case _:
            assert_never(config.position)


def _with_rmsnorm(config: GPTConfig) -> Architecture:
    if not config.has_rope:
        raise Unsupported(f"model.position={config.position} with model.norm=rmsnorm")
    window = sliding_window(config)
    if config.bias and (config.qk_norm or window is not None):
        other = "model.qk_norm=true" if config.qk_norm else f"model.window={config.window}"
        raise Unsupported(f"model.bias=true with {other}")
    if window is not None and config.activation not in ("swiglu", "relu2"):
        raise Unsupported(f"model.activation={config.activation} with model.window={config.window}")
    if config.qk_norm:
        return QWEN3 if config.is_gated or window is not None else APERTUS
    if window is not None:
        return MISTRAL
    return LLAMA if config.is_gated else ARCEE


def sliding_window(config: GPTConfig) -> int | None:
    """Return the size of the sliding window in tokens, or None if the model has no window shorter than the context."""
    return None if config.window is None or config.window >= config.context_length else config.window


def config_json(architecture: Architecture, config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json, with the ids of the tokens that begin and end a text."""
    return {
        **class_json(architecture, config),
        "bos_token_id": tokenizer.special_id(END_OF_TEXT),
        "eos_token_id": tokenizer.end_ids[0],
        "positron": dataclasses.asdict(config),  # Positron's import reads it and restores the identical model
    }


def class_json(architecture: Architecture, config: GPTConfig) -> dict[str, Any]:
    """Return the entries of config.json that say which class the model has, and with which sizes and options.

    The base of RoPE is written twice, because transformers 5 reads `rope_parameters`, and transformers 4 reads `rope_theta`. If
    `rope_theta` were missing, transformers 4 would use its own default without a warning.
    """
    rope = {
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rope_theta": config.rope_base,
        "rope_scaling": None,
    }
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        **(rope if config.has_rope else {}),
        **architecture.settings(config),
    }


def _hidden_act(kind: Activation) -> str:
    """Return transformers' name of an activation; for a gated MLP, the name of the gate's activation."""
    match kind:
        case "gelu":
            return "gelu_pytorch_tanh"
        case "relu" | "relu2":
            return kind
        case "swish" | "swiglu":
            return "silu"
        case _:
            assert_never(kind)


def _shape(config: GPTConfig) -> dict[str, Any]:
    """Return the sizes, the activation and the dropout of the model, as entries of config.json of transformers.

    All transformers classes to which a run can be exported use these keys, except GPT-2.
    """
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context_length,
        "hidden_act": _hidden_act(config.activation),
        "attention_dropout": config.dropout,
    }


def _rms_shape(config: GPTConfig) -> dict[str, Any]:
    return {**_shape(config), "rms_norm_eps": config.norm_eps, "head_dim": config.d_head}


def _decoder(
    config: GPTConfig,
    *,
    mlp: dict[str, str],
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
    qk_scale: bool = False,
    always_norm_bias: bool = False,
) -> list[Rule]:
    """Return the rules for a model class of transformers whose tensors have the same names as those of Llama.

    A rule converts one tensor between Positron and transformers. Only the names of the MLP's matrices and of the norms may
    differ from those of Llama. `mlp` maps the names of the MLP's matrices in transformers to Positron's names. `norms`: the
    transformers names of the two norms of a block. `qk_scale`: true if the class multiplies the normalised queries and keys by
    learned weights. `always_norm_bias`: true if the norms of the class have a bias even if those of Positron's model have none;
    an export then writes a bias of zeros.
    """
    rules = [same("model.embed_tokens.weight", "wte.weight")]
    for i in range(config.n_layer):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        for their_norm, our_norm in zip(norms, ("norm1", "norm2"), strict=True):
            rules += norm(f"{theirs}.{their_norm}", f"{ours}.{our_norm}", config, always_bias=always_norm_bias)
        for their_part, our_part in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}.items():
            rules += linear(f"{theirs}.self_attn.{their_part}", f"{ours}.attn.{our_part}", config)
        if qk_scale:
            rules += [
                qk_norm(f"{theirs}.self_attn.{n}_norm.weight", f"{ours}.attn.{n}_norm.weight", config) for n in "qk"
            ]
        for their_part, our_part in mlp.items():
            rules += linear(f"{theirs}.mlp.{their_part}", f"{ours}.mlp.{our_part}", config)
    rules += norm("model.norm", "norm_f", config, always_bias=always_norm_bias)
    return rules + ([] if config.tie_embeddings else [same("lm_head.weight", "lm_head.weight")])


_GATED = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_NOT_GATED = {"up_proj": "up", "down_proj": "down"}
# relu(u) * u = relu2(u): a gated MLP with the activation relu, in which gate and up are the same matrix
_SQUARED = {"gate_proj": "up", "up_proj": "up", "down_proj": "down"}


def _gated_mlp(config: GPTConfig) -> dict[str, str]:
    return _GATED if config.is_gated else _SQUARED


def _gated_activation(config: GPTConfig) -> dict[str, Any]:
    return {"hidden_act": _hidden_act(config.activation) if config.is_gated else "relu"}


def _gpt2_settings(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.ff_width,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,  # llama.cpp's converter stops without it
        "activation_function": "gelu_new" if config.activation == "gelu" else _hidden_act(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _gpt2_rules(config: GPTConfig) -> list[Rule]:
    """Return the rules that convert the tensors of GPT-2.

    GPT-2 stores matrices as (in, out), and q, k and v as one matrix. All layers except the output head have biases. Sinusoidal
    positions are written as GPT-2's table of learned positions.
    """
    rules = [same("transformer.wte.weight", "wte.weight")]
    if config.has_learned_positions:
        rules.append(same("transformer.wpe.weight", "wpe.weight"))
    else:
        table = sinusoidal_table(config.context_length, config.d_model)
        rules.append(constant("transformer.wpe.weight", table.float()))
    groups = config.n_head // config.kv_heads
    for i in range(config.n_layer):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        q, k, v = (f"{ours}.attn.{part}" for part in "qkv")
        attention = f"{theirs}.attn.c_attn"
        rules += norm(f"{theirs}.ln_1", f"{ours}.norm1", config, always_bias=True)
        rules += norm(f"{theirs}.ln_2", f"{ours}.norm2", config, always_bias=True)
        names = (f"{q}.weight", f"{k}.weight", f"{v}.weight")
        rules.append(stacked(f"{attention}.weight", names, groups, config.d_head, transpose=True))
        parts = {"attn.c_proj": "attn.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
        rules += [transposed(f"{theirs}.{their}.weight", f"{ours}.{our}.weight") for their, our in parts.items()]
        if config.bias:
            names = (f"{q}.bias", f"{k}.bias", f"{v}.bias")
            rules.append(stacked(f"{attention}.bias", names, groups, config.d_head, transpose=False))
            rules += [same(f"{theirs}.{their}.bias", f"{ours}.{our}.bias") for their, our in parts.items()]
        else:
            sizes = {"attn.c_attn": 3 * config.d_model, "attn.c_proj": config.d_model}
            sizes |= {"mlp.c_fc": config.ff_width, "mlp.c_proj": config.d_model}
            rules += [constant(f"{theirs}.{name}.bias", torch.zeros(size)) for name, size in sizes.items()]
    rules += norm("transformer.ln_f", "norm_f", config, always_bias=True)
    return rules + ([] if config.tie_embeddings else [same("lm_head.weight", "lm_head.weight")])


GPT2 = Architecture("GPT2LMHeadModel", "gpt2", _gpt2_settings, _gpt2_rules)

LLAMA = Architecture(
    "LlamaForCausalLM",
    "llama",
    lambda config: {**_rms_shape(config), "attention_bias": config.bias, "mlp_bias": config.bias},
    lambda config: _decoder(config, mlp=_GATED),
)

ARCEE = Architecture(
    "ArceeForCausalLM",
    "arcee",
    lambda config: {**_rms_shape(config), "attention_bias": config.bias, "mlp_bias": config.bias},
    lambda config: _decoder(config, mlp=_NOT_GATED),
)

MISTRAL = Architecture(
    "MistralForCausalLM",
    "mistral",
    lambda config: {**_rms_shape(config), **_gated_activation(config), "sliding_window": sliding_window(config)},
    lambda config: _decoder(config, mlp=_gated_mlp(config)),
)


def _qwen3_settings(config: GPTConfig) -> dict[str, Any]:
    window = sliding_window(config)
    kind = "full_attention" if window is None else "sliding_attention"
    return {
        **_rms_shape(config),
        **_gated_activation(config),
        "attention_bias": False,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0 if window is not None else config.n_layer,
        "layer_types": [kind] * config.n_layer,
    }


QWEN3 = Architecture(
    "Qwen3ForCausalLM",
    "qwen3",
    _qwen3_settings,
    lambda config: _decoder(config, mlp=_gated_mlp(config), qk_scale=True),
)

APERTUS = Architecture(
    "ApertusForCausalLM",
    "apertus",
    lambda config: {**_rms_shape(config), "attention_bias": False},
    lambda config: _decoder(
        config, mlp=_NOT_GATED, norms=("attention_layernorm", "feedforward_layernorm"), qk_scale=True
    ),
)

STARCODER2 = Architecture(
    "Starcoder2ForCausalLM",
    "starcoder2",
    lambda config: {
        **_shape(config),
        "norm_epsilon": config.norm_eps,
        "use_bias": config.bias,
        "sliding_window": sliding_window(config),
        "embedding_dropout": config.dropout,
        "residual_dropout": config.dropout,
    },
    lambda config: _decoder(config, mlp={"c_fc": "up", "c_proj": "down"}, always_norm_bias=True),
)

STABLELM = Architecture(
    "StableLmForCausalLM",
    "stablelm",
    lambda config: {
        **_shape(config),
        "layer_norm_eps": config.norm_eps,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "partial_rotary_factor": 1.0,
    },
    lambda config: _decoder(config, mlp=_GATED, always_norm_bias=True),
)
