"""End a run of a sweep early if most other runs were better at the same step (`sweep.prune=median`)."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any, assert_never

import lightning as L

from positron.config import SweepConfig
from positron.run.find import numbered_folders
from positron.run.folder import Run
from positron.run.measure import measure_of
from positron.run.metrics import read_metrics
from positron.run.outcome import read_outcome
from positron.run.validated import are_comparable, validation_text
from positron.system.errors import UserError
from positron.training.module import TrainingModule


def finished_curves(sweep: Path, own_folder: Path) -> list[dict[int, float]]:
    """Return a dict from step to validation score for each finished run in the folder `sweep`, except `own_folder`.

    The score is that of the measure of the run `own_folder` (see run/measure.py), such as the bits per byte.

    Only runs with the seed of the run `own_folder` are included. Differences between the curves then come from the settings of
    the runs, and not from their seeds. Runs that were validated on another text, or on a beginning of another length, are left
    out, too, and so are runs with another reward. A run with a damaged file is also left out: it must not end a run that is
    sound.
    """
    curves = []
    own, facts = Run(own_folder).config(), Run(own_folder).facts()
    measure = measure_of(facts.kind)
    validated = validation_text(facts, own, measure)
    for run in map(Run, numbered_folders(sweep)):
        if not run.job_path.exists():
            continue
        with contextlib.suppress(UserError):
            facts = run.facts()
            if run.folder == own_folder or read_outcome(run.job_path).failed or facts.status != "finished":
                continue
            config = run.config()
            if any(config.get(key) != own.get(key) for key in ("seed", "reward")):
                continue
            if not are_comparable(validation_text(facts, config, measure), validated):
                continue
            curves.append(measure.curve(read_metrics(run.metrics_path)))
    return curves


def is_hopeless(own_curve: dict[int, float], others: list[dict[int, float]], startup_jobs: int) -> bool:
    """Tell whether a run is worse than the median of the finished runs, by the rule of Optuna's MedianPruner.

    `own_curve` and `others`: dicts from step to validation score, of this run and of the finished runs. A lower score is
    better (see `Measure.score`). The lowest value of this run is compared with the median of the values that the finished runs
    had at this run's newest step (Akiba et al. 2019, arXiv:1907.10902). Returns False if fewer than `startup_jobs` runs have
    finished, or if none of the finished runs was validated at this step.
    """
    step = max(own_curve)
    values = [curve[step] for curve in others if step in curve]
    if not others or len(others) < startup_jobs or not values:
        return False
    return min(own_curve.values()) > statistics.median(values)


class Pruning(L.Callback):
    """End this run of a sweep as soon as it is worse than the median of the finished runs (see `is_hopeless`).

    The runs are compared after each validation at a step that is a multiple of `every`. Validations at other steps are ignored.
    From `last_step` on, the runs are not compared, because this run ends there anyway.

    This callback must run after Validation and before the callbacks that write metrics and checkpoints.
    """

    def __init__(self, run: Run, startup_jobs: int, every: int, last_step: int, rows: list[dict[str, Any]]) -> None:
        """Begin with the validations in `rows`, the rows of metrics.jsonl so far.

        `startup_jobs`: the number of runs that must have finished, with the seed of this run, before this run can be ended.
        `every`: only validations at multiples of this number of steps are compared. `last_step`: the last step of this run,
        which does not need to be ended at this step.
        """
        self.sweep, self.own, self.startup_jobs = run.folder.parent, run.folder, startup_jobs
        self.every, self.last_step = every, last_step
        self.measure = measure_of(run.facts().kind)
        self.curve = self.measure.curve(rows, every)
        self.pruned = False

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """End this run if its lowest validation score exceeds the sweep's median at this step.

        The median is that of the finished runs of the sweep that have the same seed (see `finished_curves` and `is_hopeless`).
        The runs are compared only after a validation, at a multiple of `self.every` steps and before `self.last_step`.
        """
        step = trainer.global_step
        if self.measure.key not in module.metrics or step % self.every:
            return
        self.curve[step] = self.measure.score(module.metrics[self.measure.key])
        self.pruned = self.is_hopeless_at(step)
        if self.pruned:
            trainer.should_stop = True

    def is_hopeless_at(self, step: int) -> bool:
        """Tell whether this run, whose newest step is `step`, was validated there and should end there (see `is_hopeless`)."""
        if step not in self.curve or step >= self.last_step:
            return False
        return is_hopeless(self.curve, finished_curves(self.sweep, self.own), self.startup_jobs)


def open_pruning(
    config: SweepConfig, run: Run, every: int, last_step: int, rows: list[dict[str, Any]]
) -> Pruning | None:
    """Return the callback that ends this run of a sweep early by the rule `config.prune`, or None if no rule is set.

    `run`: this run. Only validations at multiples of `every` steps count. At `last_step` the run is complete, so it is not
    ended early. `rows`: the rows of metrics.jsonl so far.
    """
    match config.prune:
        case None:
            return None
        case "median":
            return Pruning(run, config.startup_jobs, every, last_step, rows)
        case _:
            assert_never(config.prune)
