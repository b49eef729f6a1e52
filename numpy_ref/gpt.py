"""Chapter 12. GPT: token ids in, a probability for every possible next token out.

    x = wte[ids] + positions                  (B, T, C)   (rotary positions act inside of attention instead; with
                                                           smearing, a share of the embedding before comes first)
    x = block_i(x)  for i in 0 .. L-1         (B, T, C)
    logits = norm_f(x) W^T                    (B, T, V)   W = wte when tied (arXiv:1608.05859), else lm_head

Tied embeddings are one matrix used twice, so its gradient is the sum of both uses.

Parameters are one flat dictionary, name -> array, under the torch model's names. Everything is computed in the dtype of
`wte.weight`.

Cost: 6 FLOPs per weight and token for a training step (chapter 1: three products forward and backward, 2 FLOPs each),
plus attention's 12 C per key and layer (chapter 8).
"""

from __future__ import annotations

import math
from typing import Any, assert_never

import numpy as np

from numpy_ref.block import block_backward, block_forward, norm_backward, norm_forward
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.dropout import dropout_backward, dropout_forward
from numpy_ref.embedding import (
    INIT_STD,
    embedding_backward,
    embedding_forward,
    position_backward,
    position_forward,
    sinusoidal_table,
    smear_backward,
    smear_forward,
)
from numpy_ref.linear import Array, Cache, linear_backward, linear_forward
from numpy_ref.loss import cross_entropy_backward, cross_entropy_forward
from numpy_ref.multihead import Params, Past, below, under
from numpy_ref.rope import rope_tables

Shapes = dict[str, tuple[int, ...]]


def shapes(config: GPTConfig) -> Shapes:
    """Name and shape of every parameter, in the torch model's order."""
    C, F, V = config.d_model, config.ff_width, config.vocab_size
    kv = config.kv_heads * config.d_head
    norm: Shapes = {"weight": (C,)}
    if config.has_norm_bias:
        norm["bias"] = (C,)
    linears: Shapes = {"attn.q": (C, C), "attn.k": (kv, C), "attn.v": (kv, C), "attn.out": (C, C)}
    mlp: Shapes = {"mlp.up": (F, C), "mlp.down": (C, F)}
    if config.is_gated:
        mlp = {"mlp.gate": (F, C), **mlp}

    def with_bias(matrices: Shapes) -> Shapes:
        found: Shapes = {}
        for name, shape in matrices.items():
            found[f"{name}.weight"] = shape
            if config.bias:
                found[f"{name}.bias"] = shape[:1]
        return found

    block = {**under("norm1.", norm), **with_bias(linears), **under("norm2.", norm), **with_bias(mlp)}
    found: Shapes = {"smear": (C,)} if config.smear else {}
    found["wte.weight"] = (V, C)
    if config.has_learned_positions:
        found["wpe.weight"] = (config.context_length, C)
    for i in range(config.n_layer):
        found |= under(f"blocks.{i}.", block)
    found |= under("norm_f.", norm)
    if not config.tie_embeddings:
        found["lm_head.weight"] = (V, C)
    return found


