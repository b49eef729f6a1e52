"""Looking inside while it trains: callbacks that measure every few steps and change nothing.

None of them draws a random number, calls the other ranks, or touches weights and gradients, so the losses of a run are
bit for bit the same with them and without. What they find goes into `module.metrics`, and so into metrics.jsonl, the
trackers and the report.
"""

from __future__ import annotations

import logging

from positron.config import MonitorConfig
from positron.training.monitors.activations import Activations
from positron.training.monitors.attention import AttentionEntropy
from positron.training.monitors.norms import Gradients, Weights
from positron.training.monitors.probe import Monitor, Probe
from positron.training.monitors.tokens import TokenLosses
from positron.training.objective.base import Objective

logger = logging.getLogger(__name__)


def open_monitors(
    config: MonitorConfig,
    objective: Objective,
    vocab_size: int,
    shards_weights: bool,
) -> list[Monitor]:
    """Those that are asked for. None under FSDP, where no rank has all weights and each forward pass needs all ranks."""
    asked = (config.gradients, config.weights, config.attention, config.activations, config.tokens)
    if not any(asked):
        return []
    if shards_weights:
        logger.info("monitor= measures nothing under device.strategy=fsdp, where no process has the whole model")
        return []
    every, probe = config.every, Probe.of(objective)
    made = [
        Gradients(every),
        Weights(every),
        AttentionEntropy(every, probe),
        Activations(every, probe),
        TokenLosses(every, probe, objective, vocab_size),
    ]
    return [monitor for monitor, wanted in zip(made, asked, strict=True) if wanted]
