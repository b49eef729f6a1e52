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


def scaling_picture(law: Any, n: Any, d: Any, bpb: Any, aim: tuple[float, float]) -> bytes:
    """PNG of a `scaling_law.Law`: what the runs (n parameters, d tokens, bpb) have above E against size, where a power
    law is a straight line, and their loss itself; with the law's 95 % interval for one run, out to `aim` (N, D).

    Size is what varies: parameters, or tokens; for a law of both, the operations 6 N D, and the line is that of models with
    as many tokens for each parameter as `aim` has.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter

    kinds = {"N": "parameters", "D": "training tokens", None: "operations, 6 N D"}
    size = {"N": lambda n, d: n, "D": lambda n, d: d, None: lambda n, d: 6 * n * d}[law.reduced]
    x, goal = size(np.asarray(n, float), np.asarray(d, float)), size(*aim)
    grid = np.geomspace(x.min() / 1.2, max(x.max(), goal) * 1.2, 100)
    ratio = aim[1] / aim[0]
    along = {
        "N": lambda v: (v, law.partner(v)),
        "D": lambda v: (law.partner(v), v),
        None: lambda v: ((v / 6 / ratio) ** 0.5, (v / 6 * ratio) ** 0.5),
    }[law.reduced]
    curve = [law.bpb(*along(value)).item() for value in grid]
    bounds = [law.interval(*along(value)) for value in grid]
    e = law.floor or (law.coefficient("E") if "E" in law.terms else 0.0)
    aimed, around = law.bpb(*aim).item(), law.interval(*aim)
    bar = None if around is None else [[aimed - around[0]], [around[1] - aimed]]
    name = f"E = {e:.4f}, " + ("the text's own bits" if law.floor else "fitted")
    label = "law" if law.reduced else f"law, {ratio:.3g} tokens per parameter"
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, base in zip(figure.subplots(1, 2), (e, 0.0), strict=True):
        axes.plot(grid, np.array(curve) - base, color="tab:blue", label=label)
        if None not in bounds:
            low, high = np.array(bounds).T - base
            axes.fill_between(grid, np.maximum(low, 1e-9), high, color="tab:blue", alpha=0.15, label="95 %, one run")
        axes.plot(x, np.asarray(bpb) - base, "o", color="tab:orange", label="runs")
        axes.plot(x, law.bpb(n, d) - base, "x", color="tab:blue", label="the law of each")
        axes.errorbar(goal, aimed - base, bar, fmt="D", color="tab:green", capsize=4, label=f"next: {aimed:.4f}")
        axes.set(xscale="log", xlabel=kinds[law.reduced])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    left, right = figure.axes
    left.set(yscale="log", ylabel="bits per byte above E", title=name)
    above = [value - e for value in (*curve, *bpb) if value > e]  # a fitted E may lie above a run
    lowest = min(above) if around is None else min(*above, max(around[0] - e, min(above) / 10))
    left.set_ylim(0.8 * lowest, 1.25 * max(above))
    for axis_formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_formatter(ScalarFormatter())
    right.axhline(e, color="tab:green", linestyle="--")
    right.set(ylabel="bits per byte", title="loss", ylim=(0, 1.15 * max(*bpb, max(curve))))
    right.legend()
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
