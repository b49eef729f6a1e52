"""Optimizers: from gradients to better weights. Each step changes a flat dictionary, name -> array, in place.

Let g be the gradient of a weight w and a the learning rate. AdamW combines two methods, which are here only for comparison
(no command trains with them):

    SGD with momentum   u = mu u + g,             w -= a u
    RMSprop             s = rho s + (1 - rho) g^2,  w -= a g / (sqrt(s) + eps)

The torch model is trained with one of two optimizers:

    AdamW (arXiv:1711.05101)
        m = b1 m + (1 - b1) g                       the running mean of the gradients, 0 at the start
        v = b2 v + (1 - b2) g^2                     the running mean of their squares, 0 at the start
        m' = m / (1 - b1^t),  v' = v / (1 - b2^t)   at step t, these divisors correct the bias that the start at 0 causes
        w -= a weight_decay w                       the weight decay, "decoupled" from the gradient
        w -= a m' / (sqrt(v') + eps)                the step

    Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all other parameters
        m = mu m + (1 - mu) g,  n = mu m + (1 - mu) g       Nesterov's momentum: g is mixed in a second time
        w -= a weight_decay w + 0.2 a sqrt(max(rows, columns)) U V^T,  where n = U S V^T is the singular value decomposition

Decoupled decay acts on the weight itself. If the decay were added to g, AdamW would divide it by sqrt(v'), and it would hardly
change the weights that have large gradients.

The singular values S of a gradient fall steeply, so a plain step goes far along few directions. U V^T, the orthogonal matrix
nearest to n, goes equally far along all directions. It is computed without a decomposition, with a polynomial

    p(x) = p1 x + p3 x^3 + p5 x^5        p(U S V^T) = U p(S) V^T, since n n^T = U S^2 U^T

that acts on the singular values alone. n is scaled so that S <= 1, and p is applied five times. Then every value that was above
0.0015 lies between 0.68 and 1.21: p is chosen for speed, and values near 1 are enough.

The root mean square of the entries of U V^T is 1 / sqrt(max(rows, columns)). That of AdamW's step, divided by a, is about 0.2.
The factor 0.2 sqrt(max(rows, columns)) makes both steps equally large (arXiv:2502.16982), so that one learning rate suits both.

Each weight therefore moves by up to about the learning rate in a step, whatever the scale of its gradient. Only matrices decay:
pulling the scale of a norm towards 0 is not a regularisation.

Averaging (Polyak and Juditsky 1992; arXiv:1803.05407): while the learning rate is above 0, the weights move around a good
place in random directions, and their mean is nearer to it. With a time constant of tau steps, the mean m follows the weights w
in the last 4 tau steps of a training:

    m <- m + max(1 / tau, 1 / n) (w - m)        n = 1, 2, ... counts the steps of the mean

For n <= tau, m is the plain mean of n weights, and afterwards an exponential one.

Clipping (arXiv:1211.5063): if the norm of all gradients together exceeds max_norm, all are multiplied by max_norm / norm. The
direction stays the same, and one bad batch cannot ruin the weights.

Cost: AdamW reads four numbers and writes three per weight, 28 bytes, for about 12 FLOPs. Memory is the limit, so AdamW works in
blocks that stay in the cache. Muon keeps one mean instead of two and costs 5 (4 r^2 c + 2 r^3) FLOPs for a matrix of r x c with
r <= c. For example, a block of C channels has four matrices C x C and, if its MLP has 4 C units, two matrices C x 4 C. They
cost 300 C^3 FLOPs, as much as the forward pass of the block over 12.5 C tokens (24 C^2 per token). On small hardware, m and v,
twice the size of the model, are the first arrays that no longer fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, assert_never

import numpy as np

from numpy_ref.linear import Array, Params

BLOCK_WEIGHTS = 1 << 16  # five arrays of 256 kB in float32
State = dict[str, Any]
Schedule = Literal["cosine", "linear", "constant", "trapezoid"]


def global_norm(grads: Params) -> float:
    """Return the L2 norm of all gradients as one vector."""
    return math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))


def clip_gradients(grads: Params, max_norm: float) -> float:
    """Scale the gradients in place to a global norm of at most `max_norm`; return the norm that they had before.

    With `max_norm` 0 the gradients are not changed.
    """
    norm = global_norm(grads)
    if 0 < max_norm < norm + 1e-6:
        for g in grads.values():
            g *= max_norm / (norm + 1e-6)
    return norm


def adamw_init(params: Params) -> State:
    """Return AdamW's state before the first step: the means m and v, all 0, and the step 0."""
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
    """Take one AdamW step, in place on params and state. `weight_decay` acts on arrays of two axes or more."""
    state["step"] += 1
    _adamw(params, list(params), grads, state, lr, betas, eps, weight_decay)


