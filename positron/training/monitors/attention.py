"""Measure the entropy of each head's attention."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from positron.model.gpt import GPT, Attention
from positron.model.probes import Inputs, attention_inputs, probabilities, queries_and_keys, visible_keys
from positron.training.monitors.probe import Probe, ProbeMonitor, to_floats

logger = logging.getLogger(__name__)

COLLAPSED = 0.01  # normalised entropy below which a head counts as collapsed
PATIENCE = 3  # a head is reported after this number of measurements in a row below COLLAPSED


def normalised_entropy(p: Tensor, visible: Tensor) -> Tensor:
    """Return the entropy of each row of p (..., T, keys) divided by its largest possible value: (..., T), from 0 to 1.

    `visible` is a mask (..., T, keys) that is True where a token may attend to a key. The largest entropy is ln(number of
    visible keys); all keys then have the same weight. The result is NaN if only one key is visible.
    """
    entropy: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropy / visible.sum(dim=-1).log()


def head_entropies(attn: Attention, inputs: Inputs, real: Tensor) -> list[Tensor]:
    """Return the normalised entropy of the attention of each head of a layer, as a list of scalar tensors.

    The normalised entropy is the entropy of a token's attention divided by its largest possible value (see
    `normalised_entropy`). Its mean over tokens is returned; padding and tokens that see only one key do not count.

    `inputs` are the arguments of `Attention.forward`. `real` (B, T) is False for padding. Only the attention scores of one
    head at a time are in memory.
    """
    visible = visible_keys(attn, inputs)
    counted = real & (visible.sum(dim=-1) > 1)
    q, k = queries_and_keys(attn, inputs[0], inputs[1])
    heads = (probabilities(q[:, h], k[:, h], visible) for h in range(attn.n_head))
    return [normalised_entropy(p, visible)[counted].mean() for p in heads]


class AttentionEntropy(ProbeMonitor):
    """Measure the mean normalised entropy of each head's attention, as attention/entropy/LAYER.HEAD.

    The value is 0 if each token attends to a single key, and 1 if all keys have the same weight. Queries and keys are computed
    again from the inputs of each attention layer, because training does not store the probabilities. If the value of a head is
    below 0.01 (COLLAPSED) in 3 measurements in a row (PATIENCE), one warning reports that the head has collapsed.
    """

    def __init__(self, every: int, probe: Probe) -> None:
        super().__init__(every, probe)
        self._low: dict[str, int] = {}  # measurements in a row below COLLAPSED
        self._named: set[str] = set()

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """Return the mean normalised entropy of each head's attention, from 0 to 1, on the validation windows `probe`.

        The key attention/entropy/0.3, for example, stands for head 3 of layer 0. `documents` (N, T): the index of each token's
        document in its window, or None if attention crosses documents.

        A head has collapsed if its value was below 0.01 (COLLAPSED) in 3 measurements in a row (PATIENCE). The first time that
        a head has collapsed, a warning is logged.
        """
        values: dict[str, Tensor] = {}
        for layer, (attn, inputs) in enumerate(attention_inputs(model, probe.x, documents)):
            for head, entropy in enumerate(head_entropies(attn, inputs, probe.real)):
                values[f"attention/entropy/{layer}.{head}"] = entropy
        entropies = to_floats(values)
        self._warn(entropies)
        return entropies

    def _warn(self, entropies: dict[str, float]) -> None:
        for key, entropy in entropies.items():
            self._low[key] = self._low.get(key, 0) + 1 if entropy < COLLAPSED else 0
            if self._low[key] >= PATIENCE and key not in self._named:
                self._named.add(key)
                layer, head = key.rpartition("/")[2].split(".")
                logger.warning(
                    f"head {head} of layer {layer} has collapsed: it attends to a single token only (in {PATIENCE} "
                    f"measurements, the entropy of its attention was below {COLLAPSED:.0%} of that of equal attention to all "
                    "tokens). If the loss no longer falls, train again under another name= with a lower optimizer.lr="
                )
