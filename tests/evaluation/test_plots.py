"""What pictures show: axes that hold what was measured and little else, names, units, and a reason where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from numpy_ref import plots as numpy_plots
from numpy_ref.explain import outlier_channels
from positron.evaluation import plots, tuning_plots
from positron.evaluation import run_plots as plots_of_runs


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots return the figure itself, and draw it."""

    def drawn(figure: Any) -> Any:
        figure.draw_without_rendering()
        return figure

    monkeypatch.setattr(plots, "as_png", drawn)
    monkeypatch.setattr(plots_of_runs, "as_png", drawn)
    monkeypatch.setattr(tuning_plots, "as_png", drawn)


def rows(steps: int, val: Callable[[int], float], every: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "step": i,
            "tokens": i * 1000,
            "train/loss": 3.0 / i + 1,
            "train/lr": 1e-3,
            "train/grad_norm": 1.0,
            **({"val/bpb": val(i), "val/loss": val(i)} if i % every == 0 else {}),
        }
        for i in range(1, steps + 1)
    ]


def words(figure: Any) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize(
    ("val", "floor"),
    [
        (lambda i: 2.25 + math.exp(-i / 20), None),  # own text, nearly flat at its end
        (lambda i: 0.24 + 5 * math.exp(-i / 10), 0.2174),  # the first is far above the rest
        (lambda i: 2.0, None),
    ],
)
def test_a_loss_plot_holds_every_point_and_does_not_begin_at_zero(
    val: Callable[[int], float], floor: float | None
) -> None:
    figure = plots.loss_curve(rows(100, val), floor, "a run")
    low, high = figure.axes[1].get_ylim()
    values = [val(i) for i in range(10, 101, 10)] + ([floor] if floor else [])
    assert low < min(values) <= max(values) < high
    assert low > 0
    for axes in figure.axes:
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] <= 1.04 * 100_000
        assert axes.get_xlabel() == "training tokens"
        assert axes.get_ylabel()
    assert figure.get_size_inches()[0] <= 7  # one panel above the other: readable at 400 pixels


def test_a_plot_without_points_says_why_and_one_point_is_visible() -> None:
    assert "train.val_every=" in words(plots.loss_curve(rows(5, lambda i: 1.0), None, "young"))
    assert "train.log_every=" in words(plots.loss_curve([], None, "nothing"))
    assert "no job was validated" in words(
        plots_of_runs.sweep_picture(["lr"], [(["1"], [], "failed", None)], None, "s")
    )
    nothing = plots_of_runs.comparison_picture({"a": []}, [("a", 1.0, 0.1)], is_same_text=True)
    assert "none of these runs was validated" in words(nothing)
    assert "no document" in words(plots.length_histogram([], 64))
    for line in plots.loss_curve(rows(1, lambda i: 1.0, every=1), None, "one").axes[0].lines:
        assert line.get_marker() == "o"


@pytest.mark.parametrize("is_same_text", [True, False])
def test_curves_of_different_validation_texts_are_said_not_to_compare(is_same_text: bool) -> None:
    curves = {name: [(1.0, 2.0), (2.0, 1.0)] for name in ("a", "b")}
    drawn = plots_of_runs.comparison_picture(curves, [("a", 1.0, 0.1), ("b", 1.0, 0.1)], is_same_text=is_same_text)
    assert ("on different texts" not in drawn.axes[0].get_title()) is is_same_text


def test_a_loss_is_drawn_beside_the_validation_that_measures_the_same() -> None:
    measured = [{**row, "preference/loss": 0.5} if "val/loss" in row else row for row in rows(20, lambda i: 2.0)]
    upper, _ = plots.loss_curve(measured, None, "preference", "preference/loss").axes
    assert [list(line.get_ydata()) for line in upper.lines][1:] == [[0.5, 0.5]]
    assert upper.get_ylabel() == "loss of a pair"


