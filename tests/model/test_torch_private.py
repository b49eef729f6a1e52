"""What torch does not document and Positron relies on: a version that changes any of it fails here, by name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from torch import nn
from torch.nn import functional as F

from positron.model.kernels import torch_private

needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def signature(operator: object) -> list[str]:
    schema = operator._schema  # type: ignore[attr-defined]
    return [f"{argument.type} {argument.name}" for argument in schema.arguments]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_softmax_gradient_is_softmax_s(dtype: torch.dtype) -> None:
    scores, grad = numbers(3, 4, 7, dtype=dtype).requires_grad_(), numbers(3, 4, 7, dtype=dtype)
    softmax = scores.softmax(dim=-1)
    (wanted,) = torch.autograd.grad(softmax, scores, grad)
    gradient = torch_private.softmax_gradient(grad, softmax.detach())
    assert torch.equal(gradient, wanted)
    p, g = softmax.detach().double(), grad.double()
    written_out = p * (g - (p * g).sum(dim=-1, keepdim=True))
    assert torch.allclose(gradient.double(), written_out, atol=8 * torch.finfo(dtype).eps)


@needs_mkldnn
def test_operators_for_packed_weights_have_the_arguments_that_we_give() -> None:
    assert signature(torch.ops.mkldnn._linear_pointwise.default) == [
        "Tensor X",
        "Tensor W",
        "Optional[Tensor] B",
        "str attr",
        "List[Optional[number]] scalars",
        "Optional[str] algorithm",
    ]
    assert signature(torch.ops.mkldnn._linear_pointwise.binary) == [
        "Tensor X",
        "Tensor other",
        "Tensor W",
        "Optional[Tensor] B",
        "str attr",
    ]
    assert signature(torch.ops.mkldnn._reorder_linear_weight.default)[0] == "Tensor self"
    assert isinstance(torch_private.packs_bf16(), bool)


@needs_mkldnn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_are_those_of_the_weight(bias: bool, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch_private.packs_bf16():
        pytest.skip("this processor does not multiply bf16 by oneDNN")
    x, weight, other = numbers(3, 24, dtype=dtype), numbers(16, 24, dtype=dtype), numbers(3, 16, dtype=dtype)
    b = numbers(16, dtype=dtype) if bias else None
    packed, plain = (
        torch_private.packed(weight),
        F.linear(x.double(), weight.double(), None if b is None else b.double()),
    )
    functions = {
        ("none", ""): plain,
        ("relu", ""): F.relu(plain),
        ("swish", ""): F.silu(plain),
        ("gelu", "tanh"): F.gelu(plain, approximate="tanh"),
    }
    near = 16 * torch.finfo(dtype).eps * plain.abs().max()
    for (attribute, algorithm), wanted in functions.items():
        got = torch_private.packed_linear(x, packed, b, attribute, algorithm)
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() < near, attribute
    got = torch_private.packed_linear_plus(x, other, packed, b)
    assert (got.double() - (other.double() + plain)).abs().max() < near


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor's features are read from /proc/cpuinfo")
def test_amx_is_reported_as_the_kernel_reports_it() -> None:
    assert torch_private.has_amx() == (" amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def test_int8_product_multiplies_whole_numbers_by_the_scale_of_their_row() -> None:
    assert signature(torch.ops.aten._weight_int8pack_mm.default) == ["Tensor self", "Tensor mat2", "Tensor scales"]
    x = numbers(2, 64, dtype=torch.bfloat16)
    q = torch.randint(-127, 128, (16, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scale = numbers(16).abs().bfloat16()
    got = torch_private.int8_linear(x, q, scale)
    wanted = F.linear(x.double(), q.double()) * scale.double()
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_the_loss_scale_is_the_number_that_the_scaler_multiplies_by() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaled = scaler.scale(torch.ones(()))
    scale = torch_private.loss_scale(scaler)
    assert scale.shape == ()
    assert scale == scaled == scaler.get_scale()


def test_hooks_of_a_module_are_seen_while_they_are_registered() -> None:
    linear = nn.Linear(2, 2)
    assert not torch_private.has_forward_hooks(linear)
    hook = linear.register_forward_hook(lambda *_: None)
    assert torch_private.has_forward_hooks(linear)
    hook.remove()
    assert not torch_private.has_forward_hooks(linear)


def test_compile_is_taken_back() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    module = Doubled()
    assert module._compiled_call_impl is None
    module.compile(backend=backend)
    module(torch.ones(2))
    assert len(compiled) == 1
    torch_private.undo_compile(module)
    assert torch.equal(module(torch.ones(5, 3)), torch.full((5, 3), 2.0))
    assert len(compiled) == 1


def test_compiled_modules_mark_their_names() -> None:
    compiled: Any = torch.compile(nn.Linear(2, 2, bias=False))
    assert list(compiled.state_dict()) == [f"{torch_private.COMPILED_MARK}weight"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_step_with_the_flag_changes_nothing(kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(numbers(4))
    optimizer = kind([weight], lr=0.1, fused=True)
    weight.grad = numbers(4)
    optimizer.step()
    before = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items() if v is not None}
    weight.grad = torch.full((4,), float("nan"))
    torch_private.skip_step_if(optimizer, torch.ones(()))
    optimizer.step()
    assert torch.equal(weight, before[0])
    assert all(torch.equal(optimizer.state[weight][key], value) for key, value in before[1].items())
    weight.grad = numbers(4)
    torch_private.skip_step_if(optimizer, torch.zeros(()))
    optimizer.step()
    assert not torch.equal(weight, before[0])


@pytest.mark.parametrize("fused", [False, True])
def test_the_step_of_a_fused_optimizer_divides_by_the_loss_scale(fused: bool) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight.grad = scaler.scale(torch.ones(4)).detach()
    if not torch_private.divides_by_loss_scale(optimizer):
        scaler.unscale_(optimizer)
        assert torch.equal(weight.grad, torch.ones(4))
    scaler.step(optimizer)
    assert torch.equal(weight, torch.zeros(4))
    assert torch_private.divides_by_loss_scale(optimizer) == fused


def test_nothing_else_uses_what_torch_numpy_and_lightning_keep_private() -> None:
    """By reading every file: an attribute with an underscore that is neither Python's nor defined in our own code."""
    files = [path for part in ("positron", "numpy_ref") for path in sorted((PROJECT / part).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    public = {"_replace", "_asdict", "_fields", "_exit", "_target_"}  # of named tuples, of os, and a key of Hydra's
    found = []
    for path, tree in trees.items():
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[:2] != "__":
                is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not is_own and node.attr not in names | public:
                    found.append((path.relative_to(PROJECT).as_posix(), ast.unparse(node)))
            elif isinstance(node, ast.ImportFrom) and node.module and "._" in node.module:
                found.append((path.relative_to(PROJECT).as_posix(), node.module))
    assert {path for path, _ in found} == {inspect.getfile(torch_private).removeprefix(f"{PROJECT.as_posix()}/")}, found
