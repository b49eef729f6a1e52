"""Entropy of each head's attention: how widely it looks."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, NORM_EPS, Attention, Block, Rope, apply_rope
from positron.training.monitors.probe import Probe, ProbeMonitor, on_host

COLLAPSED = 0.01  # of the entropy of looking at all alike
PATIENCE = 3  # measurements
Inputs = tuple[Tensor, Rope | None, Tensor | None]  # what Attention.forward takes: x, rope, mask


def queries_and_keys(attn: Attention, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor]:
    """What `attn` multiplies with each other for x (B, T, C): (B, H, T, D) each, keys repeated for heads that share."""
    B, T, _ = x.shape
    q = attn.q(x).view(B, T, attn.n_head, attn.d_head).transpose(1, 2)
    k = attn.k(x).view(B, T, attn.n_kv_head, attn.d_head).transpose(1, 2)
    if rope is not None:
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if attn.qk_norm:
        q = F.rms_norm(q, (attn.d_head,), eps=NORM_EPS)
        k = F.rms_norm(k, (attn.d_head,), eps=NORM_EPS)
    return q, k.repeat_interleave(attn.n_head // attn.n_kv_head, dim=1)


def attention_probabilities(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) over the keys that are visible, (..., T, T); in fp32 or wider, whatever autocast says."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])
        return scores.masked_fill_(~visible, float("-inf")).softmax(dim=-1)


def relative_entropy(probabilities: Tensor, visible: Tensor) -> Tensor:
    """Entropy of each row in nats, divided by ln(number of visible keys), (..., T): 1 where all are looked at alike.

    NaN where a single key is visible.
    """
    return torch.special.entr(probabilities).sum(dim=-1) / visible.sum(dim=-1).log()


def head_entropies(attn: Attention, inputs: Inputs, real: Tensor) -> list[Tensor]:
    """Of each head, the mean over the tokens of `real` (B, T) that see two or more. One head's scores are held at a time."""
    x, rope, mask = inputs
    T = x.shape[1]
    past = torch.ones(1, T, T, dtype=torch.bool, device=x.device).tril()
    visible = past if mask is None else mask[:, 0]  # (B or 1, T, T)
    counted = real & (visible.sum(dim=-1) > 1)
    q, k = queries_and_keys(attn, x, rope)
    probabilities = (attention_probabilities(q[:, h], k[:, h], visible) for h in range(attn.n_head))
    return [relative_entropy(p, visible)[counted].mean() for p in probabilities]


class AttentionEntropy(ProbeMonitor):
    """attention/entropy/LAYER.HEAD: mean over the probe's tokens that see two or more, 0 (one token) to 1 (all alike).

    Queries and keys are computed once more from what the block's attention reads; the training's own path, which never
    holds the probabilities, stays as it is. A head below COLLAPSED in PATIENCE measurements in a row is named once.
    """

    def __init__(self, every: int, probe: Probe, say: Callable[[str], None]) -> None:
        super().__init__(every, probe)
        self.say = say
        self._low: dict[str, int] = {}  # measurements in a row below COLLAPSED
        self._named: set[str] = set()

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        found: dict[str, Tensor] = {}

        def note(layer: int, attn: nn.Module, inputs: Inputs) -> None:
            assert isinstance(attn, Attention)
            for head, entropy in enumerate(head_entropies(attn, inputs, probe.real)):
                found[f"attention/entropy/{layer}.{head}"] = entropy

        with contextlib.ExitStack() as hooks:
            for i, block in enumerate(model.blocks):
                assert isinstance(block, Block)
                hooks.enter_context(block.attn.register_forward_pre_hook(functools.partial(note, i)))
            model.hidden(probe.x, documents)
        entropies = on_host(found)
        self._warn(entropies)
        return entropies

    def _warn(self, entropies: dict[str, float]) -> None:
        for key, entropy in entropies.items():
            self._low[key] = self._low.get(key, 0) + 1 if entropy < COLLAPSED else 0
            if self._low[key] >= PATIENCE and key not in self._named:
                self._named.add(key)
                layer, head = key.rpartition("/")[2].split(".")
                self.say(
                    f"WARNING: head {head} of layer {layer} has collapsed: in {PATIENCE} measurements its attention had "
                    f"less than {COLLAPSED:.0%} of the entropy of looking at all tokens alike, so it looks at one"
                )
