"""LoRA (arXiv:2106.09685): fine-tune a matrix W by a product of two thin ones, W + 2 B A, with W itself at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from positron.model.gpt import GPT, Block
from positron.system.errors import UserError

_TABLE = "parametrizations.weight."  # how torch names a table and what is added to it
SCALE = 2.0  # alpha / rank, as in the paper's own code for GPT-2 (alpha 32, rank 16 and below, tuned once)


class LoraLinear(nn.Linear):
    """A linear layer whose weight rests; A (r, in) is drawn, B (out, r) is zero, so training starts from W."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @classmethod
    def of(cls, linear: nn.Linear, rank: int, generator: torch.Generator) -> LoraLinear:
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        a = torch.empty(rank, linear.in_features).normal_(0.0, linear.in_features**-0.5, generator=generator)
        made.lora_a = nn.Parameter(a.to(linear.weight))
        made.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + SCALE * F.linear(F.linear(x, self.lora_a), self.lora_b)


class TrainedRows(nn.Module):
    """Some rows of a table of embeddings, trained as what is added to them; the others rest."""

    ids: Tensor

    def __init__(self, ids: Sequence[int], table: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(list(ids), device=table.device))
        self.lora_rows = nn.Parameter(torch.zeros(len(ids), table.shape[1], dtype=table.dtype, device=table.device))

    def forward(self, table: Tensor) -> Tensor:
        return table.index_add(0, self.ids, self.lora_rows)


def add_lora(model: GPT, rank: int, seed: int, markers: Sequence[int] = ()) -> None:
    """In place: every matrix of the blocks gets thin ones of `rank`; nothing else is trained but the rows of `markers`.

    These are the ids of the chat template, which pretraining never shows: without their embeddings a model cannot tell
    who speaks, and without their rows in the head it cannot end an answer.

    Raises UserError if a matrix has fewer rows or columns than `rank`, which adds nothing to it.
    """
    largest = min(min(part.weight.shape) for part in model.blocks.modules() if isinstance(part, nn.Linear))
    if rank > largest:
        raise UserError(f"sft.lora.rank={rank} is more than this model's smallest matrix has: give at most {largest}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        for room in (block.attn, block.mlp):
            for name, part in list(room.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(room, name, LoraLinear.of(part, rank, generator))
    if not markers:
        return
    tables: list[nn.Module] = [model.wte] if model.config.tie_embeddings else [model.wte, model.lm_head]
    for table in tables:
        assert isinstance(table.weight, Tensor)
        parametrize.register_parametrization(table, "weight", TrainedRows(markers, table.weight))


def weight_of(linear: nn.Module) -> Tensor:
    """The matrix that the layer multiplies by, merged where it is a LoraLinear."""
    assert isinstance(linear, nn.Linear)
    if isinstance(linear, LoraLinear):
        return linear.weight + SCALE * linear.lora_b @ linear.lora_a
    return linear.weight


def merged(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The weights of a plain GPT that computes the same."""
    plain = {
        name: value
        for name, value in state_dict.items()
        if not name.endswith(("lora_a", "lora_b")) and _TABLE not in name
    }
    for name in state_dict:
        if name.endswith(".lora_a"):
            room = name.removesuffix("lora_a")
            plain[f"{room}weight"] = plain[f"{room}weight"] + SCALE * state_dict[f"{room}lora_b"] @ state_dict[name]
        if name.endswith(f"{_TABLE}original"):
            room = name.removesuffix(f"{_TABLE}original")
            ids, rows = state_dict[f"{room}{_TABLE}0.ids"], state_dict[f"{room}{_TABLE}0.lora_rows"]
            plain[f"{room}weight"] = state_dict[name].index_add(0, ids, rows)
    return plain
