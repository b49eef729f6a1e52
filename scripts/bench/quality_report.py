"""Write the table and draw the figure of `quality.py`."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NAMES = ("ours", "nanoGPT", "nanoGPT, large", "nanochat", "HF Trainer")


def passed_at(points: list[tuple[float, float]], goal: float) -> float | None:
    """Return the seconds after which the curve of `points` (seconds, bits per byte) first falls to `goal`; None if never.

    The curve is interpolated between two points.
    """
    if points[0][1] <= goal:
        return points[0][0]
    for (t0, a), (t1, b) in itertools.pairwise(points):
        if b <= goal:
            return t0 + (t1 - t0) * (a - goal) / (a - b)
    return None


def table(seeds: dict[int, dict[str, Any]], minutes: float) -> str:
    """Return a table with each recipe's tokens per second, its last score, and when Positron's recipe reached this score."""
    lines = [
        "| recipe | tokens/s | bits per byte at the end (± standard deviation) | Positron reaches this score after |",
        "|---|---|---|---|",
    ]
    for name in [n for n in NAMES if all(n in result for result in seeds.values())]:
        last = [result[name]["points"][-1][1] for result in seeds.values()]
        rate = mean(result[name]["tokens"] / result[name]["points"][-1][0] for result in seeds.values())
        spread = f" ± {stdev(last):.4f}" if len(last) > 1 else ""
        times = [passed_at(r["ours"]["points"], r[name]["points"][-1][1]) for r in seeds.values() if "ours" in r]
        reached = [t for t in times if t is not None]
        moment = f"{mean(reached):.0f} s" if reached and len(reached) == len(last) else "never"
        lines.append(f"| {name} | {rate:,.0f} | {mean(last):.4f}{spread} | {moment if name != 'ours' else ''} |")
    return f"{minutes:g} minutes of training, {len(seeds)} seed(s)\n\n" + "\n".join(lines)


def picture(seeds: dict[int, dict[str, Any]], path: Path, title: str) -> None:
    """Draw the curve of each recipe: the mean over the seeds, and the range between the lowest and highest seed."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(n for n in NAMES if all(n in result for result in seeds.values())):
        points = np.array([result[name]["points"] for result in seeds.values()])  # (seeds, points, 2)
        minutes, values = points[..., 0].mean(0) / 60, points[..., 1]
        axes.plot(minutes, values.mean(0), marker="o", ms=3, color=f"C{i}", label=f"{name}: {values[:, -1].mean():.3f}")
        axes.fill_between(minutes, values.min(0), values.max(0), color=f"C{i}", alpha=0.25, lw=0)
    highest = max(r[n]["points"][2][1] for r in seeds.values() for n in r)
    lowest = min(r[n]["points"][-1][1] for r in seeds.values() for n in r)
    axes.set(xlabel="minutes of training", ylabel="validation bits per byte", title=title)
    axes.set_ylim(lowest - 0.05 * (highest - lowest), highest)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
