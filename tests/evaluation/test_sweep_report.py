"""The report of a sweep: seeds are repetitions of a variant, and the best variant is not the one with the luckiest seed."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import itertools
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import tiny

from positron.cli.sweep_callback import (
    _refuse_search_for_the_worst,
    _refuse_search_over_seeds,
    _refuse_search_over_what_is_measured,
)
from positron.cli.sweeps import end_unfair_search, record_job
from positron.evaluation import run_plots
from positron.evaluation.comparison import Row, _with_variants, as_table
from positron.evaluation.seed_groups import seed_groups
from positron.evaluation.sweep_report import as_text, paired_arguments, sweep_jobs, variant_table, write_sweep_report
from positron.run.facts import Facts, write_record
from positron.run.folder import Run
from positron.system.errors import UserError
from positron.text.conversation import TEMPLATE
from positron.training.callbacks.pruning import finished_curves

LUCKY = {"1e-2": (0.20, 0.40, 0.42), "1e-3": (0.31, 0.30, 0.32)}  # learning rate -> bits per byte of seeds 0, 1, 2


def job(
    sweep: Path, number: int, overrides: list[str], bpb: float | None, status: str = "finished", **facts: Any
) -> None:
    run = Run(sweep / str(number))
    run.folder.mkdir(parents=True)
    run.job_path.write_text(json.dumps({"overrides": overrides, "failed": None if bpb else "it broke"}))
    write_record(run.facts_path, {"status": status, "val/bpb": bpb, "step": 6, "tokens": 600, **facts})
    if bpb:
        rows = [{"step": step, "tokens": 100 * step, "val/bpb": bpb + 1 / step} for step in (3, 6)]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sweep(folder: Path, scores: dict[str, tuple[float | None, ...]], **statuses: str) -> Path:
    number = 0
    for rate, values in scores.items():
        for seed, bpb in enumerate(values):
            status = statuses.get(f"job{number}", "finished")
            job(folder, number, [f"optimizer.lr={rate}", f"seed={seed}", "model=debug"], bpb, status)
            number += 1
    return folder


def finished_curves_of(folder: Path) -> list[dict[int, float]]:
    for number in range(6):
        write_record(Run(folder / str(number)).config_path, dataclasses.asdict(tiny(folder)))
    return finished_curves(folder, folder / "0")


def test_the_best_variant_has_the_best_mean_and_not_the_luckiest_seed(tmp_path: Path) -> None:
    jobs = write_sweep_report(sweep(tmp_path, LUCKY))
    header, first, second = variant_table(jobs)
    assert header == ["optimizer.lr", "seeds", "mean val bits per byte"]
    assert first[:2] == ["1e-3", "3"]
    assert second[:2] == ["1e-2", "3"]
    interval = scipy.stats.t.interval(0.95, 2, 0.31, statistics.stdev(LUCKY["1e-3"]) / 3**0.5)
    assert first[2] == f"0.3100 ± {interval[1] - 0.31:.4f} (95% over seeds)"
    assert paired_arguments(jobs, Path("s")) == ["s:optimizer.lr=1e-3", "s:optimizer.lr=1e-2"]
    assert [job.number for job in jobs] == ["4", "3", "5", "0", "1", "2"]
    page = (tmp_path / "sweep.md").read_text()
    assert page.index("| 1e-3 | 3 |") < page.index("| 1e-2 | 3 |") < page.index("| job |")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["job"] for row in rows] == [job.number for job in jobs]
    assert as_text(jobs).splitlines()[1].startswith("1e-3")


def test_seeds_of_a_later_command_with_other_threads_belong_to_the_same_variants(tmp_path: Path) -> None:
    first = [(*pair, []) for pair in itertools.product(("1e-3", "3e-3"), (0, 1))]
    later = [(*pair, ["device.threads=2"]) for pair in itertools.product(("0.001", "0.003"), (2, 3))]
    for number, (rate, seed, words) in enumerate([*first, *later]):
        job(tmp_path, number, [f"optimizer.lr={rate}", f"seed={seed}", "model=debug", *words], float(rate) + seed / 1e6)
    jobs = write_sweep_report(tmp_path)
    header, *rows = variant_table(jobs)
    assert header == ["optimizer.lr", "seeds", "mean val bits per byte"]
    assert [row[:2] for row in rows] == [["1e-3", "4"], ["3e-3", "4"]]
    assert paired_arguments(jobs, Path("s")) == ["s:optimizer.lr=1e-3", "s:optimizer.lr=3e-3"]
    page = (tmp_path / "sweep.md").read_text()
    assert "- model = debug\n" in page
    assert "device.threads" not in page  # not all jobs have this value


def test_a_key_that_only_a_later_command_gave_has_the_value_of_the_run_in_earlier_jobs(tmp_path: Path) -> None:
    resolved = {"batch_tokens": 512, "micro_batch_size": 16, "max_steps": 40}
    for number, (words, seed) in enumerate(itertools.product(([], ["optimizer.weight_decay=0.2"]), (0, 1))):
        job(tmp_path, number, [f"seed={seed}", *words], 0.3 + number / 100, resolved=resolved)
        config = tiny(tmp_path, seed=seed, optimizer__weight_decay=0.2 if words else 0.1)
        write_record(Run(tmp_path / str(number)).config_path, dataclasses.asdict(config))
    jobs = write_sweep_report(tmp_path)
    assert [row[:2] for row in variant_table(jobs)[1:]] == [["0.1", "2"], ["0.2", "2"]]
    values = ["s:optimizer.weight_decay=0.1", "s:optimizer.weight_decay=0.2"]
    assert paired_arguments(jobs, Path("s")) == values


def test_variants_that_no_setting_can_select_are_not_advised_for_a_comparison(tmp_path: Path) -> None:
    for number, (words, seed) in enumerate(itertools.product(([], ["model=nano"]), (0, 1))):
        job(tmp_path, number, [f"seed={seed}", *words], 0.3 + number / 100)
    assert paired_arguments(write_sweep_report(tmp_path), Path("s")) == []


def test_the_two_best_are_compared_although_they_differ_in_more_than_the_default_allows(tmp_path: Path) -> None:
    for name, second in (("order", ("train.batch_tokens=2048",)), ("two", ("optimizer.lr=3e-3", "model.n_layer=4"))):
        first = tuple(f"{word.partition('=')[0]}=1" for word in second)
        for number, (words, seed) in enumerate(itertools.product((first, second), (0, 1))):
            job(tmp_path / name, number, [*words, f"seed={seed}"], 0.3 + number / 100)
        keys = ",".join(word.partition("=")[0] for word in second)
        *variants, option, named = paired_arguments(write_sweep_report(tmp_path / name), Path("s"))
        assert (variants, option, named) == ([f"s:{','.join(first)}", f"s:{','.join(second)}"], "--differ-in", keys)


def test_a_sweep_that_ranks_answers_is_not_compared_on_the_pretraining_text(tmp_path: Path) -> None:
    for kind, says in (("sft", False), ("reinforce", False), ("distillation", True)):
        for number, (rate, seed) in enumerate(itertools.product(("1e-3", "1e-2"), (0, 1))):
            words = [f"optimizer.lr={rate}", f"seed={seed}"]
            job(tmp_path / kind, number, words, 0.3 + number / 100, kind=kind)
        assert bool(paired_arguments(write_sweep_report(tmp_path / kind), Path("s"))) == says


def test_jobs_with_different_texts_are_not_compared_and_the_table_says_so(tmp_path: Path) -> None:
    for number, (path, seed) in enumerate(itertools.product(("a.txt", "b.txt"), (0, 1))):
        words = [f"data.path={path}", f"seed={seed}"]
        job(tmp_path, number, words, 0.3 + number / 100, data_fingerprint=path)
    jobs = write_sweep_report(tmp_path)
    assert paired_arguments(jobs, Path("s")) == []
    remark = "These jobs were validated on different texts"
    assert remark in as_text(jobs)
    assert remark in (tmp_path / "sweep.md").read_text()
    assert remark not in as_text(jobs[:2])
    for number, share in enumerate(("0.1", "0.2")):
        job(tmp_path / "shares", number, [f"data.val_fraction={share}"], 0.3, data_fingerprint="same")
        config = tiny(tmp_path, data__val_fraction=float(share))
        write_record(Run(tmp_path / "shares" / str(number)).config_path, dataclasses.asdict(config))
    assert remark in as_text(write_sweep_report(tmp_path / "shares"))


@pytest.mark.parametrize(("texts", "lengths"), [(("a", "b"), (900, 900)), (("a", "a"), (200, 900))])
def test_fine_tunings_on_different_data_are_not_to_be_compared_on_a_text(
    tmp_path: Path, texts: tuple[str, str], lengths: tuple[int, int]
) -> None:
    for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        facts = {"kind": "sft", "data_fingerprint": text, "val/bytes": length}
        job(tmp_path, number, [f"data.examples={number}"], 0.3, **facts)
    said = as_text(write_sweep_report(tmp_path))
    assert "These jobs were validated on different data" in said
    assert "compare RUNS" not in said


@pytest.mark.parametrize(("lengths", "floor"), [((300_000, 299_996), 0.21745), ((200_000, 820_000), None)])
def test_the_picture_shows_the_floor_of_the_jobs_that_can_be_compared(
    tmp_path: Path, lengths: tuple[int, int], floor: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[Any] = []
    monkeypatch.setattr("positron.evaluation.sweep_report.sweep_picture", lambda *of: pictures.append(of) or b"")
    for number, (name, length) in enumerate(zip(("char", "spm_2k"), lengths, strict=True)):
        facts = {"data_fingerprint": "same", "val/bytes": length, "floor_bpb": 0.2174 + number / 10_000}
        job(tmp_path, number, [f"tokenizer={name}"], 0.3, **facts)
    write_sweep_report(tmp_path)
    assert pictures[0][2] == (floor and pytest.approx(floor))


@pytest.mark.parametrize(("lengths", "says"), [((200_000, 820_000), True), ((300_000, 299_996), False)])
def test_jobs_validated_on_beginnings_of_different_length_are_not_compared(
    tmp_path: Path, lengths: tuple[int, int], says: bool
) -> None:
    for number, (name, length) in enumerate(zip(("char", "spm_2k"), lengths, strict=True)):
        facts = {"data_fingerprint": "same", "val/bytes": length}
        job(tmp_path, number, [f"tokenizer={name}"], 0.3, **facts)
    assert ("beginnings of different length" in as_text(write_sweep_report(tmp_path))) == says


def test_a_copy_of_a_job_is_no_further_seed(tmp_path: Path) -> None:
    curves = finished_curves_of(sweep(tmp_path, LUCKY))
    jobs = write_sweep_report(tmp_path)
    shutil.copytree(tmp_path / "4", tmp_path / "4 (copy)")
    assert write_sweep_report(tmp_path) == jobs
    assert finished_curves_of(tmp_path) == curves


@pytest.mark.parametrize(
    ("kind", "key", "title"),
    [("reinforce", "val/reward", "val reward"), ("preference", "preference/accuracy", "val accuracy")],
)
def test_learning_from_rewards_and_preferences_is_ranked_by_them_and_not_by_what_is_forgotten(
    tmp_path: Path, kind: str, key: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that learns nothing has the best loss on the pretraining text."""
    scores = []
    for number, (rate, seed) in enumerate(itertools.product((0, 1e-3, 1e-2), (0, 1))):
        words = [f"optimizer.lr={rate}", f"seed={seed}"]
        job(tmp_path, number, words, 0.3 + rate, kind=kind, floor_bpb=0.2)
        run = Run(tmp_path / str(number))
        value = {0: 0.1, 1e-3: 0.7, 1e-2: 0.4}[rate] + seed / 100
        rows = [{"step": 3, "tokens": 300, key: 0.9, "val/bpb": 0.3}, {"step": 6, "tokens": 600, key: value}]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_record(run.config_path, dataclasses.asdict(tiny(tmp_path, seed=seed)))
        scores.append(record_job(run.folder, words, run.facts))
    assert scores == pytest.approx([-0.1, -0.11, -0.7, -0.71, -0.4, -0.41])  # a search minimises
    pictures = []
    monkeypatch.setattr("positron.evaluation.sweep_report.sweep_picture", lambda *of: pictures.append(of) or b"")
    jobs = write_sweep_report(tmp_path)
    assert [job.number for job in jobs] == ["3", "2", "5", "4", "1", "0"]
    header, first, *_ = variant_table(jobs)
    assert (header[-1], first[0]) == (f"mean {title}", "0.001")
    assert first[-1].startswith("0.7050 ± ")
    assert as_text(jobs).count("0.7100") == 1
    assert "bits per byte" not in as_text(jobs)
    row = next(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert (float(row[key]), float(row["val/bpb"])) == pytest.approx((0.71, 0.301))
    ((_, curves, floor, _, measured),) = pictures
    assert (curves[0][1][-1], curves[0][3], floor, measured) == ((0.0006, 0.1), 0.1, None, title[4:])
    assert finished_curves(tmp_path, tmp_path / "0") == [{3: -0.9, 6: -0.7}, {3: -0.9, 6: -0.4}]


@pytest.mark.parametrize("keys", [("reward", "reward"), ("reward.full", "reward.full"), ("optimizer.lr", "seed")])
def test_jobs_with_different_rewards_are_not_compared(tmp_path: Path, keys: tuple[str, str]) -> None:
    for number, key in enumerate(keys):
        job(tmp_path, number, [f"{key}={number}"], 0.3, kind="reinforce")
        row = {"step": 6, "tokens": 600, "val/reward": 0.5 + number}
        Run(tmp_path / str(number)).metrics_path.write_text(json.dumps(row) + "\n")
        config = dataclasses.asdict(tiny(tmp_path)) | {"reward": {"target": number if key.startswith("reward") else 0}}
        write_record(Run(tmp_path / str(number)).config_path, config)
    differ = keys[0].startswith("reward")
    assert ("These jobs have different rewards" in as_text(write_sweep_report(tmp_path))) == differ
    assert bool(finished_curves(tmp_path, tmp_path / "0")) != differ


def test_fine_tuning_is_ranked_by_the_model_that_is_kept(tmp_path: Path) -> None:
    results = []
    for number, (last, best) in enumerate(((0.5, 0.2), (0.4, 0.3))):
        words = [f"optimizer.lr={number}"]
        job(tmp_path, number, words, last, kind="sft", **{"best/bpb": best})
        run = Run(tmp_path / str(number))
        run.chat_path.write_text(json.dumps(TEMPLATE))
        results.append(record_job(run.folder, words, run.facts))
    jobs = sweep_jobs(tmp_path)
    assert results == [0.2, 0.3]
    assert [(job.number, job.result) for job in jobs] == [("0", 0.2), ("1", 0.3)]


def test_a_variant_whose_bad_seeds_are_missing_is_not_the_best(tmp_path: Path) -> None:
    """Seed 1 failed, seed 2 was ended early: the mean of the one seed that is left would be the lowest."""
    jobs = write_sweep_report(sweep(tmp_path, {"1e-2": (0.2, None, 0.6), "1e-3": (0.31, 0.3, 0.32)}, job2="pruned"))
    assert [row[:2] for row in variant_table(jobs)[1:]] == [["1e-3", "3"], ["1e-2", "1 of 3"]]
    assert jobs[-1].status == "failed"
    assert paired_arguments(jobs, Path("s")) == []


def test_a_sweep_over_seeds_alone_is_one_variant(tmp_path: Path) -> None:
    for seed, bpb in enumerate((0.5, 0.4)):
        job(tmp_path, seed, [f"seed={seed}"], bpb)
    jobs = write_sweep_report(tmp_path)
    half = scipy.stats.t.interval(0.95, 1, 0, statistics.stdev((0.5, 0.4)) / 2**0.5)[1]
    assert variant_table(jobs) == [["seeds", "mean val bits per byte"], ["2", f"0.4500 ± {half:.4f} (95% over seeds)"]]
    assert paired_arguments(jobs, Path("s")) == []


def test_a_sweep_with_one_seed_ranks_its_jobs(tmp_path: Path) -> None:
    for number, (rate, bpb, status) in enumerate(
        (("1", 0.5, "finished"), ("2", 0.4, "finished"), ("3", 0.3, "pruned"))
    ):
        job(tmp_path, number, [f"optimizer.lr={rate}", "seed=7"], bpb, status)
    jobs = sweep_jobs(tmp_path)
    assert [job.number for job in jobs] == ["1", "0", "2"]
    assert variant_table(jobs) == []


@pytest.mark.parametrize("content", ["{}", '{"overrides": 3}', "[", '{"overrides": ["a=1"], "failed": 7}'])
@pytest.mark.parametrize("name", ["job.json", "run.json"])
def test_a_damaged_job_is_a_row_of_the_report_and_the_others_keep_theirs(
    tmp_path: Path, name: str, content: str
) -> None:
    for number, bpb in enumerate((0.5, 0.4, 0.3)):
        job(tmp_path, number, [f"optimizer.lr={number}"], bpb)
    (tmp_path / "1" / name).write_text(content)
    jobs = {job.number: job for job in write_sweep_report(tmp_path)}
    assert jobs["1"].result is None
    assert (jobs["0"].result, jobs["2"].result) == (0.5, 0.3)
    assert "1 " in as_text(list(jobs.values()))


def test_damaged_metrics_of_a_job_cost_only_its_curve(tmp_path: Path) -> None:
    for number, bpb in enumerate((0.5, 0.4)):
        job(tmp_path, number, [f"optimizer.lr={number}"], bpb)
    for number in ("1", "0"):
        (tmp_path / number / "metrics.jsonl").write_text("[]\n")
        assert [each.result for each in write_sweep_report(tmp_path)] == [0.4, 0.5]
    assert (tmp_path / "sweep.png").exists()


def test_groups_are_ranked_by_their_mean_whatever_the_order_of_their_members() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.normal(1, 0.1, (4, 3)).round(3)
        items = [(v, s, float(scores[v, s])) for v in range(4) for s in range(3)]
        shuffled = [items[i] for i in rng.permutation(12)]
        groups = seed_groups(shuffled, lambda i: i[0], lambda i: i[1], lambda i: i[2])
        assert [group.members[0][0] for group in groups] == np.argsort(scores.mean(axis=1), kind="stable").tolist()


def test_the_picture_has_a_point_for_each_job_and_lines_through_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plots, "as_png", lambda figure: figure)
    curves = [([rate], [(1.0, 2.0), (2.0, bpb)], "finished", bpb) for rate, values in LUCKY.items() for bpb in values]
    figure: Any = run_plots.sweep_picture(["optimizer.lr"], curves, None, "sweep")
    left, right = figure.axes
    (line,) = right.lines
    assert list(line.get_xdata()) == [1e-3, 1e-2]
    assert list(line.get_ydata()) == pytest.approx([statistics.fmean(LUCKY["1e-3"]), statistics.fmean(LUCKY["1e-2"])])
    assert sum(len(points.get_offsets()) for points in right.collections) == 6
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["lr=1e-3", "lr=1e-2"]
    assert len({curve.get_color() for curve in left.lines}) == 2