def test_rewards_are_drawn_in_place_of_a_loss_that_shows_no_progress() -> None:
    measured = [
        {**row, "train/reward": row["step"] / 20, **({"val/reward": 0.5} if "val/loss" in row else {})}
        for row in rows(20, lambda i: 2.0)
    ]
    upper, lower = plots.loss_curve(measured, None, "reward", "val/reward").axes
    train, val = (list(line.get_ydata()) for line in upper.lines)
    assert train == [row["step"] / 20 for row in measured]
    assert val == [0.5, 0.5]
    assert upper.get_ylabel() == "mean reward of an answer"
    assert list(lower.lines[0].get_ydata()) == [2.0, 2.0]
    assert upper.lines[0].get_label() == "training prompts"
    for row in measured:
        row["train/hard_prompts"] = min(row["step"] / 10, 0.9)
    with_hard = plots.loss_curve(measured, None, "reward", "val/reward").axes[0]
    assert with_hard.lines[0].get_label() == "training prompts (up to 90% hard ones)"
    assert "no reward was logged" in words(plots.loss_curve(rows(5, lambda i: 1.0), None, "old", "val/reward"))


def test_what_a_tuning_measures_is_drawn_with_its_standard_error() -> None:
    assert tuning_plots.tuning_pictures(rows(20, lambda i: 1.0)) == []
    measures = {"reward": 0.5, "reward_se": 0.1, "pass_1": 0.2, "pass_8": 0.6, "entropy": 1.5, "kl": 0.3}
    learned = [
        {**row, "train/reward": 0.4, **({f"val/{name}": value for name, value in measures.items()} if i % 2 else {})}
        for i, row in enumerate(rows(8, lambda i: 1.0))
    ]
    ((title, _, figure),) = tuning_plots.tuning_pictures(learned)
    reward, passed, nats = figure.axes  # nothing was measured of the answers that were cut off
    assert title == "Reward"
    assert [len(line.get_xdata()) for line in reward.lines] == [8, 4]
    (band,) = reward.collections
    assert band.get_datalim(reward.transData).intervaly.tolist() == pytest.approx([0.4, 0.6])
    assert [text.get_text() for text in passed.get_legend().texts] == ["one answer", "at least one of 8 answers"]
    assert [line.get_ydata()[0] for line in nats.lines] == [1.5, 0.3]
    pairs = [{**row, "preference/accuracy": 0.9, "preference/kl": 0.1} for row in rows(3, lambda i: 1.0)]
    ((title, _, figure),) = tuning_plots.tuning_pictures(pairs)
    assert (title, len(figure.axes)) == ("Preference", 2)
    taught = [{**row, "train/ce": 2.0, "train/kl": 0.5} for row in rows(3, lambda i: 1.0)]
    ((title, _, figure),) = tuning_plots.tuning_pictures(taught)
    assert (title, [axes.lines[0].get_ydata()[0] for axes in figure.axes]) == ("Distillation", [2.0, 0.5])
    upper, _ = plots.loss_curve(taught, None, "distillation").axes
    assert list(upper.lines[0].get_ydata()) == [2.0] * 3  # and not train/loss, which contains the divergence


@pytest.mark.parametrize("lengths", [[60_000], [5, 70], [64] * 19])
def test_few_documents_are_drawn_one_by_one(lengths: list[int]) -> None:
    (axes,) = plots.length_histogram(lengths, 64).axes
    assert [round(bar.get_width()) for bar in axes.patches] == lengths
    assert axes.get_title() == ("1 document" if len(lengths) == 1 else f"{len(lengths)} documents")


