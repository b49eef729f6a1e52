"""Pack the weights of a model for the engine in JavaScript (`static/engine.js`); `static/weights.js` unpacks them.

A vector is kept in float32. A matrix is rounded to whole numbers of 8 to 16 bits with one float32 scale per row, or kept as
float16 or float32. Numbers of two bytes are written as two planes: all low bytes, then all high bytes. High bytes have few
different values, so gzip compresses them better when they are together.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
import torch

from positron.config import GPTConfig
from positron.model.gpt import GPT

Precision = Literal["fp32", "fp16"] | int  # an int means whole numbers of 8 to 16 bits


@dataclass(frozen=True)
class PackedWeights:
    """Hold the tensors of a model in one compressed block (`content`), and the names, shapes and types of the tensors."""

    tensors: list[dict[str, Any]]  # {"name", "rows", "cols", "kind"}; kind: f32, f16, i8 or i16
    content: bytes  # gzip; for each tensor: the scales (rows,) in float32 if kind is i8 or i16, then the values


def engine_config(config: GPTConfig) -> dict[str, Any]:
    """Return the architecture of a model as a dict for JSON. Sizes that are None in `GPTConfig` are replaced by numbers."""
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "d_model": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_kv_head": config.kv_heads,
        "head_dim": config.d_head,
        "d_ff": config.ff_width,
        "norm": config.norm,
        "norm_eps": config.norm_eps,
        "position": config.position,
        "rope_base": config.rope_base,
        "activation": config.activation,
        "tie_embeddings": config.tie_embeddings,
        "qk_norm": config.qk_norm,
        "qk_scale": config.qk_scale,
        "smear": config.smear,
        "window": config.window,
    }


def pack(model: GPT, precision: Precision) -> PackedWeights:
    """Pack all weights of a model, in the order of `named_parameters`.

    `precision`: the number format of the matrices: "fp32", "fp16", or the number of bits of whole numbers, 8 to 16.
    """
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, parameter in model.named_parameters():
        values = parameter.detach().to(torch.float32).cpu().numpy()
        rows, cols = values.shape if values.ndim == 2 else (1, values.shape[0])
        kind, content = _packed(values, precision if values.ndim == 2 else "fp32")
        tensors.append({"name": name, "rows": rows, "cols": cols, "kind": kind})
        parts.append(content)
    return PackedWeights(tensors, gzip.compress(b"".join(parts), 9, mtime=0))


def _packed(values: np.ndarray, precision: Precision) -> tuple[str, bytes]:
    """Return the number format of the packed tensor (f32, f16, i8 or i16) and its bytes; `precision` is that of `pack`.

    For i8 and i16, the bytes begin with the scales of the rows.
    """
    match precision:
        case "fp32":
            return "f32", values.astype("<f4").tobytes()
        case "fp16":
            return "f16", _planes(values.astype("<f2"))
        case int():
            whole, scale = quantised(values, precision)
            head = scale.astype("<f4").tobytes()
            if precision == 8:
                return "i8", head + whole.astype(np.int8).tobytes()
            return "i16", head + _planes(whole.astype("<i2"))
        case _:
            assert_never(precision)


def quantised(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix (rows, cols) to whole numbers of `bits` bits; return the whole numbers and the scales (rows,).

    A value is about its whole number times the scale of its row. The largest magnitude of a row becomes 2^(bits - 1) - 1; a row
    of zeros has the scale 0.
    """
    limit = 2 ** (bits - 1) - 1
    scale = (np.abs(values).max(axis=1) / limit).astype(np.float32)
    safe = np.where(scale == 0, 1, scale).astype(np.float64)
    return np.rint(values / safe[:, None]).clip(-limit, limit).astype(np.int32), scale


def restored(values: np.ndarray, precision: Precision) -> np.ndarray:
    """Round a matrix `values` (rows, cols) to `precision` as `pack` does, and return the rounded matrix as float32."""
    match precision:
        case "fp32":
            return values.astype(np.float32)
        case "fp16":
            return values.astype(np.float16).astype(np.float32)
        case int():
            whole, scale = quantised(values, precision)
            widened: np.ndarray = (whole * scale[:, None]).astype(np.float32)
            return widened
        case _:
            assert_never(precision)


def _planes(values: np.ndarray) -> bytes:
    """Split numbers of two bytes: return the low bytes of all numbers, followed by the high bytes."""
    pairs = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 2)
    return pairs[:, 0].tobytes() + pairs[:, 1].tobytes()