def test_a_run_is_pruned_by_other_settings_and_not_by_luckier_seeds(tmp_path: Path) -> None:
    for number, (seed, bpb) in enumerate(((0, 0.3), (1, 0.4), (0, 0.5))):
        job(tmp_path / "sweep", number, [f"seed={seed}"], bpb)
        config = dataclasses.asdict(tiny(tmp_path, seed=seed))
        write_record(Run(tmp_path / "sweep" / str(number)).config_path, config)
    curves = finished_curves(tmp_path / "sweep", tmp_path / "sweep" / "0")
    assert curves == [{3: pytest.approx(0.5 + 1 / 3), 6: pytest.approx(0.5 + 1 / 6)}]


@pytest.mark.parametrize("name", ["job.json", "run.json", "config.json", "metrics.jsonl"])
def test_a_damaged_job_does_not_prevent_the_pruning_of_others(tmp_path: Path, name: str) -> None:
    for number, bpb in enumerate((0.3, 0.4, 0.5)):
        job(tmp_path, number, [f"optimizer.lr={number}"], bpb)
        write_record(Run(tmp_path / str(number)).config_path, dataclasses.asdict(tiny(tmp_path)))
    (tmp_path / "1" / name).write_text("{\n{")
    assert finished_curves(tmp_path, tmp_path / "0") == [{3: 0.5 + 1 / 3, 6: 0.5 + 1 / 6}]