def test_time_axes_end_with_the_last_step() -> None:
    steps = list(range(10, 101, 10))
    (heat, _) = plots.heat_map(["0", "1"], steps, np.ones((2, 10)), label="share", share=True).axes
    assert heat.get_xlim() == (0, 100)
    (bins,) = plots.bin_curves(["1"], steps, np.ones((1, 10)), label="place").axes
    assert bins.get_xlim()[1] <= 101
    assert all(axes.get_xlim()[1] <= 101 for axes in plots.learning_rate_curve(rows(100, lambda i: 1.0)).axes)
    (young, _) = plots.heat_map(["0"], [7], np.ones((1, 1)), label="share", share=True).axes
    assert young.get_xlim() == (0, 7)


@pytest.mark.parametrize("values", [["3e-4", "1e-3", "1e-2"], ["64", "128", "192"], ["1", "2"]])
def test_a_sweep_has_its_ticks_at_the_tested_values(values: list[str]) -> None:
    jobs = [([value], [(0.1, 2.0), (0.2, 1.0 + i)], "finished", 1.0 + i) for i, value in enumerate(values)]
    axes = plots_of_runs.sweep_picture(["optimizer.lr"], jobs, None, "sweep").axes[1]
    assert sorted(axes.get_xticks()) == sorted(map(float, values))
    assert not axes.get_xticks(minor=True).size
    assert {float(label.get_text()) for label in axes.get_xticklabels()} == set(map(float, values))


def test_explained_attention_has_axis_names_and_a_colour_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(numpy_plots, "save_figure", lambda figure, path: saved.append(figure))
    numpy_plots.plot_attention(np.tril(np.ones((3, 4, 4))), list("abcd"), 0, tmp_path / "a.png")
    *maps, colors = saved[0].axes
    assert len(maps) == 3
    assert all(
        axes.get_xlabel() == "key (attended token)" and axes.get_ylabel() == "query (attending token)" for axes in maps
    )
    assert colors.get_ylabel() == "attention weight"
    (squares, scale) = plots.attention_maps([np.tril(np.ones((2, 3, 3)))], "step 1").axes
    assert "key (attended token)" in squares.get_xlabel()
    assert "query (attending token)" in squares.get_ylabel()
    assert scale.get_ylabel() == "attention weight"


def test_tokens_and_channels_that_stand_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = np.ones((3, 6))
    norms[1:, 2] = 9.0
    norms[2, 4] = 0.2
    assert numpy_plots.outlier_tokens(norms) == [2, 4]
    assert numpy_plots.outlier_tokens(np.ones((3, 6))) == []
    saved: list[Any] = []
    monkeypatch.setattr(numpy_plots, "save_figure", lambda figure, path: saved.append(figure))
    numpy_plots.plot_stream(norms, ["embedding", "attention 0", "mlp 0"], list("ab$def"), tmp_path / "s.png")
    assert [text.get_text() for text in saved[0].axes[0].get_legend().get_texts()][:1] == [r"token 2, \$"]
    x = np.ones(64)
    x[17] = 30.0
    assert outlier_channels(x) == "   (channel 17 holds 93% of it)"
    assert outlier_channels(np.ones(64)) == ""


def test_the_name_of_a_run_may_contain_dollars() -> None:
    """Matplotlib would read what is between them as a formula, and refuse this one."""
    loss_curve: Any = plots.loss_curve(rows(30, lambda i: 1.0), None, "outputs/$x_$")
    assert loss_curve.axes[0].get_title() == "outputs/$x_$"


@pytest.mark.parametrize("low", [0.00033, 0.9, 70.0])
@pytest.mark.parametrize("ratio", [3.5, 19.0, 21.0, 2_000.0, 9_999.0, 1e7])
def test_a_logarithmic_axis_has_some_labels_but_not_more_than_fit(low: float, ratio: float) -> None:
    axes = Figure().subplots()
    plots.use_log_scale(axes, low, ratio * low)
    inside = [mark for mark in axes.get_yticks() if low <= mark <= ratio * low]
    assert 2 <= len(inside) <= 13
    assert axes.get_ylim() == (low, ratio * low)
    assert not axes.get_yticks(minor=True).size
