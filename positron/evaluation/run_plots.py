"""Draw the figures of several runs: of a comparison, a sweep, a scaling law, and `positron research`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from positron.evaluation.plots import as_png, dots, fit_range, say_why_empty, token_axis, use_log_scale
from positron.evaluation.statistics import half_interval

if TYPE_CHECKING:
    from positron.evaluation.research import Trial

# values of a job, (million tokens, value of the measure) at each validation, status, final value of the measure or None
Curve = tuple[list[str], list[tuple[float, float]], str, float | None]
MILLION = 1e6
MAX_TICKS = 12  # if there are more tested values, matplotlib chooses the ticks


def comparison_picture(
    curves: dict[str, list[tuple[float, float]]], bars: list[tuple[str, float, float]], *, is_same_text: bool
) -> bytes:
    """Draw the validation curves of several runs and, in a second panel, their scores on one text. Returns a PNG.

    The second panel has the name of each run beside its score, in the colour of its curve.

    `curves` has (million tokens, bits per byte) for each run. `bars` has (run, bits per byte, half the width of the 95 %
    interval), the best run first. `is_same_text`: all curves were measured on the same validation text; if they were not, the
    title of the first panel says so.
    """
    from matplotlib.figure import Figure

    height = max(2.2, 1.2 + 0.35 * len(bars))
    width = 6.2 + 0.07 * max(0, max((len(name) for name, _, _ in bars), default=0) - 12)  # inches; long names
    figure = Figure(figsize=(min(width, 12.0), 3.8 + height), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3.8, height])
    colors = {name: f"C{i % 10}" for i, (name, _, _) in enumerate(bars)}
    drawn = {name: [(x * MILLION, y) for x, y in points] for name, points in curves.items() if points}
    for name, points in drawn.items():
        upper.plot(*zip(*points, strict=True), color=colors[name], marker=dots(points), ms=3)
    warning = "" if is_same_text else "\n(on different texts: only the scores below can be compared)"
    upper.set(ylabel="bits per byte", title=f"validation during training{warning}")
    if drawn:
        fit_range(upper, [y for points in drawn.values() for _, y in points])
    else:
        say_why_empty(upper, "none of these runs was validated during training")
    token_axis(upper, max((x for points in drawn.values() for x, _ in points), default=0))
    places = range(len(bars))
    values, halves = [value for _, value, _ in bars], [half_width for _, _, half_width in bars]
    lower.errorbar(values, places, xerr=halves, fmt="none", ecolor="0.4", capsize=4)
    lower.scatter(values, places, color=[colors[name] for name, _, _ in bars], zorder=3)
    for place, value in zip(places, values, strict=True):
        lower.annotate(
            f"{value:.4f}", (value, place), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9
        )
    lower.set_yticks(places, [name for name, _, _ in bars], parse_math=False)
    for label, (name, _, _) in zip(lower.get_yticklabels(), bars, strict=True):
        label.set_color(colors[name])
    lower.set_ylim(len(bars) - 0.4, -0.6)
    lower.set(xlabel="bits per byte (lower is better)", title="score on the same text, with 95 % interval")
    lower.margins(x=0.12)
    lower.grid(alpha=0.3)
    return as_png(figure)


def sweep_picture(
    keys: list[str], jobs: list[Curve], floor_bpb: float | None, title: str, measure: str = "bits per byte"
) -> bytes:
    """Draw the validation curves of a sweep's jobs and, in a second panel, their scores against the swept values.

    `keys` are the keys of the settings that differ between the jobs, without the seed. `jobs` has a `Curve` for each job.
    `floor_bpb` is the entropy of the text in bits per byte, None if it is unknown. `measure` is the name of what the curves and
    the scores measure.

    The x axis of the second panel is the first key whose values are numbers; it is logarithmic if the values are positive and
    span a factor of 10 or more. Each combination of the values of the other keys has a line, which joins the mean scores of the
    seeds. If no key has numbers, the x axis shows the combinations of the values of all keys, and there are no lines. In both
    panels, jobs that differ only in their seed have the same colour. Returns a PNG.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 8.2), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    x_key = next((i for i in range(len(keys)) if all(_number(job[0][i]) is not None for job in jobs)), None)
    if x_key is not None:
        jobs = sorted(jobs, key=lambda job: _number(job[0][x_key]) or 0.0)
    variants = list(dict.fromkeys(tuple(values) for values, *_ in jobs))
    shade = colormaps["viridis"]
    colors = {values: shade(0.9 * place / max(1, len(variants) - 1)) for place, values in enumerate(variants)}
    _draw_curves(upper, keys, jobs, colors)
    _draw_scores(lower, keys, jobs, colors, x_key)
    scores = [score for *_, score in jobs if score is not None]
    floors = [floor_bpb] if floor_bpb and scores and min(scores) < 2 * floor_bpb else []
    for axes in (upper, lower):
        axes.set_ylabel(measure)
        for floor in floors:  # an entropy far below would make the curves flat
            axes.axhline(floor, color="tab:green", linestyle="--", label=f"floor {floor:.4f}: the entropy of the text")
    if scores:
        fit_range(upper, [y for _, points, *_ in jobs for _, y in points] + floors or scores)
        fit_range(lower, scores + floors)
    else:
        for axes in (upper, lower):
            say_why_empty(axes, "no job was validated: every job failed or ended before its first validation")
    token_axis(upper, max((x * MILLION for _, points, *_ in jobs for x, _ in points), default=0))
    lower.grid(alpha=0.3)
    upper.set_title(f"{title}: validation during training", parse_math=False)
    title_of_scores = "score of each job" + (
        ", lines through the means of the seeds" if len(variants) < len(jobs) else ""
    )
    lower.set_title(
        title_of_scores
        + (" (failed jobs have no value)" if any(status == "failed" for _, _, status, _ in jobs) else "")
    )
    if upper.get_legend_handles_labels()[0] and len(variants) <= 16:
        upper.legend(fontsize=8)
    return as_png(figure)