def test_a_search_does_not_choose_the_seed() -> None:
    def config(sweeper: str) -> Any:
        return SimpleNamespace(hydra=SimpleNamespace(sweeper=SimpleNamespace(_target_=sweeper)))

    _refuse_search_over_seeds(config("hydra._internal.core_plugins.basic_sweeper.BasicSweeper"), {"seed"})
    _refuse_search_over_seeds(config("hydra_plugins.optuna.OptunaSweeper"), {"optimizer.lr"})
    with pytest.raises(UserError, match="a search cannot choose the seed"):
        _refuse_search_over_seeds(config("hydra_plugins.optuna.OptunaSweeper"), {"optimizer.lr", "seed"})


@pytest.mark.parametrize(
    "key", ["train.val_tokens", "data", "data.val_fraction", "reward", "reward.target", "reinforce.val_prompts"]
)
def test_a_search_does_not_choose_what_is_measured(key: str) -> None:
    grid, search = (
        SimpleNamespace(hydra=SimpleNamespace(sweeper=SimpleNamespace(_target_=name)))
        for name in ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra_plugins.optuna.OptunaSweeper")
    )
    _refuse_search_over_what_is_measured(grid, {key})
    _refuse_search_over_what_is_measured(search, {"data.packing", "tokenizer", "train.max_steps"})
    with pytest.raises(UserError, match=f"a search cannot choose {key}=, because"):
        _refuse_search_over_what_is_measured(search, {"optimizer.lr", key})


