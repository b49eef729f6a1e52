"""Draw the figures of one run. matplotlib is imported by the functions that draw, and never opens a window."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from positron.system.formatting import counted


def loss_curve(rows: list[dict[str, Any]], floor_bpb: float | None, title: str, measure: str = "val/loss") -> bytes:
    """Draw the progress of a run and, in a second panel, its validation bits per byte, against training tokens. Returns a PNG.

    `rows` are the rows of metrics.jsonl. `floor_bpb` is the entropy of the text in bits per byte, or None if it is unknown.
    `measure` is the validation metric that shows the progress: "val/loss", "preference/loss" or "val/reward".

    A validation loss is drawn together with the training loss. In distillation, it is drawn together with the cross-entropy,
    which is one of the two terms of the training loss. The validation reward is drawn together with the reward of the training
    prompts, because the training loss of reinforcement learning shows no progress. There are two panels because losses, rewards
    and bits per byte cannot share an axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 7.2), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    upper.set_title(title, parse_math=False)  # the name of a run may contain $
    if measure == "val/reward":
        _draw_rewards(upper, rows)
    else:
        _draw_losses(upper, rows, measure)
    _draw_bits_per_byte(lower, rows, floor_bpb)
    lower.set_title("validation" if measure == "val/loss" else "validation on the pretraining text")
    for axes in (upper, lower):
        token_axis(axes, max((row["tokens"] for row in rows), default=0))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return as_png(figure)


def _draw_bits_per_byte(axes: Any, rows: list[dict[str, Any]], floor_bpb: float | None) -> None:
    val = [row for row in rows if row.get("val/bpb") is not None]
    tokens = [row["tokens"] for row in val]
    if val:
        scores = [row["val/bpb"] for row in val]
        axes.plot(tokens, scores, color="tab:orange", marker="o", ms=3, label="validation")
        axes.annotate(
            f"{scores[-1]:.4f}", (tokens[-1], scores[-1]), textcoords="offset points", xytext=(0, 8), ha="right"
        )
        if floor_bpb and min(scores) < 3 * floor_bpb:  # an entropy far below the curve would make the curve flat
            axes.axhline(
                floor_bpb, color="tab:green", linestyle="--", label=f"floor {floor_bpb:.4f}: the entropy of the text"
            )
            scores = [*scores, floor_bpb]
        fit_range(axes, scores)
    else:
        say_why_empty(axes, "no validation was measured yet: train.val_every= sets the interval")
    axes.set_ylabel("bits per byte")


def _draw_losses(axes: Any, rows: list[dict[str, Any]], validation_loss: str) -> None:
    # the training loss of distillation contains the divergence from the teachers; the validation loss is a cross-entropy
    train, val = _points(rows, "train/ce") or _points(rows, "train/loss"), _points(rows, validation_loss)
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", linewidth=1, marker=dots(train), ms=3, label="training")
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", ms=3, label="validation")
    if train or val:
        fit_range(axes, [loss for _, loss in (*train, *val)])
    else:
        say_why_empty(axes, "no loss was logged: train.log_every= sets the interval")
    axes.set_ylabel("loss, nats per token" if validation_loss == "val/loss" else "loss of a pair")


def _draw_rewards(axes: Any, rows: list[dict[str, Any]]) -> None:
    train, val = _points(rows, "train/reward"), _points(rows, "val/reward")
    if train:
        label = "training prompts"
        if hard := max((share for _, share in _points(rows, "train/hard_prompts")), default=0):
            label += f" (up to {hard:.0%} hard ones)"  # otherwise the curve looks as if training made answers worse
        axes.plot(*zip(*train, strict=True), color="tab:blue", linewidth=0.8, alpha=0.6, label=label)
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", ms=3, label="validation prompts")
    if not (train or val):
        say_why_empty(axes, "no reward was logged: train.log_every= sets the interval")
    axes.set_ylabel("mean reward of an answer")


def _points(rows: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Return a pair (training tokens, value) for each of the rows in which `metric` was measured."""
    return [(row["tokens"], row[metric]) for row in rows if row.get(metric) is not None]


def dots(points: list[Any]) -> str:
    """Return the marker of a curve: "o" for at most 20 points, which are hard to see as a line, otherwise "" (no marker)."""
    return "o" if len(points) <= 20 else ""


def token_axis(axes: Any, last: float) -> None:
    """Label the x axis "training tokens", and let it run from 0 to `last`, with numbers such as 20k and 5M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("training tokens")
    axes.grid(alpha=0.3)
    if last > 0:
        axes.set_xlim(0, 1.03 * last)  # room for the last points, so that a legend does not lie on them
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def fit_range(axes: Any, values: list[float]) -> None:
    """Fit the y axis to the values without starting at zero; it is logarithmic if they span more than a factor of three."""
    low, high = min(values), max(values)
    if low > 0 and high > 3 * low:
        use_log_scale(axes, low / 1.1, high * 1.15)
        return
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def use_log_scale(axes: Any, low: float, high: float) -> None:
    """Make the y axis logarithmic, from `low` to `high`, with at most about a dozen labels."""
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low, high)
    exponents = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    marks: tuple[float, ...]
    match high / low:
        case ratio if ratio < 20:
            marks = (1, 1.5, 2, 3, 4, 6, 8)
        case ratio if ratio < 1e4:
            marks = (1, 2, 5)
        case _:
            marks = (1,)
    axes.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in exponents for m in marks]))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def say_why_empty(axes: Any, reason: str) -> None:
    """Write the reason into a panel that has no data."""
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color="0.4", wrap=True)
    axes.set_yticks([])
    if not axes.has_data():
        axes.set_xticks([])


