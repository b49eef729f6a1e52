"""Pictures of a run. matplotlib is imported where something is drawn, and never opens a window."""

from __future__ import annotations

import io
from typing import Any


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
    return _png(figure)


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
    return _png(figure)


def comparison_picture(curves: dict[str, list[tuple[float, float]]], bars: list[tuple[str, float, float]]) -> bytes:
    """PNG: validation curves of the runs over each other, (million tokens, bits per byte), and where each ended on one
    text, (run, bits per byte, half of the 95 % interval), best first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, max(4.0, 1.5 + 0.4 * len(bars))), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {name: f"C{i % 10}" for i, (name, _, _) in enumerate(bars)}
    for name, points in curves.items():
        if points:
            left.plot(*zip(*points, strict=True), color=colors[name], marker="o", ms=3, label=name)
    left.set(xlabel="million tokens", ylabel="bits per byte", title="validation while training")
    places = range(len(bars))
    values, halves = [value for _, value, _ in bars], [half for _, _, half in bars]
    right.barh(places, values, xerr=halves, color=[colors[name] for name, _, _ in bars], capsize=4)
    for place, value, half in zip(places, values, halves, strict=True):
        right.text(value + half, place, f"  {value:.4f}", va="center")
    right.set_yticks(places, [name for name, _, _ in bars])
    right.invert_yaxis()
    right.set(xlabel="bits per byte", title="on the same text", xlim=(0, 1.25 * max(values)))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if any(curves.values()):
        left.legend()
    return _png(figure)


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
    return _png(figure)


def _png(figure: Any) -> bytes:
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
    return _png(figure)


Curve = tuple[list[str], list[tuple[float, float]], str]  # a job's values, (million tokens, bits per byte), status


def sweep_picture(keys: list[str], jobs: list[Curve], floor_bpb: float | None, title: str) -> bytes:
    """PNG: the validation curves of a sweep's jobs over each other, and their last points against what was swept.

    The first swept key whose values are numbers is the x axis, logarithmic for values that span a decade or more; each
    combination of the other keys' values is a line. Without numbers the jobs stand beside each other.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x_key = next((i for i in range(len(keys)) if all(_number(values[i]) is not None for values, _, _ in jobs)), None)
    order = sorted(range(len(jobs)), key=lambda i: (_number(jobs[i][0][x_key]) or 0.0) if x_key is not None else i)
    colors = {i: colormaps["viridis"](0.9 * place / max(1, len(jobs) - 1)) for place, i in enumerate(order)}
    short = [key.rsplit(".", 1)[-1] for key in keys]
    for i in order:
        values, points, status = jobs[i]
        if points:
            label = ", ".join(f"{name}={value}" for name, value in zip(short, values, strict=True))
            left.plot(*zip(*points, strict=True), color=colors[i], marker="o", ms=3, label=label, alpha=0.9)
            if status == "pruned":
                left.plot(*points[-1], color=colors[i], marker="x", ms=9)
    lines: dict[tuple[str, ...], list[tuple[float, float, Any]]] = {}
    for i in order:
        values, points, status = jobs[i]
        if points and status != "failed":
            others = tuple(f"{name}={v}" for k, (name, v) in enumerate(zip(short, values, strict=True)) if k != x_key)
            x = _number(values[x_key]) if x_key is not None else None
            group = others if x is not None else ()
            lines.setdefault(group, []).append((float(i) if x is None else x, points[-1][1], colors[i]))
    for group, found in lines.items():
        xs, ys, shades = zip(*found, strict=True)
        if x_key is not None:
            right.plot(xs, ys, color="0.6", linewidth=1, zorder=1)
        right.scatter(xs, ys, color=shades, zorder=2)
        if group and len(lines) > 1:
            right.annotate(", ".join(group), (xs[-1], ys[-1]), textcoords="offset points", xytext=(6, 4), fontsize=8)
    if x_key is not None:
        xs = tuple(x for found in lines.values() for x, _, _ in found)
        if xs and min(xs) > 0 and max(xs) >= 10 * min(xs):
            right.set_xscale("log")
        right.set_xlabel(keys[x_key])
    else:
        names = [", ".join(values) or str(i) for i, (values, _, _) in enumerate(jobs)]
        right.set_xticks(range(len(jobs)), names, rotation=30, ha="right")
    lasts = [points[-1][1] for _, points, _ in jobs if points]
    for axes in (left, right):
        if floor_bpb and lasts and min(lasts) < 2 * floor_bpb:  # from afar it would press the curves flat
            axes.axhline(floor_bpb, color="tab:green", linestyle="--", label=f"floor {floor_bpb:.4f}")
        axes.grid(alpha=0.3)
        axes.set_ylabel("bits per byte")
    firsts = [point[1] for _, points, _ in jobs for point in (points[1:] or points)]
    if firsts:  # first validations, of models that know little, would press the rest flat
        left.set_ylim(top=1.05 * max(firsts))
    left.set(xlabel="million tokens", title=f"{title}: validation while training")
    right.set_title(
        "last validation (a failed job has none)" if any(s == "failed" for _, _, s in jobs) else "last validation"
    )
    if left.get_legend_handles_labels()[0] and len(jobs) <= 16:
        left.legend(fontsize=8)
    return _png(figure)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
