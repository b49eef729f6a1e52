"""Gradients by central finite differences in float64: the oracle of every backward pass of numpy_ref."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EPSILON = 1e-6
# A central difference errs by h^2/6 f''' (1e-12) and by rounding, eps |f| / h (1e-10): 1e-7 leaves room for curvature
# and still refuses any wrong term.
TOLERANCE = 1e-7


def numeric(f: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """Compute dF/darray, one number after the other, by central differences."""
    gradient = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + EPSILON
        above = f()
        array[place] = kept - EPSILON
        below = f()
        array[place] = kept
        gradient[place] = (above - below) / (2 * EPSILON)
    return gradient


def compare(got: np.ndarray, f: Callable[[], float], array: np.ndarray, name: str) -> None:
    """Assert that `got` is dF/darray up to the error of finite differences."""
    wanted = numeric(f, array)
    assert got.shape == array.shape, name
    error = np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())
    assert error < TOLERANCE, f"{name}: {error:.1e}"