def _draw_curves(axes: Any, keys: list[str], jobs: list[Curve], colors: dict[tuple[str, ...], Any]) -> None:
    """Draw the validation curves of the jobs, with a cross where a job was pruned.

    `colors` maps the values that a job has for `keys` to the colour of its curve.
    """
    labelled: set[tuple[str, ...]] = set()
    for values, points, status, _ in jobs:
        if points:
            color = colors[tuple(values)]
            label = "" if tuple(values) in labelled else ", ".join(_settings(keys, values))
            labelled.add(tuple(values))
            tokens, scores = [x * MILLION for x, _ in points], [y for _, y in points]
            axes.plot(tokens, scores, color=color, marker=dots(points), ms=3, label=label, alpha=0.9)
            if status == "pruned":
                axes.plot(tokens[-1], scores[-1], color=color, marker="x", ms=9)


def _draw_scores(
    axes: Any, keys: list[str], jobs: list[Curve], colors: dict[tuple[str, ...], Any], x_key: int | None
) -> None:
    """Draw a point for each job of a sweep: its score against its value of the setting `keys[x_key]`.

    `keys` are the keys of the settings that differ between the jobs. If `x_key` is None, the x axis shows each combination of
    their values. Otherwise, a line joins the mean scores of the jobs whose other settings are equal. `colors` maps each
    combination of values to a colour. Jobs without a score are left out: those that failed or were never validated.
    """
    places = {values: float(place) for place, values in enumerate(colors)}
    lines: dict[tuple[str, ...], list[tuple[float, float, Any]]] = {}
    for values, _, _, score in jobs:
        if score is not None:
            x = _number(values[x_key]) if x_key is not None else None
            others = tuple(text for k, text in enumerate(_settings(keys, values)) if k != x_key)
            place = places[tuple(values)] if x is None else x
            line = lines.setdefault(() if x is None else others, [])
            line.append((place, score, colors[tuple(values)]))
    for others, line in lines.items():
        xs, ys, shades = zip(*line, strict=True)
        by_x: dict[float, list[float]] = {}
        for x, y, _ in line:
            by_x.setdefault(x, []).append(y)
        means = [statistics.fmean(scores) for scores in by_x.values()]
        if x_key is not None:
            axes.plot(list(by_x), means, color="0.6", linewidth=1, zorder=1)
        axes.scatter(xs, ys, color=shades, zorder=2)
        if others and len(lines) > 1:
            at_the_frame = axes.get_yaxis_transform()  # x as a share of the width, y as a score
            axes.annotate(
                ", ".join(others),
                (1, means[-1]),
                xycoords=at_the_frame,
                textcoords="offset points",
                xytext=(5, 0),
                va="center",
                fontsize=8,
            )
    if x_key is None:
        names = [", ".join(values) or f"{place:.0f}" for values, place in places.items()]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    else:
        _mark_tested(axes, sorted({x for line in lines.values() for x, _, _ in line}))
        axes.set_xlabel(keys[x_key])


