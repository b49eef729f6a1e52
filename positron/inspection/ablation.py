"""Remove a part of a model: a head, or the attention or the MLP of a block."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import nn

from positron.config import GPTConfig
from positron.inspection.lookdata import Ablation
from positron.model.gpt import GPT, Block
from positron.system.errors import UserError

_NAME = re.compile(r"(\d{1,6})\.(\d{1,6}|attn|mlp)")


def ablation_of(name: str) -> Ablation:
    """Parse the name of an ablation: `0.3` is head 3 of layer 0, `1.attn` and `1.mlp` are parts of layer 1.

    Raises UserError for any other text.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UserError(
            f"{name!r} does not name a part of the model: write LAYER.HEAD, LAYER.attn or LAYER.mlp, such as 0.3 for head 3 of "
            "layer 0" + (", and give --ablate once for each part" if "," in name or " " in name.strip() else "")
        )
    layer = int(parts[1])
    match parts[2]:
        case "attn" | "mlp" as part:
            return {"layer": layer, "part": part}
        case head:
            return {"layer": layer, "part": int(head)}


def check_ablations(ablations: Sequence[Ablation], config: GPTConfig) -> None:
    """Raise UserError for a layer or a head that the model does not have."""
    for ablation in ablations:
        layer, part = ablation["layer"], ablation["part"]
        if not 0 <= layer < config.n_layer:
            raise UserError(f"layer {layer} does not exist: the model has the layers 0 to {config.n_layer - 1}")
        if isinstance(part, int) and not 0 <= part < config.n_head:
            raise UserError(f"head {part} does not exist: each layer has the heads 0 to {config.n_head - 1}")


@torch.no_grad()
def ablated(model: GPT, ablations: Sequence[Ablation]) -> GPT:
    """Return a copy of the model in which the output of each part in `ablations` is 0.

    To remove a head, its columns in the attention's output matrix are set to 0. To remove a whole attention or MLP, the weight
    matrix and the bias of its output layer are set to 0. All weights that are not changed are shared by the copy and the model.
    Raises UserError for a part that the model does not have.
    """
    check_ablations(ablations, model.config)
    outputs = [_output(model, ablation) for ablation in ablations]
    changed = {id(tensor) for output in outputs for tensor in output.parameters()}
    shared = {id(p): p for p in [*model.parameters(), *model.buffers()] if id(p) not in changed}
    other = copy.deepcopy(model, memo=shared)
    d_head = model.config.d_head
    for ablation in ablations:
        output, part = _output(other, ablation), ablation["part"]
        if isinstance(part, int):
            output.weight[:, part * d_head : (part + 1) * d_head] = 0
            continue
        for tensor in output.parameters():
            tensor.zero_()
    return other


def _output(model: GPT, ablation: Ablation) -> nn.Linear:
    """Return the output layer of the MLP or attention that `ablation` names; for a head, the output layer of its attention."""
    block = model.blocks[ablation["layer"]]
    assert isinstance(block, Block)
    match ablation["part"]:
        case "mlp":
            return block.mlp.down
        case "attn" | int():
            return block.attn.out
        case _:
            assert_never(ablation["part"])