@pytest.mark.parametrize("lengths", [(200_000, 820_000), (300_000, 299_996)])
def test_a_search_ends_as_soon_as_two_scores_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lengths: tuple[int, int]
) -> None:
    for number, (name, length) in enumerate(zip(("char", "spm_2k"), lengths, strict=True)):
        end_unfair_search(tmp_path)
        job(tmp_path, number, [f"tokenizer={name}"], 0.3, data_fingerprint="same", **{"val/bytes": length})
    is_fair = lengths[0] > lengths[1]
    with nullcontext() if is_fair else pytest.raises(SystemExit, match="2"):
        end_unfair_search(tmp_path)
    assert ("validated on beginnings of different length" in capsys.readouterr().err) != is_fair


@pytest.mark.parametrize("direction", [None, "minimize", "Direction.minimize", "maximize", "Direction.maximize"])
def test_a_search_does_not_look_for_the_worst_settings(direction: str | None) -> None:
    sweeper = {} if direction is None else {"direction": direction}
    refused = direction is not None and "max" in direction
    with pytest.raises(UserError, match="search for the worst settings") if refused else nullcontext():
        _refuse_search_for_the_worst(SimpleNamespace(hydra=SimpleNamespace(sweeper=sweeper)))


def test_the_table_of_compare_shows_the_mean_of_runs_that_differ_in_their_seed() -> None:
    rows = [Row(f"r{i}", 10, 10, 0.3, 0.1, 2.0, "char 10", "", seeds, 0.31, 0.02) for i, seeds in enumerate((2, 2))]
    assert as_table(rows).splitlines()[0].endswith("mean over seeds")
    assert as_table(rows).splitlines()[2].endswith("0.3100 ± 0.0200 (2 seeds)")
    alone = [Row("r", 10, 10, 0.3, 0.1, 2.0, "char 10", "")]
    assert "mean over seeds" not in as_table(alone)


