"""Rename and rearrange weights between Positron and another program, in both directions.

A format is described by a list of rules, one for each tensor of the other program. An export applies the rules forward and an
import backward, so that the two cannot disagree. In names, "ours" means Positron's tensors and "theirs" those of the other
program. Shapes: C = d_model, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from positron.config import GPTConfig
from positron.model.gpt import GPT

Weights = Mapping[str, Tensor]


class Contradiction(ValueError):
    """Report that a tensor of the other program has values that no model of Positron with this architecture can have."""


@dataclass(frozen=True)
class Rule:
    """Describe how one tensor of another program, such as llama.cpp, is converted from and to tensors of Positron.

    `theirs` is the name of the tensor in the other program. `ours` are the names of the Positron tensors that it contains.
    `forth` computes the other program's tensor from Positron's tensors, in the order of `ours`. `back` computes Positron's
    tensors, in the same order, from the other program's tensor. `back` raises Contradiction for values that `forth` cannot
    produce.
    """

    theirs: str
    ours: tuple[str, ...]
    forth: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor], Sequence[Tensor]]


def same(theirs: str, ours: str) -> Rule:
    """Return the rule that copies a tensor unchanged in both directions."""
    return Rule(theirs, (ours,), lambda tensors: tensors[0], lambda tensor: [tensor])


def transposed(theirs: str, ours: str) -> Rule:
    """Return the rule that transposes a matrix: GPT-2's Conv1D stores (in, out), and a linear layer stores (out, in)."""
    return Rule(theirs, (ours,), lambda tensors: tensors[0].T.contiguous(), lambda tensor: [tensor.T.contiguous()])


def constant(theirs: str, value: Tensor) -> Rule:
    """Return the rule for a tensor of the other program that always has the values `value`, such as a bias of zeros.

    `theirs` is the name of this tensor; Positron has no such tensor. An export writes the tensor. An import only checks it, and
    raises Contradiction for other values.
    """

    def back(tensor: Tensor) -> Sequence[Tensor]:
        if not torch.equal(tensor, value.to(tensor.dtype)):
            raise Contradiction(f"the tensor {theirs} contains other values than {value.flatten()[0].item():g}")
        return []

    return Rule(theirs, (), lambda tensors: value, back)


def stacked(theirs: str, ours: tuple[str, str, str], groups: int, d_head: int, *, transpose: bool) -> Rule:
    """Return the rule that stacks q, k and v, after repeating each key/value head for all query heads that share it.

    `groups`: how many query heads share a key/value head, H / K.
    `ours`: the names of q (H D, C), k and v (K D, C), or of their biases (H D,) and (K D,). H is the number of query heads, K
    the number of key/value heads, and D is `d_head`. `theirs`: the name of the stacked matrix (3 H D, C) or bias (3 H D,). With
    `transpose`, the stacked matrix is (C, 3 H D).
    """

    def repeated(tensor: Tensor) -> Tensor:
        heads: Tensor = tensor.unflatten(0, (-1, d_head))
        return heads.repeat_interleave(groups, dim=0).flatten(0, 1)

    def single(tensor: Tensor) -> Tensor:
        heads: Tensor = tensor.unflatten(0, (-1, groups, d_head))
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise Contradiction(
                f"the tensor {theirs} has different keys or values within a group of {groups} query heads"
            )
        return heads[:, 0].flatten(0, 1)

    def forth(tensors: Sequence[Tensor]) -> Tensor:
        q, k, v = tensors
        rows = torch.cat((q, repeated(k), repeated(v)))
        return rows.T.contiguous() if transpose else rows

    def back(tensor: Tensor) -> Sequence[Tensor]:
        q, k, v = (tensor.T if transpose else tensor).chunk(3)
        return [q.contiguous(), single(k), single(v)]

    return Rule(theirs, ours, forth, back)


