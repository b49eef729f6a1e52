"""Report the measurements of `scale.py`: where each axis leaves its line, as tables and a figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from positron.evaluation.plots import as_png

Row = dict[str, Any]
LEAVES = 1.5  # a point leaves the line if it is this factor above or below the line
BLUE, ORANGE, RED = "#1f5fa8", "#c8590a", "#b00020"


def off_the_line(x: list[float], y: list[float]) -> list[float]:
    """Return y / (a + b x), where the line a + b x, with a, b >= 0, is fitted to the three smallest points.

    The fit minimises the sum of the squared relative errors.
    """
    first_x, first_y = np.array(x[:3]), np.array(y[:3])
    lines = [np.array([1 / first_y, first_x / first_y]).T, np.array([0 / first_y, first_x / first_y]).T]
    lines.append(np.array([1 / first_y, 0 * first_x]).T)
    fitted = [np.linalg.lstsq(design, np.ones(len(first_y)), rcond=None)[0] for design in lines]
    errors = [
        np.square(design @ line - 1).sum() if min(line) >= 0 else np.inf
        for design, line in zip(lines, fitted, strict=True)
    ]
    a, b = fitted[int(np.argmin(errors))]
    return [float(value / (a + b * place)) for place, value in zip(x, y, strict=True)]


def verdict_lines(axis: str, rows: list[Row]) -> list[str]:
    """Return lines of text that say where each series of points leaves the line that is fitted to it.

    The ratio of each point to the line is stored in its row, under `time_ratio` and `memory_ratio`.
    """
    lines = [f"{row['label']} {row['series']} skipped: {row['skipped']}" for row in rows if "skipped" in row]
    for series in dict.fromkeys(row["series"] for row in rows):
        series_rows = [row for row in rows if row["series"] == series and "skipped" not in row]
        name = f"{series}: " if series else ""
        if axis == "processes" and len(series_rows) == 2:
            lines.append(name + shared(*series_rows))
        elif axis != "processes" and len(series_rows) > 3:
            cost = [row["flops_per_token"] for row in series_rows]  # 0 on the axis data, so that the line is constant
            checks = {"time": off_the_line(cost, [row["seconds"] / row["tokens"] for row in series_rows])}
            if axis != "data":
                memory = [row["bytes"] for row in series_rows]
                checks["memory"] = off_the_line([row["computed_bytes"] for row in series_rows], memory)
            for quantity, ratios in checks.items():
                for row, ratio in zip(series_rows, ratios, strict=True):
                    row[f"{quantity}_ratio"] = ratio
                lines.append(f"{name}{quantity} {verdict(series_rows, ratios)}")
    return lines


def verdict(rows: list[Row], ratios: list[float]) -> str:
    for row, ratio in zip(rows, ratios, strict=True):
        if not 1 / LEAVES <= ratio <= LEAVES:
            return f"leaves the line at {row['label']}, {ratio:.2f} times it"
    return f"keeps to the line up to {rows[-1]['label']}: {min(ratios):.2f} to {max(ratios):.2f} times it"


def shared(one: Row, two: Row) -> str:
    travel = 1 - two["alone"] / two["seconds"]
    return (
        f"with two processes each takes {two['seconds'] / one['seconds']:.2f} of the time of one, where 0.50 would be "
        f"linear; {max(0.0, travel):.0%} of the time is for sending {4e-6 * one['parameters']:.1f} MB of gradients"
    )


def table(axis: str, rows: list[Row]) -> str:
    """Return the rows of an axis as a Markdown table."""
    if axis == "data":
        head = ["token files", "opened in", "a batch of 32 x 513 in", "memory", "time / line"]
        lines = [
            [
                r["label"],
                f"{1e3 * r['opening']:.2f} ms",
                f"{1e3 * r['seconds']:.2f} ms",
                f"{r['bytes'] / 1e6:.1f} MB",
                ratio(r, "time"),
            ]
            for r in rows
            if "skipped" not in r
        ]
    else:
        head = [
            axis,
            "computed MFLOP/token",
            "µs/token",
            "GFLOP/s",
            "time / line",
            "computed MB",
            "MB",
            "memory / line",
        ]
        lines = [
            [
                f"{r['label']} {r['series']}".strip(),
                f"{r['flops_per_token'] / 1e6:,.1f}",
                f"{1e6 * r['seconds'] / r['tokens']:,.1f}",
                f"{r['flops_per_token'] * r['tokens'] / r['seconds'] / 1e9:,.0f}",
                ratio(r, "time"),
                f"{r['computed_bytes'] / 1e6:,.0f}",
                f"{r['bytes'] / 1e6:,.0f}",
                ratio(r, "memory"),
            ]
            for r in rows
            if "skipped" not in r
        ]
    return markdown(head, lines)


def ratio(row: Row, quantity: str) -> str:
    value = row.get(f"{quantity}_ratio")
    return "" if value is None else f"{value:.2f}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def picture(rows: list[Row], title: str) -> bytes:
    """Draw a panel for each axis: time (left, blue), memory (right, orange) and computed values (dotted). Returns a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    *five, sixth = figure.subplots(2, 3).flat
    for axes, axis in zip(five, ("parameters", "context", "vocabulary", "data", "processes"), strict=True):
        axis_rows = [row for row in rows if row["axis"] == axis and "skipped" not in row]
        if not axis_rows:
            axes.set_axis_off()
        elif axis == "processes":
            draw_processes(axes, axis_rows)
        elif axis == "data":
            draw_data(axes, axis_rows)
        else:
            draw_growth(axes, axis, axis_rows)
    explain(sixth)
    figure.suptitle(title, fontsize=14)
    return as_png(figure)