def _mark_tested(axes: Any, tested: list[float]) -> None:
    """Put a tick on the x axis at each of the values `tested` (in ascending order) that a sweep gave to a setting.

    If there are more than 12 values (MAX_TICKS), matplotlib chooses the ticks instead. The axis becomes logarithmic if the
    values are positive and span a factor of 10 or more.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    if tested and tested[0] > 0 and tested[-1] >= 10 * tested[0]:
        axes.set_xscale("log")
    if len(tested) <= MAX_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(tested))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(tested, [f"{x:g}" for x in tested], rotation=40, ha="right")


def _settings(keys: list[str], values: list[str]) -> list[str]:
    """Return KEY=VALUE for each key and its value, without the group of the key: `lr=0.001` for `optimizer.lr`."""
    return [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in zip(keys, values, strict=True)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def scaling_picture(law: Any, n: Any, d: Any, bpb: Any, aim: tuple[float, float]) -> bytes:
    """Draw a scaling law, an instance of `scaling_law.Law`, and its runs in two panels. Returns a PNG.

    The first panel shows the loss minus E, the constant of the law, on logarithmic axes, on which a power law is a straight
    line. The second panel shows the loss. Both are in bits per byte.

    `n`, `d` and `bpb` (R,) are the parameters, training tokens and bits per byte of the runs. `aim` is a pair (parameters,
    tokens) for which the loss is predicted. The curve of the law covers the runs and `aim`. A band around the curve is the 95 %
    interval of a single run; there is none if the interval is unknown.

    If the law depends only on the parameters N or only on the tokens D, this quantity is the x axis. If it depends on both, the
    x axis is the number of training operations, 6 N D. The curve then shows models with as many tokens per parameter as `aim`.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    kinds = {"N": "parameters", "D": "training tokens", None: "training operations, 6 N D"}
    sizes: dict[str | None, Callable[[Any, Any], Any]]
    sizes = {"N": lambda n, d: n, "D": lambda n, d: d, None: lambda n, d: 6 * n * d}
    size = sizes[law.reduced]
    x, goal = size(np.asarray(n, float), np.asarray(d, float)), size(*aim)
    grid = np.geomspace(x.min() / 1.2, max(x.max(), goal) * 1.2, 100)
    ratio = aim[1] / aim[0]
    pairs: dict[str | None, Callable[[Any], tuple[Any, Any]]] = {
        "N": lambda v: (v, law.partner(v)),
        "D": lambda v: (law.partner(v), v),
        None: lambda v: ((v / 6 / ratio) ** 0.5, (v / 6 * ratio) ** 0.5),
    }
    along = pairs[law.reduced]
    curve = [law.bpb(*along(value)).item() for value in grid]
    bounds = [law.interval(*along(value)) for value in grid]
    e = law.floor or (law.coefficient("E") if "E" in law.terms else 0.0)
    predicted, interval = law.bpb(*aim).item(), law.interval(*aim)
    bar = None if interval is None else [[predicted - interval[0]], [interval[1] - predicted]]
    name = f"E = {e:.4f}, " + ("the entropy of the text" if law.floor else "fitted")
    label = "law" if law.reduced else f"law, {ratio:.3g} tokens per parameter"
    figure = Figure(figsize=(6.8, 8.4), layout="constrained")
    for axes, base in zip(figure.subplots(2, 1), (e, 0.0), strict=True):
        axes.plot(grid, np.array(curve) - base, color="tab:blue", label=label)
        if None not in bounds:
            low, high = np.array(bounds).T - base
            axes.fill_between(
                grid, np.maximum(low, 1e-9), high, color="tab:blue", alpha=0.15, label="95 % interval of one run"
            )
        axes.plot(x, np.asarray(bpb) - base, "o", color="tab:orange", label="runs")
        axes.plot(x, law.bpb(n, d) - base, "x", color="tab:blue", label="law at the runs")
        axes.errorbar(
            goal, predicted - base, bar, fmt="D", color="tab:green", capsize=4, label=f"next size: {predicted:.4f}"
        )
        axes.set(xscale="log", xlabel=kinds[law.reduced])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    left, right = figure.axes
    left.set(ylabel="bits per byte above E", title=name)
    above = [value - e for value in (*curve, *bpb) if value > e]  # a fitted E may lie above a run
    lowest = min(above) if interval is None else min(*above, max(interval[0] - e, min(above) / 10))
    use_log_scale(left, 0.8 * lowest, 1.25 * max(above))
    right.axhline(e, color="tab:green", linestyle="--", label=f"E = {e:.4f}")
    right.set(ylabel="bits per byte", title="loss")
    fit_range(right, [*map(float, bpb), *map(float, curve), e])
    right.legend()
    return as_png(figure)


