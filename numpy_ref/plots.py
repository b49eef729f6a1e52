"""Pictures, drawn where matplotlib is installed, and left out with a word where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.checkpoint import whole_file
from numpy_ref.linear import Array


def figure(width: float, height: float) -> Any:
    """A matplotlib figure without a window, or None."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(drawn: Any, path: Path) -> None:
    with whole_file(path) as file:
        drawn.savefig(file, format="png", dpi=110, bbox_inches="tight")
    print(f"drawn: {path}")


def plot_loss(losses: list[float], validations: list[tuple[int, float]], path: Path) -> None:
    """Training loss of every step, its running mean, and validation loss."""
    drawn = figure(8, 5)
    if drawn is None:
        return
    axes = drawn.add_subplot(xlabel="step", ylabel="loss, nats per token", title="training loss")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.5, alpha=0.4, color="tab:blue", label="each step")
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} steps")
    if validations:
        axes.plot(*zip(*validations, strict=True), "o-", color="tab:orange", label="validation")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(drawn, path)


def plot_attention(weights: Array, tokens: list[str], layer: int, path: Path) -> None:
    """(H, T, T): a map per head; row t shows what token t looked at."""
    H = len(weights)
    columns = min(4, H)
    rows = -(-H // columns)
    drawn = figure(3.4 * columns, 3.4 * rows)
    if drawn is None:
        return
    for h in range(H):
        axes = drawn.add_subplot(rows, columns, h + 1, title=f"layer {layer}, head {h}")
        axes.imshow(weights[h], cmap="viridis", vmin=0, vmax=1)
        if len(tokens) <= 40:
            size = min(9, 160 / max(1, len(tokens)))
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=size, parse_math=False)
    save_figure(drawn, path)


def plot_stream(norms: Array, names: list[str], tokens: list[str], path: Path) -> None:
    """(layers, T): the residual stream's length at every token, from the embedding to the last block."""
    drawn = figure(9, 5)
    if drawn is None:
        return
    axes = drawn.add_subplot(xlabel="after", ylabel="length of the token's vector", title="residual stream")
    for t in range(norms.shape[1]):
        axes.plot(norms[:, t], linewidth=0.8, alpha=0.35, color="tab:blue")
    axes.plot(np.median(norms, axis=1), linewidth=2.5, color="tab:red", label=f"median of {len(tokens)} tokens")
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(drawn, path)
