"""The first check of numpy_ref: every backward against central finite differences in float64. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from differences import compare

from numpy_ref.activation import ACTIVATIONS, activation_backward, activation_forward, erf
from numpy_ref.attention import attention_backward, attention_forward, attention_weights, window_mask
from numpy_ref.block import block_backward, block_forward
from numpy_ref.config import GPTConfig
from numpy_ref.dropout import dropout_backward, dropout_forward
from numpy_ref.embedding import (
    embedding_backward,
    embedding_forward,
    position_backward,
    position_forward,
    smear_backward,
    smear_forward,
)
from numpy_ref.gpt import forward, init_params, loss_and_grads, shapes
from numpy_ref.linear import linear_backward, linear_forward
from numpy_ref.loss import (
    cross_entropy_backward,
    cross_entropy_forward,
    softmax_backward,
    softmax_forward,
)
from numpy_ref.mlp import mlp_backward, mlp_forward
from numpy_ref.multihead import multihead_backward, multihead_forward
from numpy_ref.norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward
from numpy_ref.rope import rope_backward, rope_forward, rope_tables


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def check_gradients(
    forward: Callable, backward: Callable, *arguments: Any, rng: np.random.Generator, **options: Any
) -> None:
    """Every float argument's gradient under a random upstream gradient; flat dictionaries of arrays, too."""
    out, cache = forward(*arguments, **options)
    upstream = rng.standard_normal(out.shape)
    gradients = backward(upstream, cache)

    def f() -> float:
        return float((forward(*arguments, **options)[0] * upstream).sum())

    for i, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray) and argument.dtype == np.float64:
            if gradients[i] is not None:
                compare(gradients[i], f, argument, f"argument {i}")
        elif isinstance(argument, dict):
            assert set(gradients[i]) == set(argument)
            for name, array in argument.items():
                compare(gradients[i][name], f, array, name)


@pytest.mark.parametrize("bias", [False, True])
def test_linear(rng: np.random.Generator, bias: bool) -> None:
    b = rng.standard_normal(3) if bias else None
    check_gradients(
        linear_forward, linear_backward, rng.standard_normal((2, 4, 5)), rng.standard_normal((3, 5)), b, rng=rng
    )


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(rng: np.random.Generator, kind: str) -> None:
    check_gradients(activation_forward, activation_backward, 2 * rng.standard_normal((3, 7)), kind, rng=rng)


