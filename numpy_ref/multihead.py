"""Multi-head attention: H small attentions in parallel, each with its own queries and keys.

    q, k, v = x Wq^T, x Wk^T, x Wv^T        (B, T, H D), and (B, T, K D) for keys and values
    split into heads, rotate q and k by their positions (`rope.py`), bring them to a root mean square of 1 (QK-norm)
    attend (`attention.py`), concatenate the heads, and mix them: y = O Wo^T

Backward runs through the same list from the last line to the first. x was used three times, so dx is the sum of three
contributions.

QK-norm (arXiv:2010.04245) is RMSNorm without weight over the D channels of each head: |q| = |k| = sqrt(D), so no score can
exceed sqrt(D) however large the weights grow. It comes after the rotation, which does not change lengths. With a learned scale
(Qwen3, arXiv:2505.09388), QK-norm comes before the rotation. The two channels of a rotated pair have different scales; applied
after the rotation, they would make scores depend on more than distances.

A bias on the keys adds the same number, the dot product of q and the bias, to all scores of a query. Softmax ignores what is
added to a whole row. So in a model with neither rotation nor QK-norm, the gradient of this bias is 0, and the computed value is
rounding noise.

A window (Longformer, arXiv:2004.05150) lets a token attend to the last W tokens only, itself included. Through L layers
information still travels over L (W - 1) tokens. A token needs at most W keys, however long the text is; this file nevertheless
multiplies all keys and masks those outside the window.

Generation: keys and values of past tokens never change, so a `Past` keeps them, and a forward pass computes only the new token.

Cost: 2 N C (2 H D + 2 K D) FLOPs for the projections of N = B T tokens. With K < H, the cache of keys and values has K / H of
the size. This matters because memory limits generation. It matters even more on an FPGA, where the cache has to fit the chip.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from numpy_ref.attention import attention_backward, attention_forward, window_mask
from numpy_ref.config import GPTConfig
from numpy_ref.linear import Array, Cache, Params, named_linear_backward, named_linear_forward
from numpy_ref.norm import rmsnorm_backward, rmsnorm_forward
from numpy_ref.rope import rope_backward, rope_forward

Rope = tuple[Array, Array]  # cos and sin, (T, D/2) each
Value = TypeVar("Value")


def strip_prefix(params: Params, prefix: str) -> Params:
    """Select the parameters whose names begin with `prefix` and remove it from their names."""
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def add_prefix(params: dict[str, Value], prefix: str) -> dict[str, Value]:
    """Put `prefix` before every name."""
    return {prefix + name: value for name, value in params.items()}


class Past:
    """Hold the key/value cache of one layer: k and v (B, K, capacity, D), of which the first `length` tokens are filled.

    K is the number of key/value heads and `capacity` the largest number of tokens. With smearing, `last` (B, C) in the cache of
    the first layer is the embedding of the token read last, a multiple of which is added to the embedding of the next token.
    """

    def __init__(self, batch: int, config: GPTConfig, capacity: int, dtype: Any) -> None:
        shape = (batch, config.kv_heads, capacity, config.d_head)
        self.k, self.v, self.length = np.zeros(shape, dtype), np.zeros(shape, dtype), 0
        self.last: Array | None = None

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append the keys and values of T tokens and return all so far: k and v (B, K, T, D) -> (B, K, length, D) each.

        K is the number of key/value heads.
        """
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


def _split(x: Array, heads: int) -> Array:
    """Split the channels into heads: (B, T, heads * D) -> (B, heads, T, D)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _merge(x: Array) -> Array:
    """Concatenate the heads: (B, heads, T, D) -> (B, T, heads * D)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def multihead_forward(
    x: Array,
    params: Params,
    config: GPTConfig,
    rope: Rope | None = None,
    rng: np.random.Generator | None = None,
    past: Past | None = None,
) -> tuple[Array, Cache]:
    """Compute multi-head attention: x (B, T, C) -> (B, T, C).

    params: {q, k, v, out}.weight; if config.bias also {q, k, v, out}.bias; if config.qk_scale also {q, k}_norm.weight.
    `rope` holds cos and sin of the positions of x; None: no rotary positions. `rng` draws the dropout masks of training;
    None: no dropout. `past` is the key/value cache of this layer; x then continues the tokens in the cache.
    """
    cache: Cache = {}
    heads = {}
    for name, count in (("q", config.n_head), ("k", config.kv_heads), ("v", config.kv_heads)):
        y, cache[name] = named_linear_forward(x, params, name)  # (B, T, heads * D)
        heads[name] = _split(y, count)  # (B, heads, T, D)
    for name in ("q", "k"):
        if config.qk_scale:
            scale = params[f"{name}_norm.weight"]  # (D,), the same for all heads
            heads[name], cache[f"scaled_{name}"] = rmsnorm_forward(heads[name], scale, config.norm_eps)
        if rope is not None:
            heads[name], cache[f"rope_{name}"] = rope_forward(heads[name], *rope)
        if config.qk_norm and not config.qk_scale:
            heads[name], cache[f"norm_{name}"] = rmsnorm_forward(heads[name], eps=config.norm_eps)
    k, v = (heads["k"], heads["v"]) if past is None else past.extend(heads["k"], heads["v"])
    mask = None if config.window is None else window_mask(x.shape[1], k.shape[2], config.window)
    y, cache["attention"] = attention_forward(heads["q"], k, v, mask, config.dropout, rng)  # (B, H, T, D)
    y, cache["out"] = named_linear_forward(_merge(y), params, "out")  # (B, T, C)
    return y, cache


def multihead_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None, None, None, None]:
    """Compute the gradients of `multihead_forward`: dy (B, T, C) -> dx (B, T, C), dparams by name.

    The other arguments have no gradient (None).
    """
    grads: Params = {}
    dmerged = named_linear_backward(dy, cache["out"], "out", grads)  # (B, T, H * D)
    dq, dk, dv, *_ = attention_backward(_split(dmerged, cache["attention"]["out"].shape[1]), cache["attention"])
    dheads = {"q": dq, "k": dk, "v": dv}
    for name in ("q", "k"):
        if f"norm_{name}" in cache:
            dheads[name], _ = rmsnorm_backward(dheads[name], cache[f"norm_{name}"])
        if f"rope_{name}" in cache:
            dheads[name], _, _ = rope_backward(dheads[name], cache[f"rope_{name}"])
        if f"scaled_{name}" in cache:
            dheads[name], dscale = rmsnorm_backward(dheads[name], cache[f"scaled_{name}"])
            assert dscale is not None
            grads[f"{name}_norm.weight"] = dscale
    dx = named_linear_backward(_merge(dheads["q"]), cache["q"], "q", grads)
    for name in ("k", "v"):
        dx += named_linear_backward(_merge(dheads[name]), cache[name], name, grads)
    return dx, grads, None, None, None, None
