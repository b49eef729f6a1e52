"""Define the monitors: callbacks that measure the inside of a model every few steps and change nothing.

No monitor draws random numbers, communicates with other ranks, or changes weights or gradients. Therefore the losses of a run
are identical to the last bit with and without monitors. The measured values are added to `module.metrics`, from which they
are written to metrics.jsonl, the trackers and the report.
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
    """Return the monitors that the setting `monitor=` names.

    With FSDP the list is empty, because no rank has all weights and a forward pass needs all ranks.
    """
    asked = (config.gradients, config.weights, config.attention, config.activations, config.tokens)
    if not any(asked):
        return []
    if shards_weights:
        logger.info("monitor= is ignored with device.strategy=fsdp, because no process has the whole model")
        return []
    every, probe = config.every, Probe.from_objective(objective)
    monitors = [
        Gradients(every),
        Weights(every),
        AttentionEntropy(every, probe),
        Activations(every, probe),
        TokenLosses(every, probe, objective, vocab_size),
    ]
    return [monitor for monitor, is_asked in zip(monitors, asked, strict=True) if is_asked]
