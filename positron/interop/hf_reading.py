"""Translate the config.json of a Hugging Face transformers model into a `GPTConfig` and the rules that convert its tensors.

Each key is either read or known to have no effect on what the model computes. Any other key stops the import: if it were
ignored, the imported model could compute different results than the original.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from positron.config import GPTConfig
from positron.interop import hf_architectures
from positron.interop.remedies import Unsupported
from positron.interop.rules import Rule, absent
from positron.settings import from_dict
from positron.system.console import json_line, one_line
from positron.system.errors import UserError

# keys that describe the file, the training or the generation, and do not change what the model computes
_DESCRIPTION = (
    "architectures, model_type, torch_dtype, dtype, transformers_version, _name_or_path, tokenizer_class, auto_map, language, "
    "license, transformers.js_config, unsloth_fixed, unsloth_version, is_llama_config, positron"
)
_TRAINING = (
    "initializer_range, initializer_cutoff_factor, gradient_checkpointing, attention_dropout, attn_pdrop, embd_pdrop, "
    "resid_pdrop, embedding_dropout, residual_dropout, hidden_dropout, pretraining_tp"
)
_USE = (
    "use_cache, bos_token_id, eos_token_id, pad_token_id, task_specific_params, output_past, output_hidden_states, "
    "output_attentions, return_dict, reorder_and_upcast_attn, _attn_implementation, n_ctx, max_window_layers, "
    "summary_activation, summary_first_dropout, summary_proj_to_labels, summary_type, summary_use_proj"
)
DOCUMENT_MASK = "document_mask"  # what Positron notes besides the architecture: the value of data.document_mask
_HARMLESS = frozenset(", ".join((_DESCRIPTION, _TRAINING, _USE)).split(", "))
_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "swish", "swish": "swish"}
_ACTIVATIONS |= {"relu2": "relu2"}
_CORRECT = "correct the value, or download the file again"


class _Keys:
    """Hold the keys of a config.json that were not read yet. Each method that reads a key removes it."""

    def __init__(self, facts: dict[str, Any], path: str) -> None:
        self._facts, self._path = dict(facts), path

    def number(self, name: str, default: float | None = None) -> Any:
        """Return the value of a key that must be a positive number below 1e12, or `default` if the key is missing or null.

        Raises UserError for any other value, and for a missing key without a default.
        """
        value = self._facts.pop(name, None)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self._path}: {name} is missing: add it, or download the file again")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise UserError(
                f"{self._path}: {name} must be a positive number below 1e12, not {json_line(value)}: {_CORRECT}"
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return the value of a key that must be true or false, or `default` if the key is missing.

        Raises UserError for any other value.
        """
        value = self._facts.pop(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self._path}: {name} must be true or false, not {json_line(value)}: {_CORRECT}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return the value of a key that must be a positive whole number, or `default` if the key is missing or null.

        Raises UserError for any other value, and for a missing key without a default.
        """
        value = self.number(name, default)
        if not isinstance(value, int):
            raise UserError(f"{self._path}: {name} must be a whole number, not {json_line(value)}: {_CORRECT}")
        return value

    def count_or_zero(self, name: str, default: int) -> int:
        """Return the value of a key that must be a whole number from 0, or `default` if the key is missing or null.

        Raises UserError for any other value.
        """
        value = self._facts.get(name)
        if value == 0 and not isinstance(value, bool):
            del self._facts[name]
            return 0
        return self.count(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def count_or_none(self, name: str, default: int | None = None) -> int | None:
        """Return the value of a key that must be a positive whole number or null, or `default` if the key is missing.

        Raises UserError for any other value.
        """
        if name not in self:
            return default
        return None if self._facts[name] is None else self.count(name)

    def names(self, name: str) -> list[str] | None:
        """Return the value of a key that must be a list of one or more strings, or None if the key is null or missing.

        Raises UserError for any other value.
        """
        value = self._facts.pop(name, None)
        if value is None or (isinstance(value, list) and value and all(isinstance(each, str) for each in value)):
            return value
        raise UserError(f"{self._path}: {name} must be a list of one or more texts, not {json_line(value)}: {_CORRECT}")

    def section(self, name: str) -> _Keys | None:
        """Return the keys of the object that is stored under `name`, or None if `name` is missing or its value is null.

        Raises UserError for any other value.
        """
        value = self._facts.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise UserError(f"{self._path}: {name} must be an object, not {json_line(value)}: {_CORRECT}")
        return _Keys(value, f"{self._path}: {name}")

    def unsupported(self, setting: str) -> UserError:
        """Return the UserError that refuses this file because of a setting.

        `setting` describes the setting, such as "layer_types differ"; the message adds that Positron does not support this.
        """
        return UserError(f"{self._path}: {setting}, which Positron does not support: choose another model")

    def must_be(self, name: str, value: Any) -> None:
        """Raise UserError if the key `name` has a value other than `value`, the only value that Positron's models support.

        A missing key is accepted. null is accepted if `value` is False, zero or None.
        """
        actual = self._facts.pop(name, value)
        if actual != value and not (actual is None and not value):
            raise UserError(
                f"{self._path}: Positron does not support {name}={json_line(actual)}, which changes what the model computes: "
                "choose another model"
            )

    def activation(self, name: str, default: str) -> Any:
        """Return Positron's name of the activation function that config.json names under the key `name`.

        `default`: the name that transformers uses for the activation function if the key is missing.
        Raises UserError if Positron does not have this activation function.
        """
        value = self._facts.pop(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UserError(
                f"{self._path}: {name}={json_line(value)} is not supported: choose a model whose {name} is one of {known}"
            )
        return _ACTIVATIONS[value]

    def refuse_rest(self) -> None:
        """Raise UserError if there are keys that were not read, are not null and may have an effect; the message lists them."""
        rest = [
            f"{key}={json_line(value)}"
            for key, value in self._facts.items()
            if value is not None and key not in _HARMLESS
        ]
        if rest:
            raise UserError(
                f"{self._path} has settings that Positron does not know, so it cannot import this model: "
                f"{one_line(', '.join(rest), 400)}; choose another model"
            )


def read_config(facts: dict[str, Any], path: str) -> tuple[GPTConfig, list[Rule]]:
    """Return the architecture that config.json describes, and the rules that convert the tensors of the model.

    `facts`: the content of config.json. `path`: the name of the file in messages. Raises UserError if Positron does not support
    the model.
    """
    kind = facts.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        similar = difflib.get_close_matches(str(kind), _READERS, 1, 0.8)  # a typo, and not just another architecture
        known = ", ".join(_READERS)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        if kind is None:
            raise UserError(
                f"{path}: model_type is missing: download the file again, or add the type of this model ({known})"
            )
        raise UserError(
            f"{path}: model_type {kind!r} is not supported{hint}: choose a model of one of the types {known}"
        )
    keys = _Keys(facts, path)
    config, rules = _READERS[kind](keys)
    keys.refuse_rest()
    return config, rules


def own_config(facts: dict[str, Any]) -> tuple[GPTConfig, list[Rule]] | None:
    """Return the architecture that Positron's export wrote into config.json, and the rules that convert the exported tensors.

    `facts`: the content of config.json. Returns None if the export wrote no architecture, if the architecture is not valid, or
    if another program has changed the model since, such as its context length or its vocabulary.
    """
    noted = facts.get("positron")
    if not isinstance(noted, dict):
        return None
    try:
        config = from_dict(GPTConfig, {key: value for key, value in noted.items() if key != DOCUMENT_MASK})
        architecture = hf_architectures.architecture_of(config)
    except (UserError, Unsupported):
        return None
    if not _still_describes(facts, hf_architectures.class_json(architecture, config)):
        return None
    return config, architecture.rules(config)


def _still_describes(facts: dict[str, Any], exported: dict[str, Any]) -> bool:
    """Tell whether config.json (`facts`) describes the same model as the entries that the export wrote.

    The dropout may differ, because it does not belong to the weights.
    """
    try:
        before = read_config(exported, "config.json")[0]
    except UserError:  # a model that Positron can export, but only import by its own note
        return True
    try:
        after = read_config(facts, "config.json")[0]
    except UserError:
        return False
    return dataclasses.replace(before, dropout=0.0) == dataclasses.replace(after, dropout=0.0)


def _gpt2(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    keys.must_be("scale_attn_weights", True)
    keys.must_be("scale_attn_by_inverse_layer_idx", False)
    keys.must_be("add_cross_attention", False)
    inner = keys.count_or_none("n_inner")
    config = _config(
        keys,
        d_model=keys.count("n_embd", 768),
        n_layer=keys.count("n_layer", 12),
        n_head=keys.count("n_head", 12),
        d_ff=inner,
        context_length=keys.count("n_positions", 1024),
        activation=keys.activation("activation_function", "gelu_new"),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bias=True,
    )
    return config, hf_architectures.GPT2.rules(config)


def _sizes(
    keys: _Keys, eps: str, default_eps: float, *, tied: bool, default_base: float | None = 10_000.0
) -> dict[str, Any]:
    """Read the keys of config.json that all classes except GPT-2 share, and return them as options of `GPTConfig`.

    `eps`: the name of the key with the epsilon of the norms. The last three parameters are the values of missing keys:
    `default_eps` of the key `eps`, `tied` of the key tie_word_embeddings, and `default_base` of the key with the base of RoPE.
    If `default_base` is None, a missing base raises UserError.
    """
    heads = keys.count("num_attention_heads")
    width = keys.count("hidden_size")
    head_dim = keys.count_or_none("head_dim")
    return {
        "d_model": width,
        "n_layer": keys.count("num_hidden_layers"),
        "n_head": heads,
        "n_kv_head": keys.count("num_key_value_heads", heads),
        "head_dim": None if head_dim is None or head_dim * heads == width else head_dim,
        "d_ff": keys.count("intermediate_size"),
        "context_length": keys.count("max_position_embeddings"),
        "norm_eps": keys.number(eps, default_eps),
        "tie_embeddings": keys.flag("tie_word_embeddings", tied),
        "rope_base": _rope_base(keys, default_base),
        "position": "rope",
    }


def _rope_base(keys: _Keys, default: float | None) -> float:
    """Return the base of RoPE from the key of transformers 4 (`rope_theta`) or transformers 5 (`rope_parameters`).

    If the base is missing, returns `default`, or raises UserError if `default` is None. Also raises UserError if config.json
    changes RoPE in another way, for example by scaling.
    """
    keys.must_be("rope_scaling", None)
    keys.must_be("rope_interleaved", False)
    keys.must_be("partial_rotary_factor", 1.0)
    parameters = keys.section("rope_parameters")
    if parameters is None:
        return float(keys.number("rope_theta", default))
    base = parameters.number("rope_theta", keys.number("rope_theta", default) if "rope_theta" in keys else default)
    parameters.must_be("rope_type", "default")
    parameters.must_be("type", "default")
    parameters.must_be("partial_rotary_factor", 1.0)
    parameters.refuse_rest()
    return float(base)


def _window(keys: _Keys, layers: int, default: int | None, *, has_kinds: bool) -> int | None:
    """Return the sliding window of Mistral or Starcoder2 in tokens, or None if no layer has a window.

    transformers does not read use_sliding_window in these classes. `layers`: the number of layers. `default`: the window if
    config.json has no key sliding_window. `has_kinds`: whether transformers reads layer_types. Raises UserError if only some
    layers have a window.
    """
    size, kinds = keys.count_or_none("sliding_window", default), keys.names("layer_types")
    keys.flag("use_sliding_window", False)
    if kinds is None or not has_kinds:
        return size
    if len(set(kinds[:layers])) > 1:
        raise keys.unsupported("layer_types differ between the layers")
    return size if kinds[0] == "sliding_attention" else None


def _config(keys: _Keys, **options: Any) -> GPTConfig:
    return from_dict(GPTConfig, {"vocab_size": keys.count("vocab_size"), **options})


def _llama(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    sizes = _sizes(keys, "rms_norm_eps", 1e-6, tied=False)
    keys.must_be("hidden_act", "silu")
    attention, mlp = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    config = _config(keys, **sizes, norm="rmsnorm", activation="swiglu", bias=attention or mlp)
    return config, _with_biases(hf_architectures.LLAMA.rules(config), config, {"attn": attention, "mlp": mlp})


def _arcee(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    sizes = _sizes(keys, "rms_norm_eps", 1e-5, tied=False)
    activation = keys.activation("hidden_act", "relu2")
    attention, mlp = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    config = _config(keys, **sizes, norm="rmsnorm", activation=activation, bias=attention or mlp)
    return config, _with_biases(hf_architectures.ARCEE.rules(config), config, {"attn": attention, "mlp": mlp})


def _mistral(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    sizes = _sizes(keys, "rms_norm_eps", 1e-6, tied=False)
    keys.must_be("hidden_act", "silu")
    window = _window(keys, sizes["n_layer"], 4096, has_kinds=True)
    config = _config(keys, **sizes, norm="rmsnorm", activation="swiglu", window=window)
    return config, hf_architectures.MISTRAL.rules(config)


def _qwen2(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    """Read Qwen2 and Qwen2.5, in which only q, k and v have biases."""
    sizes = _sizes(keys, "rms_norm_eps", 1e-6, tied=False)
    keys.must_be("hidden_act", "silu")
    keys.must_be("use_mrope", False)
    window = _qwen_window(keys, sizes["n_layer"])
    config = _config(keys, **sizes, norm="rmsnorm", activation="swiglu", bias=True, window=window)
    rules = hf_architectures.LLAMA.rules(config)
    return config, _with_biases(
        rules, config, {"attn.q": True, "attn.k": True, "attn.v": True, "attn": False, "mlp": False}
    )


def _qwen_window(keys: _Keys, layers: int) -> int | None:
    """Return the sliding window of Qwen2 or Qwen3 in tokens, or None. Raises UserError if only some layers have a window."""
    size, kinds = keys.count_or_none("sliding_window", 4096), keys.names("layer_types")
    first = keys.count_or_zero("max_window_layers", 28)  # the first layer with a window
    if not keys.flag("use_sliding_window", False) or size is None:
        return None
    used = (
        set(kinds[:layers])
        if kinds is not None
        else {("full_attention", "sliding_attention")[i >= first] for i in range(layers)}
    )
    if used == {"full_attention"}:
        return None
    if used != {"sliding_attention"}:
        raise keys.unsupported("only some layers have a sliding window")
    return size


def _qwen3(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    sizes = _sizes(keys, "rms_norm_eps", 1e-6, tied=False)
    keys.must_be("hidden_act", "silu")
    keys.must_be("attention_bias", False)
    window = _qwen_window(keys, sizes["n_layer"])
    config = _config(keys, **sizes, norm="rmsnorm", activation="swiglu", qk_norm=True, qk_scale=True, window=window)
    return config, hf_architectures.QWEN3.rules(config)


def _apertus(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    # without a base, transformers scales RoPE as Llama 3 does, which Positron does not compute
    sizes = _sizes(keys, "rms_norm_eps", 1e-5, tied=False, default_base=None)
    activation = keys.activation("hidden_act", "xielu")
    keys.must_be("attention_bias", False)
    config = _config(keys, **sizes, norm="rmsnorm", activation=activation, qk_norm=True, qk_scale=True)
    return config, hf_architectures.APERTUS.rules(config)


def _starcoder2(keys: _Keys) -> tuple[GPTConfig, list[Rule]]:
    sizes = _sizes(keys, "norm_epsilon", 1e-5, tied=True)
    activation = keys.activation("hidden_act", "gelu_pytorch_tanh")
    bias = keys.flag("use_bias", True)
    if not bias:
        raise keys.unsupported("use_bias=false removes all biases but those of the norms")
    window = _window(keys, sizes["n_layer"], None, has_kinds=False)
    config = _config(keys, **sizes, norm="layernorm", activation=activation, bias=True, window=window)
    return config, hf_architectures.STARCODER2.rules(config)


def _with_biases(rules: list[Rule], config: GPTConfig, has: dict[str, bool]) -> list[Rule]:
    """Return `rules`, but for each bias that the file of weights lacks, use a rule that fills in zeros (see `absent`).

    `has` maps each part of a block, such as "mlp" or "attn.q", to True if the biases of this part are in the file. For each
    bias, the first key of `has` that occurs in the bias's name counts, so "attn.q" must come before "attn".
    """
    return [rule if _has_bias(rule, has) else absent(rule.ours[0], _size(rule, config)) for rule in rules]


def _has_bias(rule: Rule, has: dict[str, bool]) -> bool:
    if not rule.ours or not rule.ours[0].endswith(".bias"):
        return True
    return next(holds for part, holds in has.items() if f".{part}." in rule.ours[0])


def _size(rule: Rule, config: GPTConfig) -> int:
    """Return the length of the bias that `rule` converts. The bias is called `rule.ours[0]`, such as blocks.0.attn.q.bias."""
    part = rule.ours[0].split(".")[-2]
    widths = {"q": config.n_head * config.d_head, "k": config.kv_heads * config.d_head}
    widths |= {"v": widths["k"], "out": config.d_model, "down": config.d_model}
    return widths.get(part, config.ff_width)


_READERS: dict[str, Callable[[_Keys], tuple[GPTConfig, list[Rule]]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "arcee": _arcee,
    "apertus": _apertus,
    "starcoder2": _starcoder2,
}