def _adamw(
    params: Params,
    names: list[str],
    grads: Params,
    state: State,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update the parameters `names` in place, in blocks that fit the cache.

    In plain NumPy, for step t, with correct1 = 1 - b1**t and correct2 = 1 - b2**t, and weight_decay = 0 for arrays of one axis:

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        w = w * (1 - lr * weight_decay) - lr * (m / correct1) / (np.sqrt(v / correct2) + eps)
    """
    b1, b2 = betas
    correct1, correct2 = 1 - b1 ** state["step"], 1 - b2 ** state["step"]
    for name in names:
        p = params[name]
        keep = 1 - lr * weight_decay if p.ndim >= 2 else 1.0
        for w, g, m, v in _blocks(p, grads[name], state["m"][name], state["v"][name]):
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


def is_hidden(name: str, p: Array) -> bool:
    """Tell whether a parameter is a matrix of a transformer block; Muon updates only these, and AdamW all other parameters."""
    return p.ndim == 2 and name.startswith("blocks.")


def muon_init(params: Params) -> State:
    """Return Muon's state before the first step: the step 0, m for every parameter, and v for those that AdamW updates."""
    adamw_params = {name: p for name, p in params.items() if not is_hidden(name, p)}
    state = adamw_init(adamw_params)
    state["m"] |= {name: np.zeros_like(p) for name, p in params.items() if is_hidden(name, p)}
    return state


def muon_step(
    params: Params,
    grads: Params,
    state: State,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    embedding_ratio: float = 1.0,
) -> None:
    """Take one Muon step, in place on params and state.

    `momentum` is for the matrices of the blocks, `betas` and `eps` are for the parameters that AdamW updates (see `is_hidden`).
    `weight_decay` acts on arrays of two axes or more. Embeddings and the output head have `embedding_ratio` times the learning
    rate.
    """
    state["step"] += 1
    tables = [name for name in state["v"] if params[name].ndim >= 2]
    vectors = [name for name in state["v"] if params[name].ndim < 2]
    _adamw(params, tables, grads, state, embedding_ratio * lr, betas, eps, weight_decay)
    _adamw(params, vectors, grads, state, lr, betas, eps, weight_decay)
    for name, w in params.items():
        if is_hidden(name, w):
            g, m = grads[name], state["m"][name]
            m *= momentum
            m += (1 - momentum) * g
            step = orthogonalize(momentum * m + (1 - momentum) * g)
            w *= 1 - lr * weight_decay
            w -= (0.2 * lr * math.sqrt(max(w.shape))) * step


def orthogonalize(x: Array, iterations: int = 5) -> Array:
    """Return an approximation of U V^T for x = U S V^T (n, m).

    `iterations` says how often the polynomial of this module is applied. After 5 iterations, singular values above 0.0015 times
    the Frobenius norm of x have become values between 0.68 and 1.21. Smaller singular values have become values below 0.68, and
    0 stays 0.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T, iterations).T  # so that x x^T below has the size of the shorter side
    x = x / max(float(np.linalg.norm(x)), 1e-7)  # the largest singular value is at most this norm
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def sgd_init(params: Params) -> State:
    """Return the state of SGD before the first step: the momentum u, all 0."""
    return {"u": {name: np.zeros_like(p) for name, p in params.items()}}


def sgd_step(params: Params, grads: Params, state: State, lr: float, momentum: float = 0.9) -> None:
    """Take one step of SGD with momentum, in place on params and state. SGD is here only for comparison with AdamW."""
    for name, p in params.items():
        for w, g, u in _blocks(p, grads[name], state["u"][name]):
            u *= momentum
            u += g
            w -= lr * u


def rmsprop_init(params: Params) -> State:
    """Return the state of RMSprop before the first step: the running means s of squared gradients, all 0."""
    return {"s": {name: np.zeros_like(p) for name, p in params.items()}}


def rmsprop_step(
    params: Params, grads: Params, state: State, lr: float, smoothing: float = 0.99, eps: float = 1e-8
) -> None:
    """Take one RMSprop step, in place on params and state. RMSprop is here only for comparison with AdamW."""
    for name, p in params.items():
        for w, g, s in _blocks(p, grads[name], state["s"][name]):
            s *= smoothing
            s += (1 - smoothing) * (g * g)
            w -= lr * g / (np.sqrt(s) + eps)


def _blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Cut arrays of equal size into slices; yield the first slice of each array as a tuple, then the second, and so on.

    A slice has at most 65,536 numbers (BLOCK_WEIGHTS), so that the slices of five arrays fit the processor's cache. The slices
    of a contiguous array are views, through which the caller can change the array. Any other array is copied.
    """
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK_WEIGHTS):
        yield tuple(array[start : start + BLOCK_WEIGHTS] for array in flat)