def init_params(config: GPTConfig, seed: int = 0, dtype: Any = np.float32) -> Params:
    """Weights normal with std 0.02, those that write into the residual stream 0.02 / sqrt(2 L); norms 1; biases 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes(config).items():
        if name.endswith("bias") or name == "smear":
            params[name] = np.zeros(shape, dtype)
        elif "norm" in name:
            params[name] = np.ones(shape, dtype)
        else:
            residual = name.endswith(("attn.out.weight", "mlp.down.weight"))
            std = INIT_STD / math.sqrt(2 * config.n_layer) if residual else INIT_STD
            params[name] = (rng.standard_normal(shape) * std).astype(dtype)
    return params


def _forward(
    params: Params,
    config: GPTConfig,
    idx: Array,
    rng: np.random.Generator | None = None,
    past: list[Past] | None = None,
) -> tuple[Array, Cache]:
    start = past[0].length if past else 0
    end = start + idx.shape[1]
    if end > config.context_length:
        raise InputError(f"{end} tokens do not fit the context length {config.context_length}")
    cache: Cache = {}
    x, cache["wte"] = embedding_forward(idx, params["wte.weight"])
    if config.smear:
        first = past[0].last if past else None
        if past:
            past[0].last = x[:, -1]
        x, cache["smear"] = smear_forward(x, params["smear"], first)
    rope = None
    match config.position:
        case "learned":
            x, cache["wpe"] = position_forward(x, params["wpe.weight"], start)
        case "sinusoidal":
            table = sinusoidal_table(config.context_length, config.d_model).astype(x.dtype)
            x, _ = position_forward(x, table, start)
        case "rope":
            cos, sin = rope_tables(end, config.d_head)
            rope = cos[start:], sin[start:]
        case _:
            assert_never(config.position)
    x, cache["drop"] = dropout_forward(x, config.dropout, rng)
    for i in range(config.n_layer):
        block = below(params, f"blocks.{i}.")
        x, cache[f"blocks.{i}"] = block_forward(x, block, config, rope, rng, past[i] if past else None)
    x, cache["norm_f"] = norm_forward(x, below(params, "norm_f."), config.norm)
    head = params["wte.weight" if config.tie_embeddings else "lm_head.weight"]
    logits, cache["head"] = linear_forward(x, head)
    return logits, cache


def forward(
    params: Params,
    config: GPTConfig,
    idx: Array,
    rng: np.random.Generator | None = None,
    past: list[Past] | None = None,
    trace: bool = False,
) -> Array | tuple[Array, dict[str, Array]]:
    """Token ids (B, T) -> logits (B, T, V); with `trace` also every intermediate array by its dotted name.

    `rng`: dropout as in training. `past`: one per layer; ids are then those that follow what it holds.
    InputError where the tokens do not fit the context length.
    """
    logits, cache = _forward(params, config, idx, rng, past)
    if not trace:
        return logits
    owned = {id(value) for value in params.values()}
    found: dict[str, Array] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}.{key}" if name else key, part)
        elif isinstance(value, list):
            for i, part in enumerate(value):
                walk(f"{name}.{i}", part)
        elif isinstance(value, np.ndarray) and id(value) not in owned:
            found[name] = value

    walk("", cache)
    return logits, {**found, "logits": logits}


def loss_and_grads(
    params: Params,
    config: GPTConfig,
    idx: Array,
    targets: Array,
    rng: np.random.Generator | None = None,
    denominator: int | None = None,
) -> tuple[float, Params]:
    """Mean loss in nats per target, and its gradient for every parameter by name. idx, targets (B, T).

    `denominator`: divide by this number of targets, that of the whole optimizer step, instead of this batch's own.
    """
    logits, cache = _forward(params, config, idx, rng)
    loss, loss_cache = cross_entropy_forward(logits, targets, denominator)
    (dlogits,) = cross_entropy_backward(1.0, loss_cache)
    return float(loss), _backward(dlogits, cache, config)


def _backward(dlogits: Array, cache: Cache, config: GPTConfig) -> Params:
    grads: Params = {}
    dx, dhead, _ = linear_backward(dlogits, cache["head"])
    dx, norm, _ = norm_backward(dx, cache["norm_f"])
    grads |= under("norm_f.", norm)
    for i in reversed(range(config.n_layer)):
        # popped: a block's arrays are freed as soon as they have served
        dx, block, *_ = block_backward(dx, cache.pop(f"blocks.{i}"))
        grads |= under(f"blocks.{i}.", block)
    dx, _, _ = dropout_backward(dx, cache["drop"])
    if config.has_learned_positions:
        dx, grads["wpe.weight"] = position_backward(dx, cache["wpe"])
    if config.smear:
        dx, grads["smear"] = smear_backward(dx, cache["smear"])
    _, dwte = embedding_backward(dx, cache["wte"])
    if config.tie_embeddings:
        dwte += dhead
    else:
        grads["lm_head.weight"] = dhead
    grads["wte.weight"] = dwte
    return grads
