"""Rename and rearrange weights between this project's names and another program's, in both directions.

A format is a list of rules, one for each tensor of the other program. Export runs them forward, import backward, so the
two cannot disagree. Shapes: C = d_model, H heads, K key/value heads, D head dimension, F = width of the MLP.
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
    """A tensor holds values that the architecture, as it was read, cannot have."""


@dataclass(frozen=True)
class Rule:
    """Describe one tensor of the other program: its name, the Positron tensors in it, and the conversion both ways.

    `back` returns our tensors in the order of `ours`. It raises Contradiction for values that `forth` cannot produce.
    """

    theirs: str
    ours: tuple[str, ...]
    forth: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor], Sequence[Tensor]]


def same(theirs: str, ours: str) -> Rule:
    """Take the tensor as it is."""
    return Rule(theirs, (ours,), lambda tensors: tensors[0], lambda tensor: [tensor])


def transposed(theirs: str, ours: str) -> Rule:
    """Swap the axes of a matrix: GPT-2's Conv1D holds (in, out), a linear layer (out, in)."""
    return Rule(theirs, (ours,), lambda tensors: tensors[0].T.contiguous(), lambda tensor: [tensor.T.contiguous()])


def constant(theirs: str, value: Tensor) -> Rule:
    """Write a tensor that our architecture does not have because its values are fixed: a bias of zeros, a scale of ones.

    The way back refuses other values.
    """

    def back(tensor: Tensor) -> Sequence[Tensor]:
        if not torch.equal(tensor, value.to(tensor.dtype)):
            raise Contradiction(f"{theirs} must hold {value.flatten()[0].item():g} everywhere")
        return []

    return Rule(theirs, (), lambda tensors: value, back)


def stacked(theirs: str, ours: tuple[str, str, str], groups: int, d_head: int, *, transpose: bool) -> Rule:
    """Put queries, keys and values below each other, keys and values repeated `groups` times for as many heads each.

    ours: q (H D, C), k and v (K D, C), or their biases (H D,) and (K D,); theirs: (3 H D, C), transposed if asked for.
    """

    def repeated(tensor: Tensor) -> Tensor:
        heads: Tensor = tensor.unflatten(0, (-1, d_head))
        return heads.repeat_interleave(groups, dim=0).flatten(0, 1)

    def single(tensor: Tensor) -> Tensor:
        heads: Tensor = tensor.unflatten(0, (-1, groups, d_head))
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise Contradiction(f"{theirs} must hold the same keys and values for each group of {groups} heads")
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
    """Reorder the rows of queries or keys for programs that turn the pairs (2 i, 2 i + 1) by rope instead of (i, i + D/2).

    llama.cpp's llama and arcee, llama2.c, and Meta's own checkpoints do.
    """

    def forth(tensors: Sequence[Tensor]) -> Tensor:
        pairs: Tensor = tensors[0].unflatten(0, (-1, 2, d_head // 2))
        return pairs.transpose(1, 2).flatten(0, 2)

    def back(tensor: Tensor) -> Sequence[Tensor]:
        return [tensor.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)]

    return Rule(theirs, (ours,), forth, back)


def norm(theirs: str, ours: str, config: GPTConfig, *, always_bias: bool) -> list[Rule]:
    """Map a norm. `always_bias`: theirs has a bias also where ours has none, and zeros are written."""
    rules = [same(f"{theirs}.weight", f"{ours}.weight")]
    if config.has_norm_bias:
        rules.append(same(f"{theirs}.bias", f"{ours}.bias"))
    elif always_bias:
        rules.append(constant(f"{theirs}.bias", torch.zeros(config.d_model)))
    return rules


def qk_norm(theirs: str, ours: str, config: GPTConfig) -> Rule:
    """Map the scale of QK-norm, (D,); ones where ours has none."""
    return same(theirs, ours) if config.qk_scale else constant(theirs, torch.ones(config.d_head))


def linear(theirs: str, ours: str, config: GPTConfig, zeros: int | None = None) -> list[Rule]:
    """Map a linear layer. `zeros`: the size of a bias that theirs always has; zeros are written where ours has none."""
    rules = [same(f"{theirs}.weight", f"{ours}.weight")]
    if config.bias:
        rules.append(same(f"{theirs}.bias", f"{ours}.bias"))
    elif zeros is not None:
        rules.append(constant(f"{theirs}.bias", torch.zeros(zeros)))
    return rules


def absent(ours: str, size: int) -> Rule:
    """Fill a bias that theirs does not have with zeros, (size,)."""

    def forth(tensors: Sequence[Tensor]) -> Tensor:
        raise Contradiction(f"there is no place for {ours}")

    return Rule("", (ours,), forth, lambda tensor: [torch.zeros(size)])


def to_theirs(rules: Iterable[Rule], weights: Weights) -> dict[str, Tensor]:
    """Return the other program's tensors. Raises KeyError if a rule names a weight that the model lacks."""
    tensors: dict[str, Tensor] = {}
    written: set[tuple[str, ...]] = set()
    for rule in rules:
        tensor = rule.forth([weights[name] for name in rule.ours]).contiguous()
        # safetensors refuses two names for one memory
        tensors[rule.theirs] = tensor.clone() if rule.ours in written else tensor
        written.add(rule.ours)
    return tensors


def to_ours(rules: Iterable[Rule], tensors: Weights) -> dict[str, Tensor]:
    """Return our tensors. Raises Contradiction for values that these rules cannot have written."""
    weights: dict[str, Tensor] = {}
    for rule in rules:
        theirs = tensors[rule.theirs] if rule.theirs else torch.empty(0)
        for name, tensor in zip(rule.ours, rule.back(theirs), strict=True):
            if name in weights and not torch.equal(weights[name], tensor):
                raise Contradiction(f"{rule.theirs} must equal the other tensor that {name} comes from")
            weights[name] = tensor
    return weights


def expected_shapes(rules: Iterable[Rule], config: GPTConfig) -> dict[str, torch.Size]:
    """Return the shape that each tensor of the other program must have."""
    weights = {name: torch.empty(p.shape, device="meta") for name, p in GPT(config).named_parameters()}
    return {rule.theirs: rule.forth([weights[name] for name in rule.ours]).shape for rule in rules if rule.theirs}
