"""Implement LoRA (arXiv:2106.09685): freeze the model, and add a trained low-rank matrix to each matrix of its blocks.

A frozen matrix W (out, in) becomes W + 2 B A, with trained matrices B (out, r) and A (r, in) of a small rank r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from positron.model.gpt import GPT, Block
from positron.system.errors import UserError

_PARAMETRIZATION = "parametrizations.weight."  # torch's prefix for the names of a parametrised embedding
SCALE = 2.0  # alpha / rank, for every rank; the paper's code for GPT-2 has this value at alpha 32 and rank 16


class LoraLinear(nn.Linear):
    """Compute x (W + 2 B A)^T + b with a frozen W and b, and a trained A and B.

    A (r, in) is random at first, and B (out, r) is 0, so that training starts from W. r is the rank of the update.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, generator: torch.Generator) -> LoraLinear:
        """Return a layer that shares weight and bias with `linear` and has a new A (rank, in) and B (out, rank).

        A is drawn from a normal distribution by `generator`; B is 0.
        """
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        a = torch.empty(rank, linear.in_features).normal_(0.0, linear.in_features**-0.5, generator=generator)
        layer.lora_a = nn.Parameter(a.to(linear.weight))
        layer.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias) + SCALE * F.linear(F.linear(x, self.lora_a), self.lora_b)


class TrainedRows(nn.Module):
    """Add trained vectors, which are 0 initially, to the rows `ids` of a frozen embedding table (V, C)."""

    ids: Tensor

    def __init__(self, ids: Sequence[int], table: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(list(ids), device=table.device))
        self.lora_rows = nn.Parameter(torch.zeros(len(ids), table.shape[1], dtype=table.dtype, device=table.device))

    def forward(self, table: Tensor) -> Tensor:
        """Return `table` (V, C) with one trained vector added to each row whose index is in the attribute `ids`."""
        return table.index_add(0, self.ids, self.lora_rows)


def add_lora(model: GPT, rank: int, seed: int, markers: Sequence[int] = (), *, key: str = "sft.lora.rank") -> None:
    """Freeze the model and add a low-rank update of `rank` to every matrix of its blocks, in place.

    The random matrices A of the updates depend on `seed`. `markers` are the token ids that mark the turns of a chat. Their rows
    in the embedding table and the output head are trained, too: these tokens do not occur in pretraining, so the model could
    otherwise not tell who speaks, and could not end an answer. Raises UserError if a matrix has fewer rows or columns than
    `rank`: the number of rows or columns limits the rank of any update of the matrix, so a larger `rank` is useless. `key` is
    the name that the message uses for the setting `rank`.
    """
    largest = min(min(part.weight.shape) for part in model.blocks.modules() if isinstance(part, nn.Linear))
    if rank > largest:
        raise UserError(
            f"{key}={rank} is larger than the smallest matrix of this model allows: give at most {key}={largest}"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        for module in (block.attn, block.mlp):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(module, name, LoraLinear.from_linear(layer, rank, generator))
    if not markers:
        return
    tables: list[nn.Module] = [model.wte] if model.config.tie_embeddings else [model.wte, model.lm_head]
    for table in tables:
        assert isinstance(table.weight, Tensor)
        parametrize.register_parametrization(table, "weight", TrainedRows(markers, table.weight))


def effective_weight(linear: nn.Module) -> Tensor:
    """Return the matrix (out, in) by which a linear layer multiplies: W + 2 B A for a LoraLinear, otherwise W."""
    assert isinstance(linear, nn.Linear)
    if isinstance(linear, LoraLinear):
        return linear.weight + SCALE * linear.lora_b @ linear.lora_a
    return linear.weight


def merge_lora(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of a GPT without LoRA that computes the same as the GPT with LoRA in `state_dict`.

    The low-rank update of each matrix is added to the matrix. For some tokens, `add_lora` also trains a change of their rows in
    the embedding table and the output head; these changes are added to the rows.
    """
    plain = {
        name: value
        for name, value in state_dict.items()
        if not name.endswith(("lora_a", "lora_b")) and _PARAMETRIZATION not in name
    }
    for name in state_dict:
        if name.endswith(".lora_a"):
            layer = name.removesuffix("lora_a")
            plain[f"{layer}weight"] = plain[f"{layer}weight"] + SCALE * state_dict[f"{layer}lora_b"] @ state_dict[name]
        if name.endswith(f"{_PARAMETRIZATION}original"):
            layer = name.removesuffix(f"{_PARAMETRIZATION}original")
            added = f"{layer}{_PARAMETRIZATION}0."
            ids, rows = state_dict[f"{added}ids"], state_dict[f"{added}lora_rows"]
            plain[f"{layer}weight"] = state_dict[name].index_add(0, ids, rows)
    return plain
