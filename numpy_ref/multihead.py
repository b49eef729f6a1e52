"""Chapter 9. Multi-head attention: H small attentions side by side, each with its own idea of what to look for.

    q, k, v = x Wq^T, x Wk^T, x Wv^T        (B, T, H D), and (B, T, K D) for keys and values
    split into heads, turn q and k by their places (chapter 6), bring them to unit size (QK-norm)
    attend (chapter 8), put the heads side by side again, and mix them: y = O Wo^T

Backward is the same list read upwards. x was used three times, so dx is the sum of three contributions.

QK-norm (arXiv:2010.04245) is RMSNorm without weight over the D channels of each head: |q| = |k| = sqrt(D), so no score
can exceed sqrt(D) however large the weights grow. It comes after the rotation, which keeps lengths as they are.

A bias on the keys adds the same q.b to all scores of a query, which softmax cannot see: without rotation or QK-norm its
gradient is 0, and what the computer finds instead is rounding noise.

A window (Longformer, arXiv:2004.05150) lets a token see the last W tokens only, itself included. L layers still carry
news over L (W - 1) tokens, and beyond W a token's cost no longer grows with the text.

Generation: keys and values of past tokens never change, so a `Past` keeps them, and each new token costs one row.

Cost: 2 N C (2 H D + 2 K D) FLOPs for the projections. With K < H the cache shrinks by H / K: memory is what limits
generation, on an FPGA even more, where the cache has to fit the chip.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from numpy_ref.attention import attention_backward, attention_forward, window_mask
from numpy_ref.config import GPTConfig
from numpy_ref.linear import Array, Cache, linear_backward, linear_forward
from numpy_ref.norm import rmsnorm_backward, rmsnorm_forward
from numpy_ref.rope import rope_backward, rope_forward

Params = dict[str, Array]
Rope = tuple[Array, Array]
Value = TypeVar("Value")


def below(params: Params, prefix: str) -> Params:
    """The parameters whose names begin with `prefix`, under the rest of their names."""
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def under(prefix: str, params: dict[str, Value]) -> dict[str, Value]:
    return {prefix + name: value for name, value in params.items()}


class Past:
    """Keys and values of one layer, (B, K, capacity, D) each, of which the first `length` places are filled.

    `last` (B, C): the embedding of the token read last, which smearing adds to the next one's.
    """

    def __init__(self, batch: int, config: GPTConfig, capacity: int, dtype: Any) -> None:
        shape = (batch, config.kv_heads, capacity, config.d_head)
        self.k, self.v, self.length = np.zeros(shape, dtype), np.zeros(shape, dtype), 0
        self.last: Array | None = None

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append (B, K, T, D) each; returns all so far."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


def _project(x: Array, params: Params, name: str) -> tuple[Array, Cache]:
    return linear_forward(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def _project_backward(dy: Array, cache: Cache, name: str, grads: Params) -> Array:
    dx, grads[f"{name}.weight"], dbias = linear_backward(dy, cache)
    if dbias is not None:
        grads[f"{name}.bias"] = dbias
    return dx


def _split(x: Array, heads: int) -> Array:
    """(B, T, heads * D) -> (B, heads, T, D)"""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _merge(x: Array) -> Array:
    """(B, heads, T, D) -> (B, T, heads * D)"""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def multihead_forward(
    x: Array,
    params: Params,
    config: GPTConfig,
    rope: Rope | None = None,
    rng: np.random.Generator | None = None,
    past: Past | None = None,
) -> tuple[Array, Cache]:
    """x (B, T, C) -> (B, T, C). params: {q, k, v, out}.weight and, where there are biases, .bias."""
    cache: Cache = {}
    heads = {}
    for name, count in (("q", config.n_head), ("k", config.kv_heads), ("v", config.kv_heads)):
        y, cache[name] = _project(x, params, name)
        heads[name] = _split(y, count)
    for name in ("q", "k"):
        if rope is not None:
            heads[name], cache[f"rope_{name}"] = rope_forward(heads[name], *rope)
        if config.qk_norm:
            heads[name], cache[f"norm_{name}"] = rmsnorm_forward(heads[name])
    k, v = (heads["k"], heads["v"]) if past is None else past.extend(heads["k"], heads["v"])
    mask = None if config.window is None else window_mask(x.shape[1], k.shape[2], config.window)
    y, cache["attention"] = attention_forward(heads["q"], k, v, mask, config.dropout, rng)
    y, cache["out"] = _project(_merge(y), params, "out")
    return y, cache


def multihead_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None, None, None, None]:
    """dy (B, T, C) -> dx (B, T, C), dparams."""
    grads: Params = {}
    dmerged = _project_backward(dy, cache["out"], "out", grads)
    dq, dk, dv, *_ = attention_backward(_split(dmerged, cache["attention"]["out"].shape[1]), cache["attention"])
    dheads = {"q": dq, "k": dk, "v": dv}
    for name in ("q", "k"):
        if f"norm_{name}" in cache:
            dheads[name], _ = rmsnorm_backward(dheads[name], cache[f"norm_{name}"])
        if f"rope_{name}" in cache:
            dheads[name], _, _ = rope_backward(dheads[name], cache[f"rope_{name}"])
    dx = _project_backward(_merge(dheads["q"]), cache["q"], "q", grads)
    for name in ("k", "v"):
        dx += _project_backward(_merge(dheads[name]), cache[name], name, grads)
    return dx, grads, None, None, None, None
