"""Every fast path agrees with its plain twin: values, gradients, causality, determinism."""

import functools
import math
import threading

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from rounding import FACTOR, largest_share, spread
from torch.nn import functional as F

from numpy_ref.attention import attention_backward, attention_forward
from numpy_ref.linear import linear_backward, linear_forward
from numpy_ref.loss import cross_entropy_backward, cross_entropy_forward
from positron.config import IGNORE
from positron.model.gpt import document_mask
from positron.model.kernels.attention import (
    BLOCK_QUERIES,
    BlockedCausalAttention,
    causal_attention,
    scaled_scores,
    window_mask,
)
from positron.model.kernels.distillation import linear_distillation
from positron.model.kernels.loss import linear_cross_entropy, token_losses

LENGTHS = (1, 2, 31, 33, 127, BLOCK_QUERIES, BLOCK_QUERIES + 1, 300)


def qkv(T, D=16, H=4, K=4, dtype=torch.float64, seed=0):
    """Transposed views, as the model makes them."""
    g = torch.Generator().manual_seed(seed)

    def one(heads):
        return torch.randn(2, T, heads, D, generator=g, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()

    return one(H), one(K), one(K)


def plain(q, k, v, window=None, mask=None):
    """softmax(q k^T / sqrt(D)) v over the last `window` keys, and only where `mask` is True, written out in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    T = q.shape[2]
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    unseen = torch.ones(T, T, dtype=torch.bool).triu(1)
    if window is not None:
        unseen |= torch.ones(T, T, dtype=torch.bool).tril(-window)
    if mask is not None:
        unseen = unseen | ~mask
    return scores.masked_fill(unseen, float("-inf")).softmax(-1) @ v


def relative_error(a, b):
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item()


DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def typical_errors(compute, *tensors, dtype):
    """Of each result of the NumPy reference, in arithmetic of the dtype whose products add up in float32 at least."""
    name = str(dtype).removeprefix("torch.")
    exact = [x.detach().double().numpy() for x in tensors]
    return spread(compute, *exact, dtype=name, sums="float32" if dtype == torch.bfloat16 else None)


@functools.cache
def attention_errors(dtype):
    """At the most keys and widest heads that are tested: shorter sums have smaller errors."""

    def reference(q, k, v, upstream):
        out, cache = attention_forward(q, k, v)
        return dict(zip(("out", "q", "k", "v"), (out, *attention_backward(upstream, cache)[:3]), strict=True))

    upstream = torch.randn(2, 6, 300, 64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    typical = typical_errors(reference, *qkv(300, 64, 6, 1), upstream, dtype=dtype)
    # in float64 the result that is compared with is no more exact than the one that is tested
    return {name: FACTOR * error * (math.sqrt(2) if dtype == torch.float64 else 1) for name, error in typical.items()}


def documents_of(T):
    """Numbers of documents (2, T): one row with many short documents, one with a long and a short one."""
    places = torch.arange(T)
    return torch.stack((places // 7, (places > 2 * T // 3).long()))


WINDOWS = (1, 2, 16, 17, 31, 100, BLOCK_QUERIES - 1, BLOCK_QUERIES, BLOCK_QUERIES + 1, 200, 299, 300, 1000)


HEADS = ((4, 4, 16), (4, 2, 40), (6, 1, 64))
SPANS = (*((T, None) for T in LENGTHS), *((300, window) for window in WINDOWS))
# the fast tests take each length and window with one of the shapes in turn, the slow ones with all
SHAPES = [
    pytest.param(*span, *heads, marks=[] if i % len(HEADS) == j else pytest.mark.slow)
    for i, span in enumerate(SPANS)
    for j, heads in enumerate(HEADS)
]


@pytest.mark.parametrize(("T", "window", "H", "K", "D"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocked_attention_is_attention(T, window, H, K, D, dtype):
    tensors = qkv(T, D, H, K, dtype)
    upstream = torch.randn(2, H, T, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    out = BlockedCausalAttention.apply(*tensors, window or T, None, 0.0)
    gradients = torch.autograd.grad(out, tensors, upstream.to(dtype))
    exact_inputs = [x.detach().double().requires_grad_() for x in tensors]
    exact = plain(*exact_inputs, window)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, upstream.to(dtype).double())
    tolerance = attention_errors(dtype)
    assert relative_error(out, exact) < tolerance["out"]
    for name, gradient, expected in zip("qkv", gradients, exact_gradients, strict=True):
        # at T = 1 the gradients of q and k are exactly 0, and what rounding leaves is compared with v's
        scale = max(expected.norm(), exact_gradients[2].norm() * 0.05)
        assert (gradient.double() - expected).norm() / scale < tolerance[name]


@pytest.mark.parametrize("window", [None, 16, 100])
@pytest.mark.parametrize(("H", "K", "D"), [(4, 4, 16), (6, 1, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_inside_documents_is_the_same_in_blocks(window, H, K, D, dtype):
    T = BLOCK_QUERIES + 40
    tensors, mask = qkv(T, D, H, K, dtype), document_mask(documents_of(T), window)
    upstream = torch.randn(2, H, T, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    out = causal_attention(*tensors, mask=mask, window=window)
    assert "Blocked" in type(out.grad_fn).__name__
    gradients = torch.autograd.grad(out, tensors, upstream.to(dtype))
    exact_inputs = [x.detach().double().requires_grad_() for x in tensors]
    exact = plain(*exact_inputs, window, mask)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, upstream.to(dtype).double())
    tolerance = attention_errors(dtype)
    assert relative_error(out, exact) < tolerance["out"]
    for name, gradient, expected in zip("qkv", gradients, exact_gradients, strict=True):
        assert relative_error(gradient, expected) < tolerance[name]
    with torch.no_grad():
        assert relative_error(causal_attention(*tensors, mask=mask, window=window), exact) < tolerance["out"]


def test_no_gradient_crosses_the_beginning_of_a_document():
    T = BLOCK_QUERIES + 40
    documents, tensors = documents_of(T), qkv(T)
    out = causal_attention(*tensors, mask=document_mask(documents, None))
    last = documents == documents.max(dim=1, keepdim=True).values  # (2, T)
    for gradient in torch.autograd.grad(out.square().sum(dim=(1, 3))[last].sum(), tensors):
        reached = gradient.abs().sum(dim=(1, 3)) > 0
        assert torch.equal(reached, reached & last)
        assert reached.any(dim=1).all()


@pytest.mark.parametrize("size", [3, 30])
def test_large_scores_cost_no_more_precision_than_the_library_s(size):
    """Scores rounded to bf16 would be off by size / 256 each, and the softmax turns that into a relative error."""
    errors = []
    for attention in (causal_attention, lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True)):
        q, k, v = qkv(300, D=40, dtype=torch.bfloat16)
        tensors = [(size * q).detach().requires_grad_(), k, v]
        exact_inputs = [x.detach().double().requires_grad_() for x in tensors]
        upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
        gradients = torch.autograd.grad(attention(*tensors), tensors, upstream)
        expected = torch.autograd.grad(plain(*exact_inputs), exact_inputs, upstream.double())
        errors.append([relative_error(a, b) for a, b in zip(gradients, expected, strict=True)])
    assert all(ours < 2 * library for ours, library in zip(*errors, strict=True)), errors


def test_scores_of_two_threads_leave_float32_products_exact(monkeypatch):
    """The first thread to set the precision of products is the first to restore it, while the second still computes."""
    precision = lambda: torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # noqa: E731
    baddbmm, begun, ended = torch.baddbmm, (threading.Event(), threading.Event()), threading.Event()
    q, before, during = torch.ones(1, 8, 4, dtype=torch.bfloat16), precision(), []

    def product(*arguments, **options):
        is_second = begun[0].is_set()
        begun[is_second].set()
        assert (ended if is_second else begun[1]).wait(PATIENCE)
        during.append(precision())
        return baddbmm(*arguments, **options)

    monkeypatch.setattr(torch, "baddbmm", product)
    first, second = (threading.Thread(target=scaled_scores, args=(q, q)) for _ in range(2))
    first.start()
    assert begun[0].wait(PATIENCE)
    second.start()
    first.join(PATIENCE)
    ended.set()
    second.join(PATIENCE)
    assert during == ["bf16", "bf16"]
    assert precision() == before


def test_autocast_leaves_float64_alone():
    q, k, v = qkv(200)
    x, weight, targets = head(20)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(causal_attention(q, k, v), plain(q, k, v)) < attention_errors(torch.float64)["out"]
        assert linear_cross_entropy(x, weight, targets).item() == pytest.approx(
            plain_loss(x, weight, targets).item(), rel=1e-12
        )


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_makes_bf16_products_and_fp32_gradients(backward_inside):
    q, k, v = qkv(200, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = causal_attention(q, k, v)
        assert out.dtype == torch.bfloat16
        if backward_inside:
            out.float().square().sum().backward()
    if not backward_inside:
        out.float().square().sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    plain(*exact).square().sum().backward()
    for name, x, y in zip("qkv", (q, k, v), exact, strict=True):
        assert x.grad.dtype == torch.float32
        # the gradient that comes in is rounded, too
        assert relative_error(x.grad, y.grad) < 2 * attention_errors(torch.bfloat16)[name]


def test_blocked_attention_passes_finite_differences():
    tensors = qkv(BLOCK_QUERIES + 3, D=2, H=2, K=1)
    small = [x[:1].detach().requires_grad_() for x in tensors]
    for window in (BLOCK_QUERIES + 3, 40):
        assert torch.autograd.gradcheck(BlockedCausalAttention.apply, (*small, window, None, 0.0), fast_mode=True)
    mask = document_mask(documents_of(BLOCK_QUERIES + 3)[1:], None)
    assert torch.autograd.gradcheck(
        BlockedCausalAttention.apply, (*small, BLOCK_QUERIES + 3, mask, 0.0), fast_mode=True
    )


@pytest.mark.parametrize("window", [1, 7, 64, 200])
def test_with_and_without_gradients_a_window_is_the_same(window):
    q, k, v = qkv(200)
    with torch.no_grad():
        assert relative_error(causal_attention(q, k, v, window=window), plain(q, k, v, window)) < 1e-14
    blocked = causal_attention(q, k, v, window=window)
    assert "Blocked" in type(blocked.grad_fn).__name__
    assert relative_error(blocked, plain(q, k, v, window)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_path_lets_a_token_see_the_future(dtype):
    q, k, v = qkv(300, dtype=dtype)
    k2, v2 = k.detach().clone(), v.detach().clone()
    k2[:, :, 150:], v2[:, :, 150:] = 7, 7
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(causal_attention(q, k, v)[:, :, :150], causal_attention(q, k2, v2)[:, :, :150])


def test_the_same_twice_is_bit_identical():
    results = []
    for _ in range(2):
        tensors = qkv(300, dtype=torch.bfloat16)
        out = BlockedCausalAttention.apply(*tensors, 300, None, 0.0)
        results.append((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def head(N, C=24, V=101, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=g)
    targets[::3] = IGNORE
    return x, weight, targets


def plain_loss(x, weight, targets):
    return F.cross_entropy(x.double() @ weight.double().T, targets, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 2, 50, 333])
def test_chunked_cross_entropy_is_cross_entropy(N, dtype, monkeypatch):
    monkeypatch.setattr("positron.model.kernels.loss.CHUNK_VALUES", 101 * 64)  # several chunks, the last one ragged
    x, weight, targets = head(N, dtype=dtype)
    loss = linear_cross_entropy(x, weight, targets)
    gradients = torch.autograd.grad(0.37 * loss, (x, weight))
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = plain_loss(*exact_inputs, targets)
    expected = torch.autograd.grad(0.37 * exact, exact_inputs)
    assert all(gradient.dtype == dtype for gradient in gradients)

    def reference(x, weight):
        logits, head_cache = linear_forward(x, weight)
        loss, cache = cross_entropy_forward(logits, targets.numpy(), denominator=1)
        dx, dweight, _ = linear_backward(*cross_entropy_backward(0.37, cache), head_cache)
        return {"loss": np.asarray(loss), "x": dx, "weight": dweight}

    typical = typical_errors(reference, x, weight, dtype=dtype)
    found, wanted = (
        {name: value.detach().double().numpy() for name, value in zip(typical, values, strict=True)}
        for values in ((loss, *gradients), (exact, *expected))
    )
    if N == 1:  # its only target carries no loss
        assert not any(value.any() for value in (*found.values(), *wanted.values()))
    else:
        name, share = largest_share(found, wanted, typical, both=dtype == torch.float64)
        assert share < 1, name


def test_losses_per_token_add_up():
    x, weight, targets = head(77)
    losses = token_losses(x, weight, targets)
    assert (losses[targets == IGNORE] == 0).all()
    assert losses.sum().item() == pytest.approx(plain_loss(x, weight, targets).item(), rel=1e-12)
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets).item() == pytest.approx(losses.sum().item(), rel=1e-12)


def test_no_target_is_no_loss_and_no_gradient():
    x, weight, targets = head(10)
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()
    assert (weight.grad == 0).all()


def test_a_target_of_tiny_probability_has_a_finite_loss():
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    loss = linear_cross_entropy(x, weight, torch.tensor([1]))
    assert loss.item() == pytest.approx(2000)
    loss.backward()
    assert x.grad.isfinite().all()


def test_a_tied_weight_collects_both_gradients():
    x, weight, targets = head(20)
    weight.detach_().requires_grad_()
    idx = torch.arange(20)
    loss = linear_cross_entropy(weight[idx] + x.detach(), weight, targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    twin = weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain_loss(twin[idx] + x.detach(), twin, targets), twin)
    assert torch.allclose(gradient, expected, rtol=1e-9)


def teachers_of(N, *widths, V=101, dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    return [tuple(torch.randn(rows, C, generator=g, dtype=torch.float64).to(dtype) for rows in (N, V)) for C in widths]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_chunks_of_distillation_add_up(alpha, monkeypatch):
    """Formulas and gradients are compared in tests/numpy_ref/test_numpy_distillation.py, in one chunk."""
    x, weight, targets = head(333)
    teachers = teachers_of(333, 8, 40)
    results = []
    for values in (1 << 24, 101 * 64):
        monkeypatch.setattr("positron.model.kernels.loss.CHUNK_VALUES", values)
        monkeypatch.setattr("positron.model.kernels.distillation.SOFTMAX_VALUES", values // 2)
        total, ce, kl = linear_distillation(x, weight, targets, teachers, alpha, 2.0)
        results.append((total, ce, kl, *torch.autograd.grad(0.37 * total, (x, weight))))
        assert total.item() == pytest.approx((1 - alpha) * ce.item() + alpha * 4 * kl.item(), rel=1e-14)
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_distillation_without_teachers_weight_is_cross_entropy_bit_for_bit(dtype):
    x, weight, targets = head(50, dtype=dtype)
    total, ce, _ = linear_distillation(x, weight, targets, teachers_of(50, 8, 40, dtype=dtype), 0.0, 3.0)
    loss = linear_cross_entropy(x, weight, targets)
    assert torch.equal(total, loss)
    assert torch.equal(ce, loss)
    for ours, plain in zip(
        torch.autograd.grad(total, (x, weight)), torch.autograd.grad(loss, (x, weight)), strict=True
    ):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient(dtype, temperature):
    x, weight, targets = head(50, dtype=dtype)
    total, ce, kl = linear_distillation(x, weight, targets, [(x.detach(), weight.detach())], 1.0, temperature)
    assert total.item() == kl.item() == 0
    assert ce.item() > 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(total, (x, weight)))


def test_a_teacher_that_excludes_tokens_has_a_finite_divergence():
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    total, _, kl = linear_distillation(x, weight, torch.tensor([0]), [(-x.detach(), weight)], 1.0, 1.0)
    assert kl.item() == pytest.approx(2000)
    total.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_the_mask_of_the_last_queries_is_the_end_of_the_whole_mask(window):
    cpu = torch.device("cpu")
    for start in range(7):
        assert torch.equal(window_mask(7, window, cpu, start), window_mask(7, window, cpu)[start:])


def test_the_gradient_of_many_equal_targets_does_not_overflow_in_fp16() -> None:
    x = torch.ones(70_000, 2, requires_grad=True)
    weight = torch.zeros(3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(x, weight, torch.zeros(70_000, dtype=torch.int64)).backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad[0], torch.tensor(-70_000 * 2 / 3), rtol=1e-2)
