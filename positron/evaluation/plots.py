"""Pictures of a run. matplotlib is imported where something is drawn, and never opens a window."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def loss_curve(rows: list[dict[str, Any]], floor_bpb: float | None, title: str) -> bytes:
    """PNG: bits per byte of the validation text against tokens, with the floor where it is known, and the train loss.

    `rows` are those of metrics.jsonl. Two panels, since nats per token and bits per byte do not share an axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [(row["tokens"] / 1e6, row["train/loss"]) for row in rows if row["train/loss"] is not None]
    left.plot(*zip(*train, strict=True), color="tab:blue", linewidth=1, label="training")
    val = [row for row in rows if row.get("val/bpb") is not None]
    tokens = [row["tokens"] / 1e6 for row in val]
    if val:
        left.plot(tokens, [row["val/loss"] for row in val], color="tab:orange", marker="o", ms=3, label="validation")
        right.plot(tokens, [row["val/bpb"] for row in val], color="tab:orange", marker="o", ms=3, label="validation")
        last = val[-1]["val/bpb"]
        right.annotate(f"{last:.4f}", (tokens[-1], last), textcoords="offset points", xytext=(0, 8), ha="right")
    if floor_bpb:
        right.axhline(floor_bpb, color="tab:green", linestyle="--", label=f"floor {floor_bpb:.4f}: the text's own bits")
    left.set(xlabel="million tokens", ylabel="loss, nats per token", title=title, yscale="log")
    for axis_formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_formatter(ScalarFormatter())  # 2, not 2 x 10^0
    right.set(xlabel="million tokens", ylabel="bits per byte", title="validation", ylim=(0, None))
    if val:
        # the first point, from a model that knows little, would press the rest flat
        right.set_ylim(0, 1.15 * max(row["val/bpb"] for row in (val[1:] or val)))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return as_png(figure)


def learning_rate_curve(rows: list[dict[str, Any]]) -> bytes:
    """PNG: learning rate and gradient norm against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["train/lr"] for row in rows], color="tab:purple")
    left.set(xlabel="optimizer step", ylabel="learning rate")
    right.plot(steps, [row["train/grad_norm"] for row in rows], color="tab:gray", linewidth=1)
    right.set(xlabel="optimizer step", ylabel="gradient norm")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return as_png(figure)


def attention_maps(layers: list[Any], title: str) -> bytes:
    """PNG: a layer in each row, a head in each column, in each square a query in each row and a key in each column.

    `layers`: arrays (H, T, T) of probabilities. One picture of squares, since 144 axes take matplotlib seconds.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    maps = np.asarray(layers)  # (L, H, T, T)
    L, H, T, _ = maps.shape
    framed = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)  # a white line between two maps
    mosaic = framed.transpose(0, 2, 1, 3).reshape(L * (T + 1), H * (T + 1))[:-1, :-1]
    figure = Figure(figsize=(1 + 1.1 * H, 0.8 + 1.1 * L), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    centres = (T - 1) / 2 + (T + 1) * np.arange(max(L, H))
    axes.set_xticks(centres[:H], [str(head) for head in range(H)])
    axes.set_yticks(centres[:L], [str(layer) for layer in range(L)])
    axes.set(xlabel="head", ylabel="layer")
    axes.set_title(title, fontsize="small", loc="left", wrap=True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return as_png(figure)


def heat_map(names: list[str], steps: list[int], values: np.ndarray, *, label: str, share: bool) -> bytes:
    """PNG: `values` (n, m) of n named rows, the first on top, at m increasing steps; NaN stays grey.

    Colours from 0 to 1 for a share, otherwise on a log scale. White lines between groups of names `group.rest`.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    figure = Figure(figsize=(10, min(14.0, 1.3 + 0.24 * len(names))), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    shown = values if share else np.where(values > 0, values, np.nan)
    known = shown[np.isfinite(shown)]
    norm = Normalize(0, 1) if share or not len(known) else LogNorm(known.min(), max(known.max(), known.min() * 1.1))
    half = np.diff(steps) / 2 if len(steps) > 1 else np.array([0.5])
    edges = [steps[0] - half[0], *(steps[:-1] + half if len(steps) > 1 else []), steps[-1] + half[-1]]
    image = axes.pcolormesh(edges, np.arange(len(names) + 1), np.ma.masked_invalid(shown), norm=norm, cmap="viridis")
    every = -(-len(names) // 60)
    axes.set_yticks(np.arange(len(names))[::every] + 0.5, names[::every], fontsize=8)
    groups = [".".join(name.split(".")[: max(1, name.count("."))]) for name in names]
    for place in range(1, len(names)):
        if "." in names[place] and groups[place] != groups[place - 1]:
            axes.axhline(place, color="white", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label=label, fraction=0.05, pad=0.02, ticks=None if share else LogLocator(subs=(1, 2, 5)))
    return as_png(figure)


def bin_curves(names: list[str], steps: list[int], values: np.ndarray, *, label: str) -> bytes:
    """PNG: loss in nats per token, (n, m), of n bins in their order at m steps."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, line, color in zip(names, values, colors, strict=True):
        axes.plot(steps, line, color=color, marker="o", ms=3, linewidth=1.2, label=name)
    axes.set(xlabel="optimizer step", ylabel="validation loss, nats per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(title=label, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def length_histogram(lengths: Any, context: int) -> bytes:
    """PNG: how many documents have how many tokens, and where the context length lies among them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=60, color="tab:blue")
    axes.axvline(context, color="tab:red", linestyle="--", label=f"context length {context}")
    axes.set(xlabel="tokens in a document", ylabel="documents", title=f"{len(lengths):,} documents")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
