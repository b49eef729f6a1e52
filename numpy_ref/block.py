"""The pre-norm residual block: attention and MLP each add a correction to the residual stream.

    m = x + dropout(attention(norm1(x)))
    y = m + dropout(mlp(norm2(m)))

Backward. y depends on m directly and through the MLP branch, so the gradients add: dm = dy + branch_backward(dy). Because of
the first term, deep networks can be trained: whatever the branches do, the gradient at the end of the stream is a term of the
gradient at every layer.

Cost: that of the norms, attention and the MLP, and two additions, each of which moves 12 bytes per float32 number (two read,
one written) for 1 FLOP. In fixed point, the residual stream needs more bits than the branches, because it is the sum of 2 L
branches.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np

from numpy_ref.config import GPTConfig
from numpy_ref.dropout import dropout_backward, dropout_forward
from numpy_ref.linear import Array, Cache, Params
from numpy_ref.mlp import mlp_backward, mlp_forward
from numpy_ref.multihead import Past, Rope, add_prefix, multihead_backward, multihead_forward, strip_prefix
from numpy_ref.norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward


def norm_forward(x: Array, params: Params, config: GPTConfig) -> tuple[Array, Cache]:
    """Apply the norm that `config` chooses, LayerNorm or RMSNorm: x (..., C) -> (..., C).

    params: weight (C,) and, for a LayerNorm with bias, bias (C,).
    """
    match config.norm:
        case "layernorm":
            return layernorm_forward(x, params["weight"], params.get("bias"), config.norm_eps)
        case "rmsnorm":
            return rmsnorm_forward(x, params["weight"], config.norm_eps)
        case _:
            assert_never(config.norm)


def norm_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None]:
    """Compute the gradients of `norm_forward`: dy (..., C) -> dx (..., C), dparams by name, None for `config`."""
    if "bias" not in cache:
        dx, dweight = rmsnorm_backward(dy, cache)
        dbias = None
    else:
        dx, dweight, dbias = layernorm_backward(dy, cache)
    return dx, {name: d for name, d in (("weight", dweight), ("bias", dbias)) if d is not None}, None


def block_forward(
    x: Array,
    params: Params,
    config: GPTConfig,
    rope: Rope | None = None,
    rng: np.random.Generator | None = None,
    past: Past | None = None,
) -> tuple[Array, Cache]:
    """Add the attention branch, then the MLP branch, to x: x (B, T, C) -> (B, T, C).

    params: norm1.*, attn.*, norm2.*, mlp.*. See `multihead_forward` for `rope`, `rng` and `past`.
    """
    cache: Cache = {}
    h, cache["norm1"] = norm_forward(x, strip_prefix(params, "norm1."), config)
    h, cache["attn"] = multihead_forward(h, strip_prefix(params, "attn."), config, rope, rng, past)
    h, cache["drop1"] = dropout_forward(h, config.dropout, rng)
    middle = x + h  # (B, T, C)
    h, cache["norm2"] = norm_forward(middle, strip_prefix(params, "norm2."), config)
    h, cache["mlp"] = mlp_forward(h, strip_prefix(params, "mlp."), config.activation)
    h, cache["drop2"] = dropout_forward(h, config.dropout, rng)
    return middle + h, cache


def block_backward(dy: Array, cache: Cache) -> tuple[Array, Params, None, None, None, None]:
    """Compute the gradients of `block_forward`: dy (B, T, C) -> dx (B, T, C), dparams by name.

    The other arguments have no gradient (None).
    """
    dh, _, _ = dropout_backward(dy, cache["drop2"])
    dh, mlp, _ = mlp_backward(dh, cache["mlp"])
    dmiddle, norm2, _ = norm_backward(dh, cache["norm2"])
    dmiddle += dy
    dh, _, _ = dropout_backward(dmiddle, cache["drop1"])
    dh, attn, *_ = multihead_backward(dh, cache["attn"])
    dx, norm1, _ = norm_backward(dh, cache["norm1"])
    dx += dmiddle
    parts = {"norm1.": norm1, "attn.": attn, "norm2.": norm2, "mlp.": mlp}
    grads = {name: grad for prefix, part in parts.items() for name, grad in add_prefix(part, prefix).items()}
    return dx, grads, None, None, None, None
