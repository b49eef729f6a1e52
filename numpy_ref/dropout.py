"""Dropout (Srivastava et al. 2014): while training, each number becomes 0 with probability p.

    y = x m,   m = 0 with probability p, else 1 / (1 - p)        so that the expectation of y is x
    dx = dy m

The generator is an argument, never a hidden global: the same seed gives the same mask, so a training run can be
repeated and resumed bit for bit. In float32, 1 / (1 - p) is rounded, so that the expectation of y differs from x by a
relative error of up to about 1e-7. This is far less than the random variation that dropout itself causes.

Cost: one random number per value, which takes far longer than the product. On an FPGA, a linear-feedback shift register yields
the random numbers.
"""

from __future__ import annotations

import numpy as np

from numpy_ref.linear import Array, Cache


def dropout_forward(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Cache]:
    """Set each number of x to 0 with probability p and multiply the others by 1 / (1 - p).

    If `rng` is None (evaluation) or p is 0, the result is x itself, without a copy.
    """
    if rng is None or p == 0:
        return x, {"mask": None}
    mask = (rng.random(x.shape, dtype=np.float32) >= p).astype(x.dtype)
    mask *= 1 / (1 - p)
    return x * mask, {"mask": mask}


def dropout_backward(dy: Array, cache: Cache) -> tuple[Array, None, None]:
    """Multiply dy by the mask of `dropout_forward`; p and the generator have no gradient."""
    return (dy if cache["mask"] is None else dy * cache["mask"]), None, None