def test_runs_with_different_seeds_are_one_variant_and_a_repeated_run_is_another(tmp_path: Path) -> None:
    measured = []
    for number, (seed, rate) in enumerate(((0, 1e-3), (1, 1e-3), (0, 1e-3), (1, 1e-2))):
        run = Run(tmp_path / str(number))
        run.folder.mkdir()
        write_record(
            run.config_path, dataclasses.asdict(tiny(tmp_path, name=f"r{number}", seed=seed, optimizer__lr=rate))
        )
        measured.append((run, Row(f"r{number}", 10, 10, 0.3, 0.1, 2.0, "char 10", "")))
    first, second, again, other = (variant for variant, _ in _with_variants(measured))
    assert first == second
    assert len({first, again, other}) == 3
    resolved = {"batch_tokens": 1, "micro_batch_size": 1, "max_steps": 9}
    for status, are_one in (("finished", True), ("stopped", False)):  # a finished run was ended by early stopping
        for (run, _), step in zip(measured, (5, 8), strict=False):
            write_record(run.facts_path, {"status": status, "step": step, "resolved": resolved})
        first, second = (variant for variant, _ in _with_variants(measured[:2]))
        assert (first == second) is are_one
    for precision, are_one in (("bf16", True), ("fp32", False)):  # what replaced precision=auto in the second run
        for (run, _), each in zip(measured, ("bf16", precision), strict=False):
            write_record(run.facts_path, {"status": "finished", "resolved": {**resolved, "precision": each}})
        first, second = (variant for variant, _ in _with_variants(measured[:2]))
        assert (first == second) is are_one


