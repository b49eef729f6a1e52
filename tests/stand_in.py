"""A stand-in for Apple's GPU on any machine: a second device whose tensors hold real numbers in the memory of the CPU.

torch lets Python code be a device ("privateuseone", here renamed to "standin"). A tensor of it is a `DeviceTensor`, and every
operator on it, also of the backward pass, comes to `_run`, which refuses what Apple's GPU refuses, counts what makes the host
wait for it, and lets the CPU compute the rest. A tensor of the host is an ordinary tensor: host code may use float64 as it
likes, and it meets a DeviceTensor only through a copy, as on a real device.

Refused, with the operator and the line of positron/ that called it: float64, several float formats in one operator, operators
that torch has no kernel for on MPS, and tensors of the host among those of the device. Not seen: numerical faults and speed.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.plugins import MixedPrecision
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import positron
from positron.training.device import Machine

NAME = "standin"
DEVICE = torch.device("cpu")  # replaced below by the device NAME:0, which torch does not know yet
HOST = torch.device("cpu")
PACKAGE = str(Path(positron.__file__).parent)


class Refused(RuntimeError):
    """Apple's GPU would refuse this operator, or compute it on the CPU."""


class Waits(Counter[str]):
    """Count what makes the host wait for the device: "file:line operator" -> times."""

    def note(self, operator: str) -> None:
        self[f"{caller()} {operator}"] += 1


waits = Waits()


def caller() -> str:
    """Return the innermost line of positron/ on the stack; the backward pass has none, because torch runs it in a thread."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def missing_on_mps() -> set[str]:
    """Return the operators that torch's own tests expect to fail on MPS for every number format, in the installed version."""
    source = Path(torch.__path__[0], "testing", "_internal", "common_mps.py").read_text(encoding="utf-8")
    lists = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "UNIMPLEMENTED_XFAILLIST"
    ]
    rows = zip(lists[0].keys, lists[0].values, strict=True)
    names = {key.value for key, value in rows if isinstance(value, ast.Constant) and value.value is None}
    return {name.removeprefix("nn.functional.").replace(".", "_") for name in names} - {"to", "norm"}


MISSING = missing_on_mps()
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "unique_consecutive"}
CONVERT = {"copy_", "_to_copy", "_foreach_copy_"}


