"""Chapter 13. Optimizers: from gradients to better weights. All act in place on flat dictionaries name -> array.

With g the gradient of a weight w and a the learning rate:

    SGD with momentum   u = mu u + g,             w -= a u
    RMSprop             s = rho s + (1 - rho) g^2,  w -= a g / (sqrt(s) + eps)
    AdamW (arXiv:1711.05101)
        m = b1 m + (1 - b1) g                     a running mean of gradients,
        v = b2 v + (1 - b2) g^2                   and of their squares;
        m' = m / (1 - b1^t),  v' = v / (1 - b2^t)   both began at 0, which step t's divisors make up for
        w -= a weight_decay w                     decay acts on the weight itself ("decoupled"): put into g, it would be
        w -= a m' / (sqrt(v') + eps)              divided by sqrt(v') and hardly touch weights with large gradients

Each weight so moves by about a per step whatever the scale of its gradient. Only matrices decay: pulling a norm's scale
towards 0 is no regularisation.

Clipping (arXiv:1211.5063): if the norm of all gradients together exceeds c, all are scaled by c / norm. The direction
stays; one bad batch cannot throw the weights away.

Cost: AdamW reads four numbers and writes three per weight, 28 bytes, for about 12 FLOPs: bound by memory, so it is done
in pieces that stay in the cache. On small hardware, m and v, twice the size of the model, are what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from numpy_ref.linear import Array
from numpy_ref.multihead import Params

PIECE = 1 << 16  # weights at a time: five arrays of 256 kB in float32
State = dict[str, Any]


def global_norm(grads: Params) -> float:
    """L2 norm of all gradients as one vector."""
    return math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))


def clip_gradients(grads: Params, max_norm: float) -> float:
    """Scales gradients in place to a global norm of at most `max_norm` (0: leaves them); returns the norm before."""
    norm = global_norm(grads)
    if 0 < max_norm < norm + 1e-6:
        for g in grads.values():
            g *= max_norm / (norm + 1e-6)
    return norm


def adamw_init(params: Params) -> State:
    zeros = {name: np.zeros_like(p) for name, p in params.items()}
    return {"step": 0, "m": zeros, "v": {name: z.copy() for name, z in zeros.items()}}


def adamw_step(
    params: Params,
    grads: Params,
    state: State,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> None:
    """One step, in place on params and state. `weight_decay` acts on arrays of two axes or more."""
    state["step"] += 1
    b1, b2 = betas
    correct1, correct2 = 1 - b1 ** state["step"], 1 - b2 ** state["step"]
    for name, p in params.items():
        keep = 1 - lr * weight_decay if p.ndim >= 2 else 1.0
        for w, g, m, v in _pieces(p, grads[name], state["m"][name], state["v"][name]):
            m *= b1
            m += (1 - b1) * g
            square = g * g
            square *= 1 - b2
            v *= b2
            v += square
            np.multiply(v, 1 / correct2, out=square)
            np.sqrt(square, out=square)
            square += eps
            np.divide(m, square, out=square)
            square *= lr / correct1
            w *= keep
            w -= square


def sgd_init(params: Params) -> State:
    return {"u": {name: np.zeros_like(p) for name, p in params.items()}}


def sgd_step(params: Params, grads: Params, state: State, lr: float, momentum: float = 0.9) -> None:
    for name, p in params.items():
        for w, g, u in _pieces(p, grads[name], state["u"][name]):
            u *= momentum
            u += g
            w -= lr * u


def rmsprop_init(params: Params) -> State:
    return {"s": {name: np.zeros_like(p) for name, p in params.items()}}


def rmsprop_step(
    params: Params, grads: Params, state: State, lr: float, smoothing: float = 0.99, eps: float = 1e-8
) -> None:
    for name, p in params.items():
        for w, g, s in _pieces(p, grads[name], state["s"][name]):
            s *= smoothing
            s += (1 - smoothing) * (g * g)
            w -= lr * g / (np.sqrt(s) + eps)


def _pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Views of the same PIECE places of several arrays; those that are written, all but a gradient, are contiguous."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, PIECE):
        yield tuple(array[start : start + PIECE] for array in flat)


def lr_at(
    step: int, horizon: int, *, peak: float, kind: str = "cosine", warmup_steps: int = 0, final_ratio: float = 0.0
) -> float:
    """Learning rate of step 1 .. horizon: linear warmup to `peak`, then cosine (arXiv:1608.03983) or linear decay to
    `final_ratio * peak` at the horizon, where it stays, or constant. A pure function: nothing to save or restore."""
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if kind == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, horizon - warmup_steps))
    if kind == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return peak * (1 - (1 - final_ratio) * progress)
