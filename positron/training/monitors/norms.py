"""Measure the L2 norms of gradients, weights and updates of each layer.

A layer is a block (`blocks.0`) or a module outside of the blocks (`wte`, `wpe`, `smear`, `norm_f`, `lm_head`). With tied
embeddings, the output head is part of `wte`. Only trained parameters are included; with LoRA these are the low-rank matrices.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from positron.training.module import TrainingModule
from positron.training.monitors.probe import Monitor, group_values, to_floats


def layer_of(parameter: str) -> str:
    """Return the layer of a parameter: `blocks.3` for `blocks.3.attn.q.weight`, `wte` for `wte.weight`."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def norms(tensors: list[Tensor], groups: list[str]) -> dict[str, Tensor]:
    """Return a dict from the name of each group of tensors to its L2 norm; `groups[i]` names the group of `tensors[i]`."""
    by_group = group_values(groups, tensors)
    return {group: torch.nn.utils.get_total_norm(members) for group, members in by_group.items()}


class Gradients(Monitor):
    """Measure the norm of the batch's gradient before clipping, as grad_norm/LAYER and grad_norm_matrix/MATRIX.

    LAYER is a block, such as blocks.0, or a module outside of the blocks, such as wte. MATRIX is the name of a weight
    matrix in a block, such as blocks.0.attn.q.

    Lightning calls this callback before the module clips the gradients. With DDP, the gradients are already averaged over
    all processes.
    """

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._norms: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Compute the norms of the gradients of each layer and each matrix, if this step is measured.

        The norms stay on the device until the step ends, so that the CPU does not wait for the device here.
        """
        if not self.is_due(trainer, trainer.global_step + 1):
            return
        named = [(name, p) for name, p in module.model.named_parameters() if p.grad is not None]
        gradients = [p.grad for _, p in named if p.grad is not None]
        layers = norms(gradients, [layer_of(name) for name, _ in named])
        parts = [(name.rpartition(".")[0], p.grad) for name, p in named if "blocks." in name and p.ndim >= 2]
        matrices = norms([g for _, g in parts if g is not None], [part for part, _ in parts])
        self._norms = {f"grad_norm/{name}": norm for name, norm in layers.items()}
        self._norms |= {f"grad_norm_matrix/{name}": norm for name, norm in matrices.items()}

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the norms to the metrics of the step."""
        module.metrics |= to_floats(self._norms)
        self._norms = {}


class Weights(Monitor):
    """Measure weight_norm/LAYER after a step, update_norm/LAYER (the norm of the step's change), and update_ratio/LAYER.

    LAYER is a block, such as blocks.0, or a module outside of the blocks, such as wte. The ratio is update_norm / weight_norm,
    with the norm of the weights after the step, because some weights are 0 before the first step. For a block only its matrices
    are included, because the scales of its normalisation layers, which start at 1, would dominate the result. A measured step
    needs memory for a copy of the weights.
    """

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._before: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Copy the trained weights before a step that is to be measured.

        After the step, `on_train_batch_end` computes from the copy by how much the step changed the weights.
        """
        if self.is_due(trainer, trainer.global_step + 1):
            named = module.model.named_parameters()
            trained = {name: p for name, p in named if p.requires_grad and (p.ndim >= 2 or "blocks." not in name)}
            self._before = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Add the norms of weights and updates, and their ratios, to the metrics of the step, if the step is measured."""
        if not self._before:
            return
        layers = [layer_of(name) for name in self._before]
        after = [module.model.get_parameter(name) for name in self._before]
        updates = [now.sub(old) for now, old in zip(after, self._before.values(), strict=True)]
        weight_norms, update_norms = norms(list(after), layers), norms(updates, layers)
        self._before = {}
        values = {f"weight_norm/{layer}": norm for layer, norm in weight_norms.items()}
        values |= {f"update_norm/{layer}": norm for layer, norm in update_norms.items()}
        values |= {f"update_ratio/{layer}": update_norms[layer] / weight_norms[layer] for layer in weight_norms}
        module.metrics |= to_floats(values)