def consecutive_pairs(theirs: str, ours: str, d_head: int) -> Rule:
    """Return the rule that reorders the rows of q or k for programs in which RoPE rotates pairs of neighbouring channels.

    In these programs, RoPE rotates the channels 2 i and 2 i + 1 of a head together. In Positron, it rotates i and i + D/2. D is
    `d_head`. Such programs are llama.cpp (its architectures llama and arcee), llama2.c, and Meta's code for Llama. `theirs` and
    `ours`: the name of the tensor in the other program and in Positron.
    """

    def forth(tensors: Sequence[Tensor]) -> Tensor:
        pairs: Tensor = tensors[0].unflatten(0, (-1, 2, d_head // 2))
        return pairs.transpose(1, 2).flatten(0, 2)

    def back(tensor: Tensor) -> Sequence[Tensor]:
        return [tensor.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)]

    return Rule(theirs, (ours,), forth, back)


def norm(theirs: str, ours: str, config: GPTConfig, *, always_bias: bool) -> list[Rule]:
    """Return the rules that convert the weight and the bias of a norm.

    `theirs` and `ours`: the name of the norm in the other program and in Positron. `always_bias`: whether the other program
    always has a bias in this norm; an export writes a bias of zeros if the norm has no bias in Positron.
    """
    rules = [same(f"{theirs}.weight", f"{ours}.weight")]
    if config.has_norm_bias:
        rules.append(same(f"{theirs}.bias", f"{ours}.bias"))
    elif always_bias:
        rules.append(constant(f"{theirs}.bias", torch.zeros(config.d_model)))
    return rules


def qk_norm(theirs: str, ours: str, config: GPTConfig) -> Rule:
    """Return the rule that converts the learned scale (D,) of QK-norm.

    `theirs` and `ours`: the name of the scale in the other program and in Positron. If the model in Positron has no learned
    scale, an export writes a scale of ones.
    """
    return same(theirs, ours) if config.qk_scale else constant(theirs, torch.ones(config.d_head))


def linear(theirs: str, ours: str, config: GPTConfig, zeros: int | None = None) -> list[Rule]:
    """Return the rules that convert the weight and the bias of a linear layer.

    `theirs` and `ours`: the name of the layer in the other program and in Positron. `zeros`: the size of the bias if the other
    program always has a bias in this layer; an export writes a bias of zeros if the layer has no bias in Positron.
    """
    rules = [same(f"{theirs}.weight", f"{ours}.weight")]
    if config.bias:
        rules.append(same(f"{theirs}.bias", f"{ours}.bias"))
    elif zeros is not None:
        rules.append(constant(f"{theirs}.bias", torch.zeros(zeros)))
    return rules


def absent(ours: str, size: int) -> Rule:
    """Return the rule, for imports only, that fills a bias (size,) with zeros, because the other program has no such bias."""

    def forth(tensors: Sequence[Tensor]) -> Tensor:
        raise Contradiction(f"the other program has no tensor for {ours}")

    return Rule("", (ours,), forth, lambda tensor: [torch.zeros(size)])


def to_theirs(rules: Iterable[Rule], weights: Weights) -> dict[str, Tensor]:
    """Compute the other program's tensors from Positron's weights.

    Raises KeyError if a rule names a weight that is not in `weights`.
    """
    tensors: dict[str, Tensor] = {}
    written: set[tuple[str, ...]] = set()
    for rule in rules:
        tensor = rule.forth([weights[name] for name in rule.ours]).contiguous()
        # safetensors refuses two names of the same memory
        tensors[rule.theirs] = tensor.clone() if rule.ours in written else tensor
        written.add(rule.ours)
    return tensors


def to_ours(rules: Iterable[Rule], tensors: Weights) -> dict[str, Tensor]:
    """Compute Positron's weights from the other program's tensors.

    Raises Contradiction for values that `to_theirs` cannot have written with these rules, and KeyError if a tensor is missing.
    """
    weights: dict[str, Tensor] = {}
    for rule in rules:
        theirs = tensors[rule.theirs] if rule.theirs else torch.empty(0)
        for name, tensor in zip(rule.ours, rule.back(theirs), strict=True):
            if name in weights and not torch.equal(weights[name], tensor):
                raise Contradiction(
                    f"the tensor {rule.theirs} differs from another tensor, but Positron has only one, {name}, for both"
                )
            weights[name] = tensor
    return weights


def expected_shapes(rules: Iterable[Rule], config: GPTConfig) -> dict[str, torch.Size]:
    """Return the shape that each tensor of the other program must have, by the tensor's name.

    `config`: the architecture of the model.
    """
    weights = {name: torch.empty(p.shape, device="meta") for name, p in GPT(config).named_parameters()}
    return {rule.theirs: rule.forth([weights[name] for name in rule.ours]).shape for rule in rules if rule.theirs}
