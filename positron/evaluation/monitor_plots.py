"""Draw the measurements of the monitors (`monitor=`) for the report: heat maps of layers or heads, and curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from positron.evaluation.plots import bin_curves, heat_map


@dataclass(frozen=True)
class View:
    """Describe the figure of all metrics whose names begin with `prefix`, and how to read it."""

    prefix: str
    title: str
    reading: str
    label: str  # of the colours
    scale: str = "log"  # of the colours: log, or share (0 to 1)


HEAT_MAPS = (
    View(
        "attention/entropy/",
        "Attention entropy of each head",
        "Rows are layer.head. 1: the head attends equally to all earlier tokens, as at the start. Near 0: to one token.",
        "entropy / entropy of uniform attention",
        "share",
    ),
    View(
        "grad_norm/",
        "Gradient norm of each layer",
        "Before clipping. A layer that stays dark learns little; a sudden bright spot shows where training becomes unstable.",
        "gradient norm",
    ),
    View(
        "grad_norm_matrix/",
        "Gradient norm of each matrix",
        "The same for each weight matrix of the blocks.",
        "gradient norm",
    ),
    View(
        "update_ratio/",
        "Relative size of the update of each layer",
        "Norm of the update divided by the norm of the weights. Around 1e-3 is usual; 1e-1 is destructive.",
        "update / weights",
    ),
    View("weight_norm/", "Weight norm of each layer", "All matrices of a block together.", "weight norm"),
    View(
        "activation_rms/",
        "Residual stream after each layer",
        "Root mean square. Each block adds to it; unlimited growth is a warning.",
        "root mean square",
    ),
    View(
        "dead_units/", "Dead MLP units", "Share of units whose output is 0 for every token.", "share of units", "share"
    ),
    View(
        "always_on_units/",
        "MLP units that are always on",
        "Share of units whose input to the activation is positive for every token: for them the activation is nearly linear.",
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
        "By the number of earlier tokens. If more context helps, later positions have a lower loss.",
        "position",
    ),
)


def series(rows: list[dict[str, Any]], prefix: str) -> tuple[list[str], list[int], np.ndarray]:
    """Return the n names after the prefix, the m steps with a measurement, and the values (n, m), NaN where missing."""
    measured = [row for row in rows if any(key.startswith(prefix) for key in row)]
    keys = list(dict.fromkeys(key for row in measured for key in row if key.startswith(prefix)))
    values = [[np.nan if row.get(key) is None else row[key] for row in measured] for key in keys]
    return [key.removeprefix(prefix) for key in keys], [row["step"] for row in measured], np.array(values, dtype=float)


def inside_pictures(rows: list[dict[str, Any]]) -> list[tuple[str, str, bytes]]:
    """Return (title, how to read it, PNG) for each group of metrics in `rows`, the rows of metrics.jsonl."""
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