def test_activation_in_pieces_equals_activation_at_once(rng: np.random.Generator, monkeypatch: Any) -> None:
    x = rng.standard_normal((5, 7))
    wanted, cache = activation_forward(x, "gelu")
    monkeypatch.setattr("numpy_ref.activation.BLOCK_NUMBERS", 4)
    got, pieces = activation_forward(x, "gelu")
    assert np.array_equal(got, wanted)
    assert np.array_equal(pieces["slope"], cache["slope"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_equals_the_standard_librarys(dtype: Any) -> None:
    import math

    x = np.linspace(-8, 8, 1001).astype(dtype)
    wanted = np.array([math.erf(float(v)) for v in x])
    # e^(-x^2) carries the rounding of x^2, which is up to 36 eps where erf is not yet exactly 1
    assert np.abs(erf(x) - wanted).max() < 18 * np.finfo(dtype).eps


@pytest.mark.parametrize("bias", [False, True])
def test_layernorm(rng: np.random.Generator, bias: bool) -> None:
    b = rng.standard_normal(6) if bias else None
    check_gradients(
        layernorm_forward, layernorm_backward, 3 + rng.standard_normal((2, 3, 6)), rng.standard_normal(6), b, rng=rng
    )


@pytest.mark.parametrize("weight", [False, True])
def test_rmsnorm(rng: np.random.Generator, weight: bool) -> None:
    w = rng.standard_normal(6) if weight else None
    check_gradients(rmsnorm_forward, rmsnorm_backward, 1 + rng.standard_normal((2, 3, 6)), w, rng=rng)


def test_embedding_adds_up_repeated_tokens(rng: np.random.Generator) -> None:
    idx = np.array([[3, 1, 3, 3], [0, 1, 3, 5]])
    weight = rng.standard_normal((7, 4))
    check_gradients(embedding_forward, embedding_backward, idx, weight, rng=rng)


def test_position(rng: np.random.Generator) -> None:
    check_gradients(
        position_forward, position_backward, rng.standard_normal((2, 3, 4)), rng.standard_normal((6, 4)), rng=rng
    )
    check_gradients(
        position_forward, position_backward, rng.standard_normal((2, 3, 4)), rng.standard_normal((6, 4)), 2, rng=rng
    )


def test_smear(rng: np.random.Generator) -> None:
    check_gradients(smear_forward, smear_backward, rng.standard_normal((2, 5, 4)), rng.standard_normal(4), rng=rng)
    x, w = rng.standard_normal((2, 5, 4)), rng.standard_normal(4)
    whole, parts = smear_forward(x, w)[0], [smear_forward(x[:, :2], w)[0], smear_forward(x[:, 2:], w, x[:, 1])[0]]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_rope(rng: np.random.Generator) -> None:
    check_gradients(rope_forward, rope_backward, rng.standard_normal((2, 3, 5, 6)), *rope_tables(5, 6), rng=rng)


def test_dropout(rng: np.random.Generator) -> None:
    class Same:  # the same mask at every call, as the same generator state would give
        def random(self, shape: Any, dtype: Any) -> np.ndarray:
            return np.random.default_rng(5).random(shape, dtype=dtype)

    check_gradients(dropout_forward, dropout_backward, rng.standard_normal((4, 6)), 0.4, Same(), rng=rng)


def test_dropout_keeps_the_mean_and_erases_its_share() -> None:
    y, _ = dropout_forward(np.ones(100_000), 0.2, np.random.default_rng(0))
    assert set(np.unique(y)) == {0, 1.25}
    assert abs((y == 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 100_000)  # five standard deviations
    x = np.ones(3)
    assert dropout_forward(x, 0.2, None)[0] is x


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("past", [0, 2])
def test_attention(rng: np.random.Generator, heads: tuple[int, int], past: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("numpy_ref.attention.BLOCK_QUERIES", 2)  # several blocks of queries, the last one cut short
    H, K = heads
    q = rng.standard_normal((2, H, 5, 4))
    k, v = rng.standard_normal((2, 2, K, 5 + past, 4))
    check_gradients(attention_forward, attention_backward, q, k, v, rng=rng)


@pytest.mark.parametrize("T", [1, 127, 128, 129, 300])
def test_attention_in_blocks_is_the_formula_of_the_textbook(rng: np.random.Generator, T: int) -> None:
    q, k, v = rng.standard_normal((3, 1, 2, T, 8))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(8)
    scores[..., ~np.tril(np.ones((T, T), dtype=bool))] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out, cache = attention_forward(q, k, v)
    assert np.allclose(out, p @ v, rtol=0, atol=1e-13)
    assert np.allclose(attention_weights(cache), p, rtol=0, atol=1e-13)
    assert (attention_weights(cache)[..., ~np.tril(np.ones((T, T), dtype=bool))] == 0).all()


@pytest.mark.parametrize("past", [1, 5, 130])
@pytest.mark.parametrize("window", [None, 1, 50])
def test_the_last_queries_alone_get_what_they_get_among_all(
    rng: np.random.Generator, past: int, window: int | None
) -> None:
    q, k, v = rng.standard_normal((3, 1, 2, past + 140, 8))
    masks = [window and window_mask(n, past + 140, window) for n in (past + 140, 140)]
    whole, _ = attention_forward(q, k, v, masks[0])
    last, _ = attention_forward(q[:, :, past:], k, v, masks[1])
    assert np.allclose(last, whole[:, :, past:], rtol=0, atol=1e-13)


def test_attention_under_a_mask_that_leaves_a_row_with_nothing(rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal((3, 2, 3, 4, 4))
    mask = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=bool)
    out, cache = attention_forward(q, k, v, mask)
    assert (out[:, :, 1] == 0).all()
    assert all(np.isfinite(g).all() for g in attention_backward(np.ones_like(out), cache)[:3])
    check_gradients(attention_forward, attention_backward, q, k, v, mask, rng=rng)


def test_attention_with_dropout(rng: np.random.Generator) -> None:
    class Same:
        def random(self, shape: Any, dtype: Any) -> np.ndarray:
            return np.random.default_rng(5).random(shape, dtype=dtype)

    q, k, v = rng.standard_normal((3, 2, 2, 4, 4))
    check_gradients(attention_forward, attention_backward, q, k, v, None, 0.3, Same(), rng=rng)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
def test_softmax(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    check_gradients(softmax_forward, softmax_backward, rng.standard_normal(shape), rng=rng)


@pytest.mark.parametrize("denominator", [None, 17])
def test_cross_entropy(rng: np.random.Generator, denominator: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("numpy_ref.loss.BLOCK_LOGITS", 14)  # two rows at a time
    targets = np.array([[1, -100, 3], [6, 0, -100]])
    check_gradients(
        cross_entropy_forward, cross_entropy_backward, rng.standard_normal((2, 3, 7)), targets, denominator, rng=rng
    )


def test_cross_entropy_without_any_target_is_zero(rng: np.random.Generator) -> None:
    loss, cache = cross_entropy_forward(rng.standard_normal((2, 3)), np.array([-100, -100]))
    assert loss == 0
    assert (cross_entropy_backward(1.0, cache)[0] == 0).all()


def random_params(config: GPTConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """No ones, no zeros: a backward that forgets a factor of one would pass."""
    return {name: rng.standard_normal(shape) * 0.4 + 0.1 for name, shape in shapes(config).items()}


def config(**changes: Any) -> GPTConfig:
    return GPTConfig(**{"vocab_size": 7, "context_length": 5, "d_model": 8, "n_layer": 2, "n_head": 4, **changes})


def part(params: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


@pytest.mark.parametrize("activation", get_args(get_type_hints(GPTConfig)["activation"]))
def test_mlp(rng: np.random.Generator, activation: str) -> None:
    params = part(random_params(config(activation=activation, bias=True, d_ff=6), rng), "blocks.0.mlp.")
    check_gradients(mlp_forward, mlp_backward, rng.standard_normal((2, 3, 8)), params, activation, rng=rng)


MODERN = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True, "n_kv_head": 2}
SCALED = {**MODERN, "qk_scale": True, "head_dim": 2, "norm_eps": 1e-3}


@pytest.mark.parametrize("changes", [{"bias": True}, MODERN, {"n_kv_head": 1, "qk_norm": True}, SCALED])
def test_multihead(rng: np.random.Generator, changes: dict[str, Any]) -> None:
    c = config(**changes)
    params = part(random_params(c, rng), "blocks.0.attn.")
    rope = rope_tables(5, 2) if c.position == "rope" else None
    check_gradients(multihead_forward, multihead_backward, rng.standard_normal((2, 5, 8)), params, c, rope, rng=rng)


@pytest.mark.parametrize("changes", [{"bias": True}, MODERN])
def test_block(rng: np.random.Generator, changes: dict[str, Any]) -> None:
    c = config(d_ff=6, **changes)
    params = part(random_params(c, rng), "blocks.0.")
    rope = rope_tables(5, 2) if c.position == "rope" else None
    check_gradients(block_forward, block_backward, rng.standard_normal((2, 5, 8)), params, c, rope, rng=rng)


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": True},
        {**MODERN, "tie_embeddings": False},
        pytest.param({"dropout": 0.3, "bias": True}, marks=pytest.mark.slow),
        pytest.param({"position": "sinusoidal", "activation": "relu2", "n_kv_head": 1}, marks=pytest.mark.slow),
        pytest.param({"smear": True, "tie_embeddings": False}, marks=pytest.mark.slow),
        pytest.param({"window": 2, "n_kv_head": 1}, marks=pytest.mark.slow),
    ],
)
def test_the_whole_model(rng: np.random.Generator, changes: dict[str, Any]) -> None:
    c = config(d_ff=6, **changes)
    params = random_params(c, rng)
    idx = rng.integers(0, 7, (2, 4))
    targets = np.where(rng.random((2, 4)) < 0.3, -100, rng.integers(0, 7, (2, 4)))
    seed = 3 if c.dropout else None

    def f() -> float:
        generator = None if seed is None else np.random.default_rng(seed)
        return loss_and_grads(params, c, idx, targets, generator)[0]

    generator = None if seed is None else np.random.default_rng(seed)
    _, grads = loss_and_grads(params, c, idx, targets, generator)
    assert set(grads) == set(params)
    for name in params:
        compare(grads[name], f, params[name], name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("changes", [{"bias": True, "dropout": 0.1}, MODERN, {"position": "sinusoidal"}])
def test_what_goes_in_as_a_dtype_comes_out_as_it(dtype: Any, changes: dict[str, Any]) -> None:
    c = config(**changes)
    params = init_params(c, dtype=dtype)
    idx = np.arange(4)[None]
    assert forward(params, c, idx).dtype == dtype
    _, grads = loss_and_grads(params, c, idx, idx, np.random.default_rng(0))
    assert {g.dtype for g in grads.values()} == {np.dtype(dtype)}


def test_huge_logits_neither_overflow_nor_warn() -> None:
    with np.errstate(all="raise", under="ignore"):
        for size in (1e4, -1e4):
            z = np.array([[size, 0, -size, 1.0]], dtype=np.float32)
            p, _ = softmax_forward(z)
            assert np.isfinite(p).all()
            assert p.sum() == 1
            loss, cache = cross_entropy_forward(z, np.array([3]))
            assert loss == 9999
            assert np.isfinite(cross_entropy_backward(1.0, cache)[0]).all()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_of_large_float32_do_not_warn(kind: str) -> None:
    with np.errstate(all="raise", under="ignore"):
        x = np.array([-1e4, -100, -1e-30, 0, 1e-30, 100, 1e4], dtype=np.float32)
        f, cache = activation_forward(x, kind)
        assert np.isfinite(f).all()
        assert np.isfinite(cache["slope"]).all()


def test_a_row_of_zeros_is_normalised_without_division_by_zero() -> None:
    with np.errstate(all="raise"):
        x = np.zeros((1, 8), dtype=np.float32)
        for f in (layernorm_forward, rmsnorm_forward):
            assert (f(x, np.ones(8, dtype=np.float32))[0] == 0).all()


def test_parts_of_a_batch_add_up_to_its_gradient(rng: np.random.Generator) -> None:
    c = config(bias=True)
    params, idx = random_params(c, rng), rng.integers(0, 7, (4, 5))
    targets = np.where(rng.random((4, 5)) < 0.4, -100, idx)
    count = int((targets != -100).sum())
    loss, whole = loss_and_grads(params, c, idx, targets)
    halves = [loss_and_grads(params, c, idx[s], targets[s], denominator=count) for s in (slice(0, 1), slice(1, 4))]
    assert np.isclose(loss, halves[0][0] + halves[1][0], rtol=1e-12)
    for name, wanted in whole.items():
        assert np.allclose(wanted, halves[0][1][name] + halves[1][1][name], rtol=1e-10, atol=1e-13), name