def learning_rate_curve(rows: list[dict[str, Any]]) -> bytes:
    """Draw the learning rate and, in a second panel, the gradient norm against optimizer steps. Returns a PNG.

    `rows` are the rows of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    for axes, key, name, color in (
        (upper, "train/lr", "learning rate", "tab:purple"),
        (lower, "train/grad_norm", "gradient norm", "tab:gray"),
    ):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, marker=dots(points), ms=3)
        else:
            say_why_empty(axes, f"no {name} was logged")
        axes.set(xlabel="optimizer step", ylabel=name)
        axes.grid(alpha=0.3)
        if rows:
            axes.set_xlim(0, 1.01 * rows[-1]["step"])
    return as_png(figure)


def attention_maps(layers: list[Any], title: str) -> bytes:
    """Draw the attention maps of all heads as a grid: a row for each layer, a column for each head. Returns a PNG.

    `layers` has an array (H, T, T) of probabilities for each layer, with H heads and T tokens. A map has a row for each query
    and a column for each key. All maps are drawn as one image, because matplotlib would take seconds to draw one axes per map.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    maps = np.asarray(layers)  # (L, H, T, T)
    L, H, T, _ = maps.shape
    framed = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)  # a white line between two maps
    mosaic = framed.transpose(0, 2, 1, 3).reshape(L * (T + 1), H * (T + 1))[:-1, :-1]
    figure = Figure(figsize=(max(4.6, 2 + 1.1 * H), 1.6 + 1.1 * L), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mosaic, cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    centres = (T - 1) / 2 + (T + 1) * np.arange(max(L, H))
    axes.set_xticks(centres[:H], [str(head) for head in range(H)])
    axes.set_yticks(centres[:L], [str(layer) for layer in range(L)])
    axes.set(
        xlabel="head; in each square: key (attended token)", ylabel="layer; in each square: query (attending token)"
    )
    figure.colorbar(image, label="attention weight", ticks=[0, 0.1, 0.25, 0.5, 1], fraction=0.05, pad=0.02)
    axes.set_title(title, fontsize="small", loc="left", wrap=True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return as_png(figure)


def heat_map(names: list[str], steps: list[int], values: np.ndarray, *, label: str, share: bool) -> bytes:
    """Draw `values` (n, m) as a heat map and return a PNG: a row for each of n names, a column for each of m increasing steps.

    The steps are optimizer steps. The first name is at the top. The colour scale runs from 0 to 1 if `share`, otherwise it is
    logarithmic. NaN is grey. On the logarithmic scale, values of 0 or less are grey, too. A white line separates two rows if
    the parts of their names before the last dot differ. `label` is the title of the colour bar.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    figure = Figure(figsize=(7.5, min(14.0, 1.3 + 0.24 * len(names))), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    shown = values if share else np.where(values > 0, values, np.nan)
    known = shown[np.isfinite(shown)]
    norm = Normalize(0, 1) if share or not len(known) else LogNorm(known.min(), max(known.max(), known.min() * 1.1))
    # a column reaches from the measurement before it to its own step, so that the axis ends with the last step
    edges = [max(0, 2 * steps[0] - steps[1]) if len(steps) > 1 else 0, *steps]
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
    """Draw losses in nats per token, `values` (n, m): one curve for each of n groups of tokens, at m steps. Returns a PNG.

    `names` has the name of each group, and `label` is the title of the legend.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, line, color in zip(names, values, colors, strict=True):
        axes.plot(steps, line, color=color, marker="o", ms=3, linewidth=1.2, label=name)
    axes.set(xlabel="optimizer step", ylabel="validation loss, nats per token", xlim=(0, 1.01 * steps[-1]))
    axes.grid(alpha=0.3)
    fit_range(axes, [float(value) for value in values[np.isfinite(values)]])
    axes.legend(title=label, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """Render a matplotlib figure as PNG at 110 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


MIN_HISTOGRAM_DOCUMENTS = 20  # the lengths of fewer documents are drawn as one bar for each document


def length_histogram(lengths: Any, context: int) -> bytes:
    """Draw a histogram of document lengths in tokens, with a line at the context length. Returns a PNG.

    `lengths` is an array with the length of each document. If there are fewer than 20 documents (MIN_HISTOGRAM_DOCUMENTS), the
    figure has a bar for each document instead, whose length is that of the document.
    """
    from matplotlib.figure import Figure

    count = len(lengths)
    title = counted(count, "document")
    figure = Figure(figsize=(6.8, 4), layout="constrained")
    axes = figure.subplots()
    if count == 0:
        say_why_empty(axes, "the text has no documents")
        return as_png(figure)
    if count < MIN_HISTOGRAM_DOCUMENTS:
        axes.barh(range(1, count + 1), lengths, height=0.7, color="tab:blue")
        axes.set(
            xlabel="tokens in the document", ylabel="document", title=title, xlim=(0, 1.15 * max(*lengths, context))
        )
        for place, length in enumerate(lengths, 1):
            axes.text(length, place, f" {length:,}", va="center")
        axes.set_yticks(range(1, count + 1))
        axes.set_ylim(max(count, 3) + 0.6, 0.4)
    else:
        axes.hist(lengths, bins=60, color="tab:blue")
        axes.set(xlabel="tokens in a document", ylabel="number of documents", title=title)
    axes.axvline(context, color="tab:red", linestyle="--", label=f"context length {context}")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
