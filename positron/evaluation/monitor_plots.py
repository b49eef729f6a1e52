"""Draw the measurements of the monitors for the report: heat maps of layers or heads, and curves.

A monitor, switched on by `monitor=`, measures values such as gradient norms during training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from positron.evaluation.plots import bin_curves, heat_map


@dataclass(frozen=True)
class View:
    """Describe one figure, which shows all metrics whose names begin with `prefix`."""

    prefix: str
    title: str
    reading: str  # how to read the figure
    label: str  # title of the colour bar or legend
    scale: str = "log"  # scale of the colours: log, or share (0 to 1)


HEAT_MAPS = (
    View(
        "attention/entropy/",
        "Attention entropy of each head",
        "Each row is one head (layer.head). At 1, the head attends equally to all earlier tokens, as before training. Near 0, "
        "it attends to a single token.",
        "entropy / entropy of uniform attention",
        "share",
    ),
    View(
        "grad_norm/",
        "Gradient norm of each layer",
        "The norm before clipping. A layer that stays dark learns little; a sudden bright spot shows where training becomes "
        "unstable.",
        "gradient norm",
    ),
    View(
        "grad_norm_matrix/",
        "Gradient norm of each matrix",
        "The norm before clipping, for each weight matrix of the blocks.",
        "gradient norm",
    ),
    View(
        "update_ratio/",
        "Relative size of the update of each layer",
        "Norm of the update divided by the norm of the weights. Around 1e-3 is usual; 1e-1 is destructive.",
        "update / weights",
    ),
    View("weight_norm/", "Weight norm of each layer", "The norm of all matrices of a block together.", "weight norm"),
    View(
        "activation_rms/",
        "Residual stream after each layer",
        "Root mean square of the residual stream, to which each block adds. Growth without limit is a warning.",
        "root mean square",
    ),
    View(
        "dead_units/", "Dead MLP units", "Share of units whose output is 0 for every token.", "share of units", "share"
    ),
    View(
        "always_on_units/",
        "MLP units that are always on",
        "Share of units whose input to the activation is positive for every token: the activation of these units is nearly "
        "linear.",
        "share of units",
        "share",
    ),
)
CURVES = (
    View(
        "loss_by_frequency/",
        "Loss of frequent and rare tokens",
        "Five groups with equal shares of the training text, from the most frequent tokens (1) to the rarest (5).",
        "frequency",
    ),
    View(
        "loss_by_position/",
        "Loss early and late in the context",
        "Grouped by the number of earlier tokens in the window. If more context helps, later positions have a lower loss.",
        "position",
    ),
)


def series(rows: list[dict[str, Any]], prefix: str) -> tuple[list[str], list[int], np.ndarray]:
    """Return the names, steps and values (n, m) of the n metrics in `rows` whose names begin with `prefix`.

    The names are returned without the prefix. The m steps are those at which at least one of these metrics was measured; the
    value of a metric that was not measured at such a step is NaN.
    """
    measured = [row for row in rows if any(key.startswith(prefix) for key in row)]
    keys = list(dict.fromkeys(key for row in measured for key in row if key.startswith(prefix)))
    values = [[np.nan if row.get(key) is None else row[key] for row in measured] for key in keys]
    return [key.removeprefix(prefix) for key in keys], [row["step"] for row in measured], np.array(values, dtype=float)


def inside_pictures(rows: list[dict[str, Any]]) -> list[tuple[str, str, bytes]]:
    """Return the figures of the monitors' metrics in `rows`, the rows of metrics.jsonl, as (title, explanation, PNG)."""
    pictures = []
    for view in HEAT_MAPS:
        names, steps, values = series(rows, view.prefix)
        if np.isfinite(values).any():
            png = heat_map(names, steps, values, label=view.label, share=view.scale == "share")
            pictures.append((view.title, view.reading, png))
    for view in CURVES:
        names, steps, values = series(rows, view.prefix)
        if np.isfinite(values).any():
            pictures.append((view.title, view.reading, bin_curves(names, steps, values, label=view.label)))
    return pictures