def draw_growth(axes: Any, axis: str, rows: list[Row]) -> None:
    """Draw time per token and memory against the axis, with logarithmic scales; dotted lines are computed values."""
    from matplotlib.ticker import LogLocator, NullLocator

    right = axes.twinx()
    for series in dict.fromkeys(row["series"] for row in rows):
        series_rows = [row for row in rows if row["series"] == series]
        x = [row["x"] for row in series_rows]
        times = [1e6 * row["seconds"] / row["tokens"] for row in series_rows]
        marker, face = ("s", "white") if series == "checkpointed" else ("o", None)
        for side, color, y in ((axes, BLUE, times), (right, ORANGE, [row["bytes"] / 1e6 for row in series_rows])):
            side.plot(x, y, color=color, marker=marker, mfc=face or color, lw=1.8, ms=6)
        right.plot(x, [row["computed_bytes"] / 1e6 for row in series_rows], color=ORANGE, ls=":", lw=1.4)
        if "time_ratio" in series_rows[0]:
            line = [time / row["time_ratio"] for time, row in zip(times, series_rows, strict=True)]
            axes.plot(x, line, color=BLUE, ls=":", lw=1.4)
            left = [i for i, row in enumerate(series_rows) if not 1 / LEAVES <= row["time_ratio"] <= LEAVES]
            if left:
                axes.plot(x[left[0]], times[left[0]], "o", ms=15, mfc="none", color=RED, mew=1.6)
    halves(axes, right)
    for side, name, color in ((axes, "time, µs per token", BLUE), (right, "memory, MB", ORANGE)):
        side.set_ylabel(name, color=color)
        side.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        side.tick_params(axis="y", which="both", colors=color)
        side.yaxis.set_minor_locator(NullLocator())
    axes.set_xscale("log")
    places = apart(sorted({row["x"] for row in rows}))
    axes.set_xticks(places, [short(place) for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=axis, xlabel={"parameters": "parameters", "context": "tokens", "vocabulary": "ids"}[axis])
    axes.grid(alpha=0.3)


def halves(lower: Any, upper: Any) -> None:
    """Set logarithmic y axes so that the two groups of curves do not cross: each has about half of the panel's height."""
    for axes, below in ((lower, 0.06), (upper, 0.5)):
        axes.set_yscale("log")
        values = np.concatenate([line.get_ydata() for line in axes.lines]).astype(float)
        low, high = np.log(values.min()), np.log(values.max())
        height = max(high - low, 0.2) / 0.44
        axes.set_ylim(np.exp(low - below * height), np.exp(low + (1 - below) * height))


def apart(places: list[float]) -> list[float]:
    """Return those of the ascending `places`, from the last to the first, whose labels do not overlap on a logarithmic axis."""
    spaced_places, distance = [places[-1]], 0.12 * np.log(places[-1] / places[0])
    for place in reversed(places[:-1]):
        if np.log(spaced_places[-1] / place) > distance:
            spaced_places.append(place)
    return spaced_places


def short(number: float) -> str:
    """Format a number with at most two digits and a unit, such as 1.2M; numbers below 10,000 are written in full."""
    if number < 1e4:
        return f"{number:,.0f}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.0f}{letter}" if number >= 10 * size else f"{number / size:.2g}{letter}"
    return f"{number:.0f}"


def draw_data(axes: Any, rows: list[Row]) -> None:
    x = [row["x"] for row in rows]
    axes.plot(
        x, [1e3 * row["seconds"] for row in rows], color=BLUE, marker="o", lw=1.8, label="a batch of 32 x 513 tokens"
    )
    axes.plot(
        x, [1e3 * row["opening"] for row in rows], color=BLUE, marker="^", mfc="white", lw=1.8, label="opening all"
    )
    right = axes.twinx()
    right.plot(x, [row["bytes"] / 1e6 for row in rows], color=ORANGE, marker="o", lw=1.8)
    for side, name, color in ((axes, "ms", BLUE), (right, "memory, MB", ORANGE)):
        side.set_ylabel(name, color=color)
        side.tick_params(axis="y", colors=color)
        side.set_ylim(0, 1.6 * side.get_ylim()[1])
    axes.set(xscale="log", title="data", xlabel="bytes of token files")
    axes.set_xticks(x, [row["label"] for row in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)


def draw_processes(axes: Any, rows: list[Row]) -> None:
    """Draw bars: the time of a step in each process, relative to a single process. The part that DDP adds is lighter."""
    ticks = []
    for i, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
        series_rows = [row for row in rows if row["series"] == series]
        for row in series_rows:
            place, whole = i * 2.6 + row["x"], row["seconds"] / series_rows[0]["seconds"]
            own_time = min(whole, row.get("alone", row["seconds"]) / series_rows[0]["seconds"])
            axes.bar(place, own_time, color=BLUE, width=0.8)
            axes.bar(
                place, whole - own_time, bottom=own_time, color="#8db7e3", width=0.8, hatch="//", edgecolor="white"
            )
            axes.text(place, whole, f"{1e3 * row['seconds']:,.0f} ms", ha="center", va="bottom")
            axes.plot([place - 0.45, place + 0.45], [1 / row["x"]] * 2, color="black", ls=":", lw=1.8)
            ticks.append((place, f"{row['x']:.0f}"))
        ticks.append((i * 2.6 + 1.5, f"\n{series} parameters"))
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.set(
        title="processes, one batch for all (gloo)", ylabel="time of a step in each, relative to one", ylim=(0, 1.2)
    )
    axes.grid(alpha=0.3, axis="y")


def explain(axes: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_axis_off()
    shown = [
        Line2D([], [], color=BLUE, marker="o", label="time, measured"),
        Line2D([], [], color=BLUE, ls=":", label="time, line fitted to the three smallest points"),
        Line2D([], [], color=ORANGE, marker="o", label="memory, measured: the peak of a new process"),
        Line2D([], [], color=ORANGE, ls=":", label="memory, computed, without the memory of torch"),
        Line2D([], [], color="gray", marker="s", mfc="white", label="with device.checkpoint_activations=true"),
        Line2D(
            [],
            [],
            color=RED,
            marker="o",
            ms=13,
            mfc="none",
            ls="",
            label=f"time leaves the line by a factor of {LEAVES}",
        ),
        Line2D([], [], color="black", ls=":", label="processes: the time if the speedup were linear"),
        Patch(facecolor="#8db7e3", hatch="//", edgecolor="white", label="processes: sending gradients"),
    ]
    axes.legend(handles=shown, loc="center", fontsize=11, frameon=False, labelspacing=0.9, handlelength=3)
