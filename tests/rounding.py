"""How far two right implementations may differ: the one tolerance of all comparisons in float32 and bfloat16.

Two implementations of the same formulas round differently: a matrix product adds its terms in an order that depends on
the library, the processor and the number of threads. The tolerance has to hold for all of them, and still tell rounding
from a mistake. Here it is derived from the computation itself (Monte Carlo arithmetic, Parker 1997):

1. A sum of n terms is rounded n times at most, whatever the order, each time by u of the partial sum (u: half a unit in
   the last place). Rounding errors are as often positive as negative, so they add up like a random walk: by about
   sqrt(n) u times the size of a partial sum (Higham & Mary 2019, "A new approach to probabilistic rounding error
   analysis"). Partial sums are as large as the result, or as the root of the sum of the squared terms, which is what a
   random walk through them reaches. This is the error of the slowest order, one term after the other; kernels that keep
   several partial sums are more precise.
2. Any other operation rounds its result once.
3. How these errors grow on their way to a logit or a gradient is not estimated but measured: the NumPy reference
   computes with arrays (`Rounded`) that add a random error of that size to the result of each operation.

`spread` returns the root mean square of what this changes over a few draws, relative to each result's norm. Two right
results differ by less than FACTOR times that: it covers the correlation of errors (one early rounding moves everything
after it) and the few draws. Norms, not largest elements, are compared: the largest of a million errors is a matter of luck.
tests/numpy_ref/test_rounding.py shows that sums in many orders stay below the tolerance and that small mistakes do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Results = Mapping[str, Array]

FACTOR = 6.0
DRAWS = 3
# Half a unit in the last place of a number in [1, 2).
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
# Errors smaller than this are drawn this large, and the change is divided by the factor: the arrays could not hold them
# otherwise, and the computation is linear in errors of this size.
SMALLEST_DRAWN = 2.0**-18
POOL = 1 << 18  # errors that are drawn; larger arrays repeat them

# ufuncs whose result is exact
_EXACT = (np.negative, np.absolute, np.maximum, np.minimum, np.isfinite, np.isnan, np.sign, np.positive, np.copysign)
# ufuncs that libraries compute to within a few units only
_TRANSCENDENTAL = (np.exp, np.log, np.tanh, np.sin, np.cos, np.power, np.expm1, np.log1p)


@dataclass
class Arithmetic:
    """The largest error of a result and of a partial sum, relative to it, and where errors are drawn from."""

    result: float
    partial_sum: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        # uniform within one unit, as rounding errors are; drawn once, read from random places
        self._errors = np.tile(self.rng.uniform(-1, 1, POOL).astype(np.float32), 2)

    def errors(self, shape: tuple[int, ...]) -> Array:
        start, size = int(self.rng.integers(POOL)), math.prod(shape)
        errors = self._errors[start : start + POOL]
        return (errors[:size] if size <= POOL else np.resize(errors, size)).reshape(shape)


class Rounded(np.ndarray):
    """An array whose operations have rounding errors of `arithmetic` added to their results."""

    arithmetic: Arithmetic | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.arithmetic = getattr(source, "arithmetic", None)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        arithmetic = next(x.arithmetic for x in (*inputs, *(out or ())) if isinstance(x, Rounded))
        assert arithmetic is not None
        plain = [_plain(x) for x in inputs]
        if out is not None:
            # an operation in place changes its inputs before their sizes are needed
            squares = _squared_terms(ufunc, method, plain, options)
            options["out"] = tuple(_plain(x) for x in out)
            result = getattr(ufunc, method)(*plain, **options)
        else:
            result = getattr(ufunc, method)(*plain, **options)
            squares = _squared_terms(ufunc, method, plain, options)
        if not isinstance(result, np.ndarray | np.floating) or not np.issubdtype(result.dtype, np.floating):
            return result
        result = _perturbed(np.asarray(result), ufunc, squares, arithmetic)
        return out[0] if out is not None else _rounded(result, arithmetic)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        arithmetic = self.arithmetic
        assert arithmetic is not None
        if function is np.einsum:
            subscripts, *operands = (_plain(x) for x in args)
            result = np.asarray(np.einsum(subscripts, *operands))
            terms = math.prod(_extents(subscripts, operands).values()) // max(1, result.size)
            squares = terms, np.einsum(subscripts, *(np.square(x) for x in operands))
            return _rounded(_perturbed(result, np.matmul, squares, arithmetic), arithmetic)
        result = super().__array_function__(function, types, args, kwargs)
        if isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.floating):
            return _rounded(result, arithmetic)
        return result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Rounded) else value


def _rounded(array: Array, arithmetic: Arithmetic) -> Rounded:
    view = array.view(Rounded)
    view.arithmetic = arithmetic
    return view


def _extents(subscripts: str, operands: list[Array]) -> dict[str, int]:
    """The length of each axis of an einsum; those behind "..." as "0", "1" and so on."""
    found: dict[str, int] = {}
    for letters, operand in zip(subscripts.partition("->")[0].split(","), operands, strict=True):
        named = letters.replace("...", "")
        hidden = [str(i) for i in range(operand.ndim - len(named))]
        before, dots, after = letters.partition("...")
        found.update(zip([*before, *(hidden if dots else ()), *after], operand.shape, strict=True))
    return found


def _squared_terms(ufunc: np.ufunc, method: str, inputs: list[Any], options: dict) -> tuple[int, Array] | None:
    """The number of terms of each sum and the sum of their squares; None for an operation that is not a sum."""
    if ufunc is np.matmul:
        return inputs[0].shape[-1], np.matmul(np.square(inputs[0]), np.square(inputs[1]))
    if ufunc is np.add and method in ("reduce", "reduceat"):
        options = {key: value for key, value in options.items() if key != "out"}
        squares = getattr(ufunc, method)(np.square(inputs[0]), *inputs[1:], **options)
        return max(1, inputs[0].size // max(1, squares.size)), squares
    return None


def _perturbed(result: Array, ufunc: np.ufunc, squares: tuple[int, Array] | None, arithmetic: Arithmetic) -> Array:
    """`result` with errors added in place."""
    if ufunc in _EXACT:
        return result
    number = result.dtype.type
    errors = arithmetic.errors(result.shape)
    units = number(arithmetic.result * (4 if ufunc in _TRANSCENDENTAL else 1))
    if squares is None:
        result *= 1 + (units * errors).astype(result.dtype, copy=False)  # a masked score is -inf and stays it
        return result
    terms, of_squares = squares
    per_partial_sum = number(arithmetic.partial_sum * math.sqrt(terms))
    size = np.sqrt(of_squares, dtype=result.dtype)
    size *= per_partial_sum
    size += (per_partial_sum + units) * np.abs(result)
    size *= errors
    result += size
    return result


def spread(
    compute: Callable[..., Results], *inputs: Any, dtype: str = "float32", sums: str | None = None, draws: int = DRAWS
) -> dict[str, float]:
    """The typical relative error of each result of `compute(*inputs)` in arithmetic of `dtype`, by norm.

    `compute` is the NumPy reference; it returns arrays by name. `inputs`: arrays, dictionaries of arrays, or anything
    else, which is passed on as it is. `sums`: the type in which products are added up where it is not `dtype`.
    """
    wanted = compute(*inputs)
    squares = dict.fromkeys(wanted, 0.0)
    magnified = max(1.0, SMALLEST_DRAWN / UNIT[dtype])
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        arithmetic = Arithmetic(magnified * UNIT[dtype], magnified * UNIT[sums or dtype], rng)
        for name, value in compute(*(_with_errors(each, arithmetic) for each in inputs)).items():
            squares[name] += relative_error(_plain(value), wanted[name]) ** 2 / draws
    # no result is more precise than its own rounding
    return {name: max(math.sqrt(square) / magnified, UNIT[dtype]) for name, square in squares.items()}


def _with_errors(value: Any, arithmetic: Arithmetic) -> Any:
    """`value` with its arrays of floating-point numbers as Rounded ones."""
    if isinstance(value, dict):
        return {key: _with_errors(part, arithmetic) for key, part in value.items()}
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return _rounded(value, arithmetic)
    return value


def relative_error(got: Any, wanted: Any) -> float:
    """The norm of the difference divided by the norm of `wanted`."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    norm, difference = (float(np.linalg.norm(x.reshape(-1))) for x in (wanted, got - wanted))
    assert math.isfinite(difference)
    return difference / (norm or 1.0)


def largest_share(got: Results, wanted: Results, typical: Mapping[str, float], both: bool = False) -> tuple[str, float]:
    """The result whose error is the largest share of its tolerance, and that share: above 1 it is not rounding.

    `wanted` is exact, or, with `both`, has rounding errors of the same size.
    """
    assert got.keys() == wanted.keys()
    factor = FACTOR * (math.sqrt(2) if both else 1.0)
    found = {name: relative_error(got[name], wanted[name]) / (factor * typical[name]) for name in got}
    return max(found.items(), key=lambda item: item[1])


def unit_gain(shapes: Mapping[str, tuple[int, ...]], seed: int = 2) -> dict[str, Array]:
    """Random float32 parameters with which numbers keep their size from layer to layer, norms and biases away from 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        params[name] = values * np.float32(shape[-1] ** -0.5) if len(shape) > 1 else 1 + values / 2
    return params
