"""Draw the metrics of distillation, preference tuning and reinforcement learning for the report of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from positron.evaluation.plots import as_png, dots


@dataclass(frozen=True)
class Line:
    """Describe the curve of one metric."""

    key: str  # of the metric in metrics.jsonl
    name: str  # in the legend
    error: str | None = None  # key of the metric's standard error, which is drawn as a band
    is_thin: bool = False  # a thin line, for a metric of single training steps, which is noisy


@dataclass(frozen=True)
class Panel:
    """Describe a panel of a figure: the label of its y axis, and its curves. If `is_share`, the y axis runs from 0 to 1."""

    label: str
    lines: tuple[Line, ...]
    is_share: bool = False


@dataclass(frozen=True)
class View:
    """Describe a figure of several panels, one above the other. `reading` explains how to read it."""

    title: str
    reading: str
    panels: tuple[Panel, ...]


PASS = "val/pass_"  # followed by the number of answers to a prompt
VIEWS = (
    View(
        "Distillation",
        "Measured on the training batches. The cross-entropy compares the model with the text. The KL divergence compares it "
        "with the teachers, at the temperature of the training; at 0 the model predicts the same as they do.",
        (
            Panel("nats per token", (Line("train/ce", "cross-entropy", is_thin=True),)),
            Panel("nats per token", (Line("train/kl", "KL divergence from the teachers", is_thin=True),)),
        ),
    ),
    View(
        "Preference",
        "Measured on the validation pairs. If both log-probabilities fall far, the chosen answers become unlikely too. If the "
        "margin and the divergence grow while the accuracy does not, the model only moves away from the reference.",
        (
            Panel("accuracy", (Line("preference/accuracy", "pairs in the right order"),), is_share=True),
            Panel("margin", (Line("preference/margin", "chosen minus rejected"),)),
            Panel(
                "log-probability, nats",
                (Line("preference/chosen_logp", "chosen answer"), Line("preference/rejected_logp", "rejected answer")),
            ),
            Panel("KL, nats per token", (Line("preference/kl", "divergence from the reference"),)),
        ),
    ),
    View(
        "Reward",
        "The band is one standard error to each side. If more prompts succeed in one of several answers than before, the model "
        "learned something new; if only single answers succeed more often, it became more certain of what it knew. An entropy "
        "near 0 means that all answers to a prompt are the same. With reinforce.hard_share, most training prompts are those "
        "that failed before, so that their reward stays low while that of the validation prompts grows.",
        (
            Panel(
                "reward",
                (
                    Line("train/reward", "training prompts", is_thin=True),
                    Line("val/reward", "validation prompts", error="val/reward_se"),
                ),
            ),
            Panel("share with the full reward", (Line(PASS, ""),), is_share=True),
            Panel("cut off", (Line("val/truncated", "answers at the length limit"),), is_share=True),
            Panel(
                "nats per token",
                (Line("val/entropy", "entropy"), Line("val/kl", "KL from the model before the training")),
            ),
        ),
    ),
)


def tuning_pictures(rows: list[dict[str, Any]]) -> list[tuple[str, str, bytes]]:
    """Return (title, how to read it, PNG) of each figure in VIEWS that has values in `rows`, the rows of metrics.jsonl."""
    keys = {key for row in rows for key, value in row.items() if value is not None}
    pictures = []
    for view in VIEWS:
        panels = [(panel, _drawable(panel, keys)) for panel in view.panels]
        panels = [(panel, lines) for panel, lines in panels if lines]
        if panels:
            pictures.append((view.title, view.reading, _picture(rows, panels)))
    return pictures


def _drawable(panel: Panel, keys: set[str]) -> list[Line]:
    """Return those curves of a panel whose metric is in `keys`, the names of the recorded metrics.

    PASS is not a metric, but the common beginning of the names of metrics such as val/pass_1 and val/pass_8, which end with the
    number of answers per prompt. A curve with the key PASS is replaced by one curve for each recorded metric of this kind.
    """
    lines = []
    for line in panel.lines:
        if line.key == PASS:
            counts = sorted(int(key.removeprefix(PASS)) for key in keys if key.startswith(PASS))
            lines += [Line(f"{PASS}{n}", "one answer" if n == 1 else f"at least one of {n} answers") for n in counts]
        elif line.key in keys:
            lines.append(line)
    return lines


def _picture(rows: list[dict[str, Any]], panels: list[tuple[Panel, list[Line]]]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.8, 0.4 + 2.3 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (panel, lines) in zip(all_axes, panels, strict=True):
        for i, line in enumerate(lines):
            measured = [row for row in rows if row.get(line.key) is not None]
            steps, values = [row["step"] for row in measured], [row[line.key] for row in measured]
            style = {"linewidth": 0.8, "alpha": 0.6} if line.is_thin else {"linewidth": 1.5, "marker": dots(values)}
            axes.plot(steps, values, color=f"C{i}", ms=3, label=line.name, **style)
            if line.error is not None:
                errors = [row.get(line.error) or 0.0 for row in measured]
                low = [value - error for value, error in zip(values, errors, strict=True)]
                high = [value + error for value, error in zip(values, errors, strict=True)]
                axes.fill_between(steps, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        if panel.is_share:
            axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel(panel.label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    all_axes[-1].set(xlabel="optimizer step", xlim=(0, 1.01 * max(1, rows[-1]["step"])))
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return as_png(figure)
