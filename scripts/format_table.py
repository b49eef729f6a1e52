"""Write docs/reference/formats.md: which options of a model each export format supports. The script tries each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from positron.config import Activation, GPTConfig, Norm, Position
from positron.interop import gguf_file, hf_architectures, llama2c
from positron.system.errors import UserError

SIZES: dict[str, Any] = {"vocab_size": 300, "context_length": 16, "d_model": 32, "n_layer": 1, "n_head": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2": {**SIZES, "norm": "layernorm", "position": "learned", "activation": "gelu"},
    "Llama": {**SIZES, "norm": "rmsnorm", "position": "rope", "activation": "swiglu"},
}
FORMATS: dict[str, Callable[[GPTConfig], object]] = {
    "hf": hf_architectures.choose,
    "gguf, ollama": gguf_file.choose,
    "llama2c": llama2c.check_model,
    "onnx, safetensors": lambda config: None,
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "norm": get_args(Norm),
    "position": get_args(Position),
    "activation": get_args(Activation),
    "bias": (True,),
    "tie_embeddings": (False,),
    "n_kv_head": (2,),
    "head_dim": (16,),
    "qk_norm": (True,),
    "qk_scale": (True,),
    "rope_base": (1e6,),
    "norm_eps": (1e-6,),
    "smear": (True,),
    "window": (8,),
    "dropout": (0.1,),
    "d_ff": (40,),
}
_INTRODUCTION = """# Export formats

This table shows which options of `model.*` each format of `positron export` supports. Each cell was tried with two models:
one like GPT-2 (LayerNorm, learned positions, GELU) and one like Llama (RMSNorm, RoPE, SwiGLU). In both, only the option was
changed. *yes* means that both models can be exported, *GPT-2* or *Llama* that only this model can be exported, and *no* that
neither can. Some options are supported alone, but not together; the export then names the option that is not supported.
"""


def expresses(name: str, config: GPTConfig) -> bool:
    """Tell whether a model can be exported to a format."""
    try:
        FORMATS[name](config)
    except UserError:
        return False
    return True


def cell(name: str, option: str, value: Any) -> str:
    """Return which of the models in SHAPES can be exported with a value of an option: the name of one, "yes" (both) or "no"."""
    changes = {"qk_norm": True, option: value} if option == "qk_scale" else {option: value}
    supported = [shape for shape, base in SHAPES.items() if expresses(name, GPTConfig(**{**base, **changes}))]
    match supported:
        case []:
            return "no"
        case [shape]:
            return shape
        case _:
            return "yes"


def formats_page() -> str:
    """Return the Markdown of docs/reference/formats.md."""
    rows = [f"| option | {' | '.join(FORMATS)} |", f"|---|{'---|' * len(FORMATS)}"]
    for option, values in OPTIONS.items():
        for value in values:
            shown = str(value).lower() if isinstance(value, bool) else value
            rows.append(f"| `{option}={shown}` | {' | '.join(cell(name, option, value) for name in FORMATS)} |")
    return f"{_INTRODUCTION}\n" + "\n".join(rows) + "\n"