def lr_at(
    step: int,
    horizon: int,
    *,
    peak: float,
    kind: Schedule = "cosine",
    warmup_steps: int = 0,
    final_ratio: float = 0.0,
    decay_share: float = 0.4,
) -> float:
    """Compute the learning rate of a step, counted from 1: a linear warmup to `peak`, then the schedule `kind`.

    The warmup ends at the step `warmup_steps`. "constant" stays at `peak`. The other schedules reach `final_ratio * peak` at
    the step `horizon` and stay there: "cosine" (arXiv:1608.03983) and "linear" decay from the end of the warmup on, "trapezoid"
    (arXiv:2405.18392) stays at `peak` first and decays linearly during the last `decay_share` of the steps up to `horizon`.
    This is a pure function, so there is no state to save or restore.
    """
    match kind:
        case "cosine":
            decayed = (1 - math.cos(math.pi * _progress(step, warmup_steps, horizon))) / 2
        case "linear":
            decayed = _progress(step, warmup_steps, horizon)
        case "constant":
            decayed = 0.0
        case "trapezoid":
            begin = max(warmup_steps, min(horizon - 1, round((1 - decay_share) * horizon)))
            decayed = _progress(step, begin, horizon)
        case _:
            assert_never(kind)
    return peak * step / warmup_steps if step <= warmup_steps else peak * (1 - (1 - final_ratio) * decayed)


def average_step(means: Params, params: Params, step: int, *, horizon: int, share: float) -> None:
    """Add the weights after a step, counted from 1, to their running mean, in place.

    `means` is empty before the mean begins. `horizon` is the number of the last step, and `share` the time constant as a share
    of the horizon. With 0 there is never a mean.
    """
    tau = share * horizon
    n = step - max(1, horizon - round(4 * tau)) + 1
    if not share or n < 1:
        return
    for name, w in params.items():
        means[name] = w.copy() if name not in means else means[name] + min(1, max(1 / tau, 1 / n)) * (w - means[name])


def _progress(step: int, begin: int, end: int) -> float:
    """Return the share of the steps from `begin` to `end` that is done at `step`: 0 before `begin`, 1 after `end`."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
