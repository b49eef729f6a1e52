"""Norms, heads and activations in few passes: the same values and gradients as the library's operators, written out."""

import numpy as np
import pytest
import torch
from rounding import largest_share, spread
from torch.nn import functional as F

import numpy_ref
from positron.config import GPTConfig
from positron.model.gpt import GPT, apply_rope, positions_in_documents, rope_tables
from positron.model.kernels import norms_and_heads as fused

NORM_EPS = 1e-5

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16)}


def random(*shape, dtype=torch.float64, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def compare(fast, plain, inputs, roundings):
    """Outputs and gradients of `fast` beside those of `plain` on the same numbers in float64.

    Each result is a chain of so many roundings at most, every one of half a unit in the last place.
    """
    exact = [x.detach().double().requires_grad_() for x in inputs]
    outputs, expected = fast(*inputs), plain(*exact)
    outputs, expected = (each if isinstance(each, tuple) else (each,) for each in (outputs, expected))
    upstream = [random(*y.shape, seed=i + 9).detach() for i, y in enumerate(expected)]
    gradients = torch.autograd.grad(outputs, inputs, [g.to(y.dtype) for g, y in zip(upstream, outputs, strict=True)])
    rounded = [g.to(y.dtype).double() for g, y in zip(upstream, outputs, strict=True)]
    wanted = torch.autograd.grad(expected, exact, rounded)
    tolerance = roundings * max(EPS[y.dtype] for y in outputs) / 2
    for a, b in zip((*outputs, *gradients), (*expected, *wanted), strict=True):
        assert error(a, b) < tolerance


@pytest.mark.parametrize("C", [1, 5, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("out", [None, torch.bfloat16])
def test_rms_norm_is_the_librarys(C, dtype, out):
    inputs = random(3, 7, C, dtype=dtype), random(C, dtype=dtype, seed=1)
    compare(
        lambda x, w: fused.RMSNorm.apply(x, w, NORM_EPS, out or dtype),
        lambda x, w: F.rms_norm(x, (C,), w, NORM_EPS),
        inputs,
        # at C = 1 the gradient is the small rest that NORM_EPS leaves of a difference
        roundings=1e6 if C == 1 else 16,
    )


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rotary", [True, False, "documents"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("H", "K", "D"), [(4, 4, 8), (6, 2, 10)])
def test_heads_are_split_turned_and_normalised(H, K, D, normed, rotary, dtype):
    B, T = 2, 9
    tables = tuple(table.to(torch.promote_types(dtype, torch.float32)) for table in rope_tables(T, D))
    if rotary == "documents":
        places = positions_in_documents(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2]] * B))
        tables = tuple(table[places][:, None] for table in tables)
    order = fused.interleave_pairs(torch.arange(D), D) if rotary else torch.arange(D)

    def plain(qkv):
        q, k, v = (part.unflatten(-1, (-1, D)).transpose(1, 2) for part in qkv.split([H * D, K * D, K * D], dim=-1))
        if rotary:
            back = order.argsort()
            q, k = (apply_rope(x[..., back], *(t.double() for t in tables))[..., order] for x in (q, k))
        if normed:
            q, k = (F.rms_norm(x, (D,), eps=NORM_EPS) for x in (q, k))
        return q, k, v

    def fast(qkv):
        return fused.heads(qkv, tables if rotary else None, H, K, NORM_EPS if normed else None)

    compare(fast, plain, [random(B, T, (H + 2 * K) * D, dtype=dtype)], roundings=8)
    assert all(part.is_contiguous() for part in fast(random(B, T, (H + 2 * K) * D, dtype=dtype)))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(
    ("function", "plain"),
    [(fused.SquaredReLU, lambda h: F.relu(h).square()), (fused.GELU, lambda h: F.gelu(h, approximate="tanh"))],
    ids=["relu2", "gelu"],
)
def test_activations_are_the_librarys(function, plain, dtype):
    compare(function.apply, plain, [random(3, 2 * fused.GELU_ROWS + 5, 6, dtype=dtype)], roundings=6)
    assert torch.autograd.gradcheck(function.apply, random(3, 4, 2))


OPTIONS = {"norm": "rmsnorm", "position": "rope", "activation": "relu2", "qk_norm": True, "n_kv_head": 2}


@pytest.mark.parametrize("options", [{}, OPTIONS, {**OPTIONS, "bias": True, "activation": "gelu"}], ids=str)
@pytest.mark.parametrize("dtype", EPS)
def test_a_model_learns_the_same_by_either_path(options, dtype, monkeypatch):
    """Both are as far from float64 as rounding explains (tests/rounding.py)."""
    config = GPTConfig(vocab_size=50, context_length=96, d_model=32, n_layer=2, n_head=4, **options)
    idx = torch.randint(50, (3, 96), generator=torch.Generator().manual_seed(0))

    def gradients(fast, width=torch.float32):
        monkeypatch.setattr(fused, "is_faster", lambda x: fast and x.requires_grad)
        model = GPT(config).to(width)
        if width == torch.float64 and config.position == "rope":  # a turn by rounded tables is also a small stretch
            model.cos, model.sin = rope_tables(96, config.d_head)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(idx, idx.roll(-1)) / idx.numel()
        loss.backward()
        return {"loss": loss.detach().numpy(), **{name: p.grad.numpy() for name, p in model.named_parameters()}}

    def reference(params):
        loss, grads = numpy_ref.loss_and_grads(params, config, idx.numpy(), idx.roll(-1).numpy())
        return {"loss": np.array(loss), **grads}

    exact = gradients(False, torch.float64)
    kind = str(dtype).removeprefix("torch.")
    params = {
        name: p.detach().numpy()
        for name, p in GPT(config).to(torch.promote_types(dtype, torch.float32)).named_parameters()
    }
    typical = spread(reference, params, dtype=kind, sums="float32" if kind == "bfloat16" else None)
    for path in (True, False):
        found = gradients(path, torch.promote_types(dtype, torch.float32))
        name, share = largest_share(found, exact, typical)
        assert share < 1, (name, path)


def test_a_layer_that_is_watched_is_called():
    """Someone who hooks q, k or v gets to see it; low-rank additions stay in (tests/training/test_sft.py)."""
    model = GPT(GPTConfig(vocab_size=50, context_length=8, d_model=32, n_layer=1, n_head=4))
    seen = []
    model.blocks[0].attn.q.register_forward_hook(lambda *_: seen.append(True))
    idx = torch.zeros(1, 8, dtype=torch.int64)
    model(idx, idx).backward()
    assert seen