def test_runs_of_other_teachers_or_starts_are_another_variant_but_not_those_of_other_seeds(tmp_path: Path) -> None:
    def written(
        name: str,
        seed: int,
        rate: float,
        base: str | None = None,
        teachers: Sequence[str] = (),
        fork: str | None = None,
    ) -> Run:
        run = Run(tmp_path / "outputs" / name)
        run.folder.mkdir(parents=True)
        config = tiny(tmp_path, name=name, seed=seed, optimizer__lr=rate)
        paths = [f"outputs/{teacher}" for teacher in teachers]
        write_record(run.config_path, {**dataclasses.asdict(config), "distill": {"teachers": paths}})
        write_record(
            run.facts_path,
            {"kind": "distill", "base": base and f"outputs/{base}", "forked_from": fork and f"outputs/{fork}"},
        )
        return run

    for name, seed, rate in (("a0", 0, 1e-3), ("a1", 1, 1e-3), ("b0", 0, 1e-2)):
        written(name, seed, rate)
    students = [
        written("s0", 0, 1e-3, teachers=["a0"]),
        written("s1", 1, 1e-3, teachers=["a1"]),  # only the seeds differ, also that of the teacher
        written("of-b", 2, 1e-3, teachers=["b0"]),
        written("of-both", 3, 1e-3, teachers=["a0", "b0"]),
        written("of-both-again", 4, 1e-3, teachers=["b0", "a1"]),
        written("further", 5, 1e-3, base="a0"),
        written("itself", 6, 1e-3, base="itself"),  # a damaged file must not make the search endless
        written("lost", 7, 1e-3, base="deleted"),
        written("further0", 0, 1e-3, fork="a0/checkpoints/step-000020.ckpt"),
        written("further1", 1, 1e-3, fork="a1/checkpoints/step-000020.ckpt"),
        written("from-b", 2, 1e-3, fork="b0/checkpoints/step-000020.ckpt"),
        written("later", 3, 1e-3, fork="a0/checkpoints/step-000030.ckpt"),
        written("from-itself", 4, 1e-3, fork="from-itself/checkpoints/step-000020.ckpt"),
    ]
    row = Row("r", 10, 10, 0.3, 0.1, 2.0, "char 10", "")
    variants = [variant for variant, _ in _with_variants([(run, row) for run in students])]
    assert variants[0] == variants[1]
    assert variants[3] == variants[4]
    assert variants[8] == variants[9]
    assert len(set(variants)) == 10


def test_a_sweep_goes_on_after_its_terminal_was_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    for number in range(2):
        monkeypatch.setattr(sys, "stderr", Closed())
        record_job(tmp_path / str(number), ["seed=1"], Facts)
    assert json.loads((tmp_path / "1" / "job.json").read_text())["failed"] is None