class DeviceTensor(torch.Tensor):
    """A tensor of the device. `held` has its numbers, and shares memory as the tensor itself would."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(
            protocol
        )  # torch.save copies to the host; a checkpoint is the same for all devices


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator that has a tensor of the device among its arguments, or is to make one."""
    name = operator._schema.name.partition("::")[2]
    leaves, structure = tree_flatten((args, kwargs))
    given = [x for x in leaves if isinstance(x, torch.Tensor)]
    to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]) == HOST
    into_host = name == "copy_" and not isinstance(args[0], DeviceTensor)
    _refuse(operator, name, given, kwargs)
    if name in READS or to_host or into_host or _has_mask(name, args):
        waits.note(name)
    held_args, held_kwargs = tree_unflatten(map(_held, leaves), structure)
    out = operator(*held_args, **held_kwargs)
    if into_host:
        return args[0]
    if to_host:
        return out
    made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
    if any(x.dtype == torch.float64 for x in made):
        raise Refused(f"{caller()}: {name} makes a tensor of float64, which Apple's GPU does not have")
    with torch.inference_mode(mode=False):  # torch cannot make a wrapped view of an ordinary tensor in inference mode
        wrapped = tree_map(lambda x: DeviceTensor(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(operator, args, kwargs, wrapped)


def _held(x: Any) -> Any:
    if isinstance(x, DeviceTensor):
        return x.held
    return HOST if isinstance(x, torch.device) and x.type == NAME else x


def _has_mask(name: str, args: Any) -> bool:
    """Tell whether an index is a mask, whose number of true values the host must know."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    is_fill = name != "index" and args[2].numel() == 1
    return not is_fill and any(x is not None and x.dtype == torch.bool for x in args[1])


def _refuse(operator: Any, name: str, given: list[torch.Tensor], kwargs: dict[str, Any]) -> None:
    if name.strip("_") in MISSING or name.lstrip("_") in MISSING:
        raise Refused(f"{caller()}: torch has no kernel of {name} for MPS")
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise Refused(f"{caller()}: {name} gets a random generator of the host")
    if name in CONVERT:
        return
    floats = {x.dtype for x in given if x.is_floating_point() and x.ndim}
    if len(floats) > 1 and torch.Tag.pointwise not in operator.tags:  # pointwise ones convert to the widest format
        raise Refused(f"{caller()}: {name} gets {' and '.join(sorted(map(str, floats)))}")
    strangers = [x for x in given if not isinstance(x, DeviceTensor) and x.ndim]
    if strangers and name != "index":  # torch itself copies the indices of x[indices]
        raise Refused(f"{caller()}: {name} gets a tensor of the host, of shape {tuple(strangers[0].shape)}")


class _Module(_DummyBackendModule):
    """What torch asks of the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed(self, seed: int) -> None:
        """Draw from the generator of the CPU, which its caller has seeded."""

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        """Return the state of that generator, which `torch.random.fork_rng` keeps for every device."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        """Set the state of that generator."""
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)
_factories = torch.library.Library("_", "IMPL")
_factories.fallback(lambda operator, *args, **kwargs: _run(operator, args, kwargs), "PrivateUse1")
_factories.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_copies = torch.library.Library(
    "aten", "IMPL"
)  # torch.tensor() and x[[0, 1]] copy below Python, where no fallback is found
_copies.impl("copy_", lambda *args, **kwargs: _run(torch.ops.aten.copy_.default, args, kwargs), "PrivateUse1")

# Autocast on the stand-in converts what autocast on MPS converts, which the dispatcher knows. The first set is
# AT_FORALL_LOWER_PRECISION_FP of ATen/autocast_mode.h, the second the operators that take the widest of their formats.
LOWER = {"addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "einsum", "linalg_multi_dot", "linear"}
LOWER |= {"matmul", "mm", "mv", "scaled_dot_product_attention"}
WIDEST = {"addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "tensordot"}
WIDEST |= {"scatter_add"}
_autocast = torch.library.Library("aten", "IMPL")


def _cast(operator: Any, name: str) -> Any:
    key = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("AutocastPrivateUse1"))

    def call(*args: Any, **kwargs: Any) -> Any:
        given = [x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor) and x.is_floating_point()]
        dtype = torch.float32
        if name in LOWER:
            dtype = torch.get_autocast_dtype(NAME)
        elif name in WIDEST and torch.float32 not in given:
            dtype = given[0]
        with torch._C._ExcludeDispatchKeyGuard(key):
            is_float = lambda x: isinstance(x, DeviceTensor) and x.is_floating_point()  # noqa: E731
            args, kwargs = tree_map(lambda x: x.to(dtype) if is_float(x) else x, (args, kwargs))
            return operator(*args, **kwargs)

    return call


for _full_name in torch._C._dispatch_get_all_op_names():
    if torch._C._dispatch_has_kernel_for_dispatch_key(_full_name, "AutocastMPS"):
        _name, _, _overload = _full_name.removeprefix("aten::").partition(".")
        _operator = getattr(getattr(torch.ops.aten, _name), _overload or "default")
        _autocast.impl(_full_name.removeprefix("aten::"), _cast(_operator, _name), "AutocastPrivateUse1")


def use(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Let `device=mps` mean the stand-in for a test, and return the counter of waits, which starts at 0."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(Machine, "device", property(lambda machine: DEVICE if machine.accelerator == "mps" else HOST))
    for name, result in (("is_available", True), ("parse_devices", [0]), ("get_parallel_devices", [DEVICE])):
        monkeypatch.setattr(MPSAccelerator, name, staticmethod(lambda *_, result=result: result))
    monkeypatch.setattr(MPSAccelerator, "setup_device", lambda *_: None)
    build = MixedPrecision.__init__

    def on_the_device(self: Any, precision: Any, device: str, scaler: Any = None) -> None:
        build(self, precision, NAME if device == "mps" else device, scaler)

    monkeypatch.setattr(MixedPrecision, "__init__", on_the_device)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", lambda _: None)
    waits.clear()
    return waits
