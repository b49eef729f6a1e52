"""Draw figures with matplotlib. If it is not installed, a line on stderr reports that no figure is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.checkpoint import whole_file
from numpy_ref.linear import Array


def figure(width: float, height: float) -> Any:
    """Create a matplotlib figure of `width` x `height` inches, or return None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure drawn: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(drawn: Any, path: Path) -> None:
    """Write the figure to `path` as PNG and print the path."""
    with whole_file(path) as file:
        drawn.savefig(file, format="png", dpi=110, bbox_inches="tight")
    print(f"wrote {path}")


def plot_loss(losses: list[float], validations: list[tuple[int, float]], path: Path) -> None:
    """Plot the training loss of every step, its running mean, and the validation losses, and write the figure to `path`.

    `validations` holds the step and the loss of each validation. All losses are in nats per token.
    """
    drawn = figure(8, 5)
    if drawn is None:
        return
    axes = drawn.add_subplot(xlabel="optimizer step", ylabel="loss, nats per token", title="training loss")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.5, alpha=0.4, color="tab:blue", label="each step")
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} steps")
    if validations:
        axes.plot(*zip(*validations, strict=True), "o-", color="tab:orange", label="validation")
    axes.set_xlim(0, 1.01 * len(losses))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(drawn, path)


def plot_attention(weights: Array, tokens: list[str], layer: int, path: Path) -> None:
    """Plot the attention weights (H, T, T) of the layer with the index `layer`, one map per head.

    Row t of a map shows how token t divides its attention among the tokens.
    """
    H = len(weights)
    columns = min(2, H)  # so that a map is wide enough to be read on a small screen
    rows = -(-H // columns)
    drawn = figure(3.4 * columns + 0.8, 3.5 * rows)
    if drawn is None:
        return
    panels = [drawn.add_subplot(rows, columns, h + 1, title=f"layer {layer}, head {h}") for h in range(H)]
    for axes, head in zip(panels, weights, strict=True):
        image = axes.imshow(head, cmap="viridis", vmin=0, vmax=1)
        axes.set(xlabel="key (attended token)", ylabel="query (attending token)")
        if len(tokens) <= 40:
            size = min(9, 160 / max(1, len(tokens)))
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=size, parse_math=False)
    drawn.colorbar(image, ax=panels, label="attention weight", fraction=0.05, pad=0.02)
    save_figure(drawn, path)


def plot_stream(norms: Array, names: list[str], tokens: list[str], path: Path) -> None:
    """Plot how the norm of each token's vector in the residual stream changes from layer to layer, one line per token.

    The n layers are the embedding, each attention and each MLP. `names` holds their names, and row i of `norms` (n, T) the
    norms of the T tokens after layer i. `tokens` holds the texts of the tokens. After some layer, the norm of a token may be
    far above or below the median of all tokens (see `outlier_tokens`). Such a token has its own colour and is named in the
    legend.
    """
    drawn = figure(6.8, 5)
    if drawn is None:
        return
    axes = drawn.add_subplot(xlabel="after layer", ylabel="norm of the token's vector", title="residual stream")
    named = outlier_tokens(norms)
    for t in range(norms.shape[1]):
        if t in named:
            label = f"token {t}, {tokens[t]}".replace("$", r"\$")
            axes.plot(norms[:, t], linewidth=1.6, color=f"C{named.index(t) + 1}", label=label)
        else:
            axes.plot(norms[:, t], linewidth=0.8, alpha=0.35, color="tab:blue")
    axes.plot(np.median(norms, axis=1), linewidth=2.5, color="black", label=f"median of {len(tokens)} tokens")
    axes.set_yscale("log")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(drawn, path)


def outlier_tokens(norms: Array, factor: float = 2.0, limit: int = 4) -> list[int]:
    """Find the tokens whose norm after some layer is far from the median of all tokens' norms after the same layer.

    Far means more than `factor` times the median, or less than 1 / `factor` of it. norms (layers, T) -> the indices of
    at most `limit` tokens, the most extreme first.
    """
    away = np.abs(np.log(norms / np.median(norms, axis=1, keepdims=True))).max(axis=0)  # (T,)
    return [int(t) for t in np.argsort(-away, kind="stable")[:limit] if away[t] > np.log(factor)]
