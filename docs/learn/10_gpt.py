"""The numbers of chapter 10: one block on a token that is alone, and gradients through a deep stack."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.block import block_backward, block_forward
from numpy_ref.config import GPTConfig
from numpy_ref.dropout import dropout_forward
from numpy_ref.gpt import init_params, shapes
from numpy_ref.linear import Array
from numpy_ref.mlp import mlp_backward, mlp_forward
from numpy_ref.multihead import strip_prefix
from numpy_ref.norm import rmsnorm_backward, rmsnorm_forward
from scripts.learn_pages import Value, panels

CONFIG = GPTConfig(
    vocab_size=1, context_length=1, d_model=2, n_layer=1, n_head=1, d_ff=2, norm="rmsnorm", activation="relu2"
)
X = np.array([[[1.0, 7.0]]])
DY = np.array([[[4.0, 8.0]]])
PARAMS = {
    "norm1.weight": np.ones(2),
    "attn.q.weight": np.eye(2),
    "attn.k.weight": np.eye(2),
    "attn.v.weight": 5 * np.eye(2),
    "attn.out.weight": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "norm2.weight": np.ones(2),
    "mlp.up.weight": np.array([[1.0, 1.0], [2.0, -1.0]]),
    "mlp.down.weight": np.array([[0.25, 0.0], [0.0, -1.0]]),
}


def example() -> dict[str, Value]:
    """Compute a block forward and backward, with the stream between its two branches."""
    y, cache = block_forward(X, PARAMS, CONFIG)
    dx, *_ = block_backward(DY, cache)
    h1, _ = rmsnorm_forward(X)
    attention = h1 @ PARAMS["attn.v.weight"].T @ PARAMS["attn.out.weight"].T
    middle = X + attention
    h2, norm_cache = rmsnorm_forward(middle)
    f, mlp_cache = mlp_forward(h2, strip_prefix(PARAMS, "mlp."), "relu2")
    dmiddle = DY + rmsnorm_backward(mlp_backward(DY, mlp_cache)[0], norm_cache)[0]
    return {
        "x": X[0],
        "Wv": PARAMS["attn.v.weight"],
        "Wo": PARAMS["attn.out.weight"],
        "Wu": PARAMS["mlp.up.weight"],
        "Wd": PARAMS["mlp.down.weight"],
        "h1": h1[0],
        "a": attention[0],
        "m": middle[0],
        "h2": h2[0],
        "f": f[0],
        "y": y[0],
        "dy": DY[0],
        "dm": dmiddle[0],
        "dx": dx[0],
        "step_flops": 6.0 * 10**7 * 32_768,
        "bf16_sum": to_bfloat16(to_bfloat16(100.0) + to_bfloat16(0.1)),
    }


def to_bfloat16(number: float) -> float:
    """Round to 8 significant binary digits: a float32 without its lower 16 bits, to even on a tie."""
    bits = int(np.float32(number).view(np.uint32))
    bits += 0x7FFF + (bits >> 16 & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    config = GPTConfig(vocab_size=100, context_length=16, d_model=8, n_layer=2, n_head=2, d_ff=32)
    y, _ = dropout_forward(np.full(1000, 4.0), 0.2, np.random.default_rng(0))
    zeros = {name: p if "norm" in name else np.zeros_like(p) for name, p in PARAMS.items()}
    zero_y, cache = block_forward(X, zeros, CONFIG)
    return [
        {"n_weights": int(sum(np.prod(shape) for shape in shapes(config).values()))},
        {"kept": float(y.max()), "variance": 0.8 * float(y.max()) ** 2 - 4.0**2},
        {"zero_y": zero_y[0], "zero_dx": block_backward(DY, cache)[0][0]},
    ]


def gradient_norms(skip: bool, layers: int = 16) -> list[float]:
    """Return the norm of the gradient at the input of each MLP of a stack, with or without x + in front."""
    config = GPTConfig(vocab_size=1, context_length=16, d_model=64, n_layer=layers, n_head=4)
    params = init_params(config, seed=0, dtype=np.float64)
    x: Array = np.random.default_rng(0).standard_normal((1, 16, 64))
    caches = []
    for i in range(layers):
        branch, cache = mlp_forward(x, strip_prefix(params, f"blocks.{i}.mlp."), "gelu")
        caches.append(cache)
        x = x + branch if skip else branch
    dx: Array = np.random.default_rng(1).standard_normal(x.shape)
    norms = []
    for cache in reversed(caches):
        back, *_ = mlp_backward(dx, cache)
        dx = dx + back if skip else back
        norms.append(float(np.linalg.norm(dx)))
    return norms[::-1]


def figure() -> Figure:
    """Draw the size of the gradient in each of 16 MLPs, with and without the plus sign."""
    drawing, (ax,) = panels(6, 2.8)
    for skip, name in ((True, "$x$ + mlp($x$)"), (False, "mlp($x$) alone")):
        ax.semilogy(range(1, 17), gradient_norms(skip), marker="o", markersize=4, label=name)
    ax.set(xlabel="layer", ylabel="norm of the gradient")
    ax.legend(loc="lower right")
    return drawing
