"""The tolerance of float32 comparisons: every order of summation stays below it, and a small mistake does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rounding import Results, largest_share, spread, unit_gain

import numpy_ref
from numpy_ref import attention, gpt, multihead
from positron.config import GPTConfig

Array = np.ndarray

TERMS = {
    "of either sign": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.random(shape) + 0.1,
    "around 1": lambda rng, shape: 1 + rng.standard_normal(shape),
    "a few large ones": lambda rng, shape: rng.standard_normal(shape) ** 5,
}


def one_by_one(terms: Array) -> Array:
    return np.add.accumulate(terms, axis=0)[-1]


def in_lanes(terms: Array) -> Array:
    """16 partial sums side by side, as AVX-512 keeps them, or fewer."""
    lanes = math.gcd(16, len(terms))
    return one_by_one(one_by_one(terms.reshape(-1, lanes, *terms.shape[1:])))


def in_pairs(terms: Array) -> Array:
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = np.concatenate((terms[0:-1:2] + terms[1::2], odd))
    return terms[0]


def in_blocks(terms: Array) -> Array:
    """One after the other in blocks of 256, as matrix products go through the inner dimension."""
    return one_by_one(np.stack([one_by_one(terms[start : start + 256]) for start in range(0, len(terms), 256)]))


ORDERS: dict[str, Callable[[Array], Array]] = {
    "one by one": one_by_one,
    "backwards": lambda terms: one_by_one(terms[::-1]),
    "shuffled": lambda terms: one_by_one(np.random.default_rng(5).permutation(terms)),
    "in lanes": in_lanes,
    "in pairs": in_pairs,
    "in blocks": in_blocks,
}


@pytest.mark.parametrize("n", [2, 32, 768, 3072])
@pytest.mark.parametrize("kind", TERMS)
def test_a_sum_in_any_order_is_within_the_tolerance(kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x, w = (TERMS[kind](rng, shape).astype(np.float32) for shape in ((8, n), (n, 48)))

    def product(x: Array, w: Array) -> Results:
        return {"y": x @ w}

    typical, wanted = spread(product, x, w), product(x.astype(np.float64), w.astype(np.float64))
    terms = x.T[:, :, None] * w[:, None, :]
    found = {name: largest_share({"y": order(terms)}, wanted, typical)[1] for name, order in ORDERS.items()}
    assert max(found.values()) < 1, found
    assert found["one by one"] > 1 / 100, found  # and it is not far away


class OneByOne(np.ndarray):
    """Matrix products add up their terms one after the other, in the slowest order."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, OneByOne) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(x.view(np.ndarray) for x in out)
        if ufunc is np.matmul:
            x, w = plain
            result = sum(x[..., k : k + 1] * w[..., k : k + 1, :] for k in range(1, x.shape[-1])) + (
                x[..., :1] * w[..., :1, :]
            )
            if out is not None:
                options["out"][0][...] = result
        else:
            result = getattr(ufunc, method)(*plain, **options)
        if out is not None:
            return out[0]
        return result.view(OneByOne) if isinstance(result, np.ndarray) else result


def model(n_layer: int, **options: Any) -> tuple[GPTConfig, dict[str, Array], Callable[..., Results]]:
    config = GPTConfig(vocab_size=60, context_length=12, d_model=32, n_layer=n_layer, n_head=4, **options)
    rng = np.random.default_rng(0)
    idx, targets = rng.integers(0, 60, (2, 2, 12))

    def compute(params: dict[str, Array]) -> Results:
        loss, grads = numpy_ref.loss_and_grads(params, config, idx, targets)
        if config.bias and config.position != "rope" and not config.qk_norm:
            # softmax does not see a bias on the keys: what is left of its gradient is rounding
            grads = {name: grad for name, grad in grads.items() if not name.endswith("k.bias")}
        return {"loss": np.array(loss), **grads}

    return config, unit_gain(gpt.shapes(config)), compute


def exact(params: dict[str, Array]) -> dict[str, Array]:
    return {name: values.astype(np.float64) for name, values in params.items()}


MODERN = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True, "n_kv_head": 2}


@pytest.mark.parametrize("options", [{"bias": True}, MODERN], ids=["GPT-2", "modern"])
@pytest.mark.parametrize("n_layer", [1, 4])
def test_a_model_whose_products_add_up_one_by_one_is_within_the_tolerance(n_layer: int, options: dict) -> None:
    _, params, compute = model(n_layer, **options)
    slow = compute({name: values.view(OneByOne) for name, values in params.items()})
    name, share = largest_share(
        {n: np.asarray(g) for n, g in slow.items()}, compute(exact(params)), spread(compute, params)
    )
    assert share < 1, name


def attending(change: Callable[[Array, Array, Array], tuple[Array, Array, Array]]) -> Callable[[Any, Any], None]:
    """A mutant whose attention gets other queries, keys and values."""

    def mutate(monkeypatch: pytest.MonkeyPatch, params: dict[str, Array]) -> None:
        right = attention.attention_forward
        monkeypatch.setattr(multihead, "attention_forward", lambda q, k, v, *more: right(*change(q, k, v), *more))

    return mutate


def without(name: str) -> Callable[[Any, Any], None]:
    return lambda monkeypatch, params: params.update({name: 0 * params[name]})


def shift_positions(monkeypatch: pytest.MonkeyPatch, params: dict[str, Array]) -> None:
    params["wpe.weight"] = np.roll(params["wpe.weight"], 1, axis=0)


def scale_a_slope(monkeypatch: pytest.MonkeyPatch, params: dict[str, Array]) -> None:
    from numpy_ref import activation, mlp

    right = activation.activation_backward
    monkeypatch.setattr(mlp, "activation_backward", lambda dh, cache: tuple(1.001 * dx for dx in right(dh, cache)))


# what is wrong -> the mutation, and whether it is so large that it shows in bfloat16, too
MUTANTS: dict[str, tuple[Callable[[Any, Any], None], bool]] = {
    "scores scaled by 1.001": (attending(lambda q, k, v: (1.001 * q, k, v)), False),
    "values scaled by 0.999": (attending(lambda q, k, v: (q, k, 0.999 * v)), False),
    "a slope scaled by 1.001": (scale_a_slope, False),
    "no 1 / sqrt(d)": (attending(lambda q, k, v: (math.sqrt(q.shape[-1]) * q, k, v)), True),
    "two heads swapped": (attending(lambda q, k, v: (q[:, [1, 0, 2, 3]], k, v)), True),
    "no bias in attention": (without("blocks.0.attn.out.bias"), True),
    "no bias in the last layer": (without("blocks.1.mlp.down.bias"), True),
    "no bias in a norm": (without("norm_f.bias"), True),
    "positions shifted by one": (shift_positions, True),
}


@pytest.mark.parametrize("n_layer", [2, 12])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_mistakes_are_beyond_the_tolerance(dtype: str, n_layer: int) -> None:
    _, params, compute = model(n_layer, bias=True)
    wanted, typical = compute(exact(params)), spread(compute, params, dtype=dtype, sums="float32")
    survivors = {}
    for what, (mutate, is_large) in MUTANTS.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            mutated = exact(params)
            mutate(monkeypatch, mutated)
            _, share = largest_share(compute(mutated), wanted, typical)
        if share <= 1 and (is_large or dtype == "float32"):
            survivors[what] = share
    assert not survivors