def research_picture(trials: Sequence[Trial], min_gain: float, title: str) -> bytes:
    """Draw the gain of each pair of each candidate, with the 95 % interval of the mean, and the losses of the adopted recipes.

    A pair is two runs with the same seed: one with and one without the candidate. The gain is in bits per byte. The second
    panel shows the bits per byte of the base recipe, and of the recipe after each adoption, which contains all candidates
    adopted so far. Each value is the mean over the seeds with which the adopted candidate was tested; the value of the base
    recipe is the mean over the seeds of the candidate adopted first. `min_gain`, drawn as a line, is the smallest gain worth
    having. Returns a PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colors = {"adopted": "tab:green", "rejected": "tab:red", "failed": "0.5", "open": "tab:blue"}
    height = max(2.2, 1.4 + 0.45 * len(trials))
    figure = Figure(figsize=(7.6, height + 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[height, 3.2])
    for place, trial in enumerate(trials):
        color = colors[trial.verdict]
        upper.scatter(trial.gains, [place + 0.18] * len(trial.gains), s=12, color=color, alpha=0.5)
        if trial.gains:
            half_width = half_interval(trial.gains)
            mean = statistics.fmean(trial.gains)
            upper.errorbar(mean, place - 0.1, xerr=half_width, fmt="D", ms=5, color=color, capsize=4)
    upper.axvline(0, color="0.3", linewidth=1)
    upper.axvline(min_gain, color="0.3", linewidth=1, linestyle=":")
    labels = [f"{trial.name} ({len(trial.gains)})" for trial in trials]
    upper.set_yticks(range(len(trials)), labels, parse_math=False)  # a name may contain $
    upper.set_ylim(len(trials) - 0.4, -0.6)
    upper.set_xlabel("gain in bits per byte (dots: pairs; diamond: mean with 95 % interval)")
    upper.set_title(f"{title}: candidates (pairs)", parse_math=False)
    marks = [Line2D([], [], marker="D", linestyle="", color=colors[name], label=name) for name in colors]
    marks.append(Line2D([], [], color="0.3", linestyle=":", label="smallest gain worth having"))
    figure.legend(handles=marks, fontsize=8, loc="outside upper center", ncols=len(marks))
    upper.grid(alpha=0.3)
    adopted = [trial for trial in trials if trial.verdict == "adopted"]
    if adopted:
        names = [adopted[0].against, *(trial.name for trial in adopted)]
        scores = [statistics.fmean(adopted[0].bpb_without), *(statistics.fmean(trial.bpb_with) for trial in adopted)]
        lower.plot(range(len(names)), scores, "o-", color="tab:green")
        lower.set_xticks(range(len(names)), names, parse_math=False, rotation=20, ha="right", rotation_mode="anchor")
        fit_range(lower, scores)
    else:
        say_why_empty(lower, "no candidate was adopted")
    lower.set(ylabel="bits per byte", title="recipe with the adopted candidates")
    lower.grid(alpha=0.3)
    return as_png(figure)
