"""GPT: token ids in, a score (logit) for every possible next token out.

    x = wte[ids]                              (B, T, C)
    x = x + smear * previous(x)               (B, T, C)   only with the option smear: a learned vector (C,) times the vector of
                                                          the previous token (`embedding.py`)
    x = x + positions                         (B, T, C)   only learned or sinusoidal; rotary positions act inside of attention
    x = block_i(x)  for i in 0 .. L-1         (B, T, C)
    logits = norm_f(x) W^T                    (B, T, V)   W = wte when tied (arXiv:1608.05859), else lm_head

Tied embeddings are one matrix used twice, so its gradient is the sum of the gradients of the two uses.

Parameters are one flat dictionary, name -> array, with the names of the torch model. Everything is computed in the dtype
of `wte.weight`.

Cost: 6 FLOPs per weight and token for a training step (`linear.py`: three products forward and backward, 2 FLOPs each), plus
attention's 12 C for each token, layer, and key to which the token attends (`attention.py`).
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
from numpy_ref.linear import Array, Cache, Params, linear_backward, linear_forward
from numpy_ref.loss import cross_entropy_backward, cross_entropy_forward
from numpy_ref.multihead import Past, add_prefix, strip_prefix
from numpy_ref.rope import rope_tables

Shapes = dict[str, tuple[int, ...]]


def shapes(config: GPTConfig) -> Shapes:
    """Return the shape of every parameter by name, in the order of the torch model."""
    C, F, V = config.d_model, config.ff_width, config.vocab_size
    kv = config.kv_heads * config.d_head
    norm: Shapes = {"weight": (C,)}
    if config.has_norm_bias:
        norm["bias"] = (C,)
    width = config.n_head * config.d_head
    linears: Shapes = {"attn.q": (width, C), "attn.k": (kv, C), "attn.v": (kv, C), "attn.out": (C, width)}
    mlp: Shapes = {"mlp.up": (F, C), "mlp.down": (C, F)}
    if config.is_gated:
        mlp = {"mlp.gate": (F, C), **mlp}

    def with_bias(matrices: Shapes) -> Shapes:
        layers: Shapes = {}
        for name, shape in matrices.items():
            layers[f"{name}.weight"] = shape
            if config.bias:
                layers[f"{name}.bias"] = shape[:1]
        return layers

    scales: Shapes = {f"attn.{name}_norm.weight": (config.d_head,) for name in ("q", "k") if config.qk_scale}
    block = {
        **add_prefix(norm, "norm1."),
        **with_bias(linears),
        **scales,
        **add_prefix(norm, "norm2."),
        **with_bias(mlp),
    }
    by_name: Shapes = {"smear": (C,)} if config.smear else {}
    by_name["wte.weight"] = (V, C)
    if config.has_learned_positions:
        by_name["wpe.weight"] = (config.context_length, C)
    for i in range(config.n_layer):
        by_name |= add_prefix(block, f"blocks.{i}.")
    by_name |= add_prefix(norm, "norm_f.")
    if not config.tie_embeddings:
        by_name["lm_head.weight"] = (V, C)
    return by_name


def init_params(config: GPTConfig, seed: int = 0, dtype: Any = np.float32) -> Params:
    """Draw the initial parameters with a random generator that starts from `seed`.

    Matrices are normal with standard deviation 0.02, or 0.02 / sqrt(2 L) for the 2 L matrices of L blocks that write into the
    residual stream (GPT-2). The weights of norms are 1, biases and the smear weight 0.
    """
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
            cos, sin = rope_tables(end, config.d_head, config.rope_base)
            rope = cos[start:], sin[start:]  # (T, D/2) each
        case _:
            assert_never(config.position)
    x, cache["drop"] = dropout_forward(x, config.dropout, rng)
    for i in range(config.n_layer):
        block = strip_prefix(params, f"blocks.{i}.")
        x, cache[f"blocks.{i}"] = block_forward(x, block, config, rope, rng, past[i] if past else None)  # (B, T, C)
    x, cache["norm_f"] = norm_forward(x, strip_prefix(params, "norm_f."), config)
    head = params["wte.weight" if config.tie_embeddings else "lm_head.weight"]  # (V, C)
    logits, cache["head"] = linear_forward(x, head)  # (B, T, V)
    return logits, cache


def forward(
    params: Params,
    config: GPTConfig,
    idx: Array,
    rng: np.random.Generator | None = None,
    past: list[Past] | None = None,
    trace: bool = False,
) -> Array | tuple[Array, dict[str, Array]]:
    """Compute the logits of the next token: idx (B, T) -> logits (B, T, V).

    `idx` holds token ids. `rng` draws the dropout masks of training; None: no dropout. `past` holds the key/value cache of each
    layer. `idx` then continues the tokens in the cache, and the keys and values of `idx` are appended to the cache. With
    `trace`, the function also returns a dictionary of all intermediate arrays, with names such as `blocks.0.norm1.x`. Raises
    InputError if the tokens, including those in `past`, do not fit the context length.
    """
    logits, cache = _forward(params, config, idx, rng, past)
    if not trace:
        return logits
    owned = {id(value) for value in params.values()}
    arrays: dict[str, Array] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}.{key}" if name else key, part)
        elif isinstance(value, list):
            for i, part in enumerate(value):
                walk(f"{name}.{i}", part)
        elif isinstance(value, np.ndarray) and id(value) not in owned:
            arrays[name] = value

    walk("", cache)
    return logits, {**arrays, "logits": logits}


def loss_and_grads(
    params: Params,
    config: GPTConfig,
    idx: Array,
    targets: Array,
    rng: np.random.Generator | None = None,
    denominator: int | None = None,
) -> tuple[float, Params]:
    """Compute the mean loss, in nats per target, and its gradient for every parameter by name: idx and targets (B, T).

    Targets of -100 are not counted. `rng` draws the dropout masks; None: no dropout. `denominator` is the number of targets of
    the whole optimizer step, by which the sum of the losses is divided; None: the number of targets in `targets`.
    """
    logits, cache = _forward(params, config, idx, rng)
    loss, loss_cache = cross_entropy_forward(logits, targets, denominator)
    (dlogits,) = cross_entropy_backward(1.0, loss_cache)
    return float(loss), _backward(dlogits, cache, config)


def _backward(dlogits: Array, cache: Cache, config: GPTConfig) -> Params:
    grads: Params = {}
    dx, dhead, _ = linear_backward(dlogits, cache["head"])
    dx, norm, _ = norm_backward(dx, cache["norm_f"])
    grads |= add_prefix(norm, "norm_f.")
    for i in reversed(range(config.n_layer)):
        # popped, so that the arrays of a block are freed as soon as its backward is done
        dx, block, *_ = block_backward(dx, cache.pop(f"blocks.{i}"))
        grads |= add_prefix(block, f"blocks.{i}.")
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
