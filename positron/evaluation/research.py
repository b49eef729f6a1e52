"""Test changes of a training recipe one after another, and keep the changes that are proven to lower the loss.

A recipe is a list of settings of `positron train`, and a candidate is a named change of the base recipe. A candidate is tested
by pairs of runs with the same seed: one run with the candidate, one without it. If the candidate is adopted, it becomes part of
the base recipe with which the candidates after it are compared.

The runs are in the folders base/SEED and CANDIDATE/SEED. The file job.json of a run records its result and its training time. A
repetition of the same command reads the recorded results and trains only the runs without a recorded result. The decisions
depend only on these results. No run is started once the sum of the recorded training times has reached the budget.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from positron.data.open import open_source
from positron.evaluation.sequential import Look, look
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.run.outcome import canonical
from positron.run.paths import JOB
from positron.system.disk import is_number, make_folder, read_json, write_json
from positron.system.errors import Diverged, Interrupted, Occupied, Unreachable, UserError, is_of_this_machine
from positron.system.exits import describe
from positron.system.formatting import counted

logger = logging.getLogger(__name__)

BASE = "base"  # the folder of the runs of the base recipe
_PLAN = "research.json"
# A function that trains a run with these settings in this folder, or continues it, and returns its facts.
Trainer = Callable[[list[str], Path], Facts]


@dataclass(frozen=True)
class Plan:
    """Hold the base recipe and the candidates that `positron research` tests, and the settings of the tests.

    The candidates are tested in the order of the dict `candidates`. A candidate is tested by pairs of runs with the same seed:
    one run with the candidate, one without it.
    """

    base: list[str]  # settings of `positron train`, such as optimizer.lr=4e-3
    candidates: dict[
        str, list[str]
    ]  # the settings of each candidate, by its name; they are added to the base recipe, or replace settings of it
    pairs: int  # largest number of pairs of runs for each candidate
    min_gain: float  # smallest decrease of the loss for which a candidate is worth having, in bits per byte
    first_seed: int  # seed of the first pair of runs; the second pair has the seed first_seed + 1, and so on


@dataclass(frozen=True)
class Trial:
    """Hold the results of one candidate so far, and the decision that follows from them.

    For each seed there is a pair of runs: one without the candidate and one with it.
    """

    name: str
    overrides: list[str]
    against: str  # what the candidate is added to: "base" (the base recipe), or the name of the candidate adopted last
    seeds: list[int] = field(default_factory=list)
    bpb_without: list[float] = field(default_factory=list)  # for each seed
    bpb_with: list[float] = field(default_factory=list)
    date: str | None = None  # of the latest run
    look: Look | None = None  # result of the statistical tests on the pairs so far; None for fewer than two pairs
    failure: str | None = None  # why a run of the candidate failed
    changes_nothing: bool = False  # the recipe has the candidate's settings already, so no pairs are trained

    @property
    def gains(self) -> list[float]:
        """Return, for each seed, the bits per byte of the run without the candidate minus those of the run with it.

        The candidate is the change of the training settings that is tested.
        """
        return [a - b for a, b in zip(self.bpb_without, self.bpb_with, strict=True)]

    @property
    def verdict(self) -> Literal["adopted", "rejected", "failed", "open"]:
        """Return the decision about the candidate.

        It is "adopted" if the pairs of runs prove that the candidate lowers the loss, "rejected" if they show no sufficient
        gain, "open" if more pairs are needed for the decision, and "failed" if a run of the candidate failed.
        """
        if self.failure is not None:
            return "failed"
        if self.changes_nothing:
            return "rejected"
        return "open" if self.look is None else self.look.verdict

    @property
    def reason(self) -> str:
        """Return the reason for the verdict."""
        if self.changes_nothing:
            return "the recipe has its settings already"
        return self.failure or (self.look.reason if self.look else counted(len(self.seeds), "pair"))


def merged(base: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the settings of `base` and `overrides`; an override replaces a setting of `base` with the same key.

    A setting is a text such as "optimizer.lr=4e-3".
    """
    return list({_key(word): word for word in (*base, *overrides)}.values())


def repeated(words: Sequence[str]) -> str | None:
    """Return the first key that occurs more than once in the settings `words`, or None if there is no such key."""
    keys = [_key(word) for word in words]
    return next((key for i, key in enumerate(keys) if key in keys[:i]), None)


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0].strip()


def begin(folder: Path, plan: Plan) -> str:
    """Record the plan and the date of the first start in research.json in the folder, and return this date.

    If a plan was recorded at an earlier start, `plan` may have further candidates at its end. Raises UserError if `plan`
    differs from the recorded plan in any other way, or if the record is damaged.
    """
    path, new = make_folder(folder) / _PLAN, dataclasses.asdict(plan)
    started = time.strftime("%Y-%m-%d")
    if path.exists():
        known = read_json(path)
        if (
            not isinstance(known, dict)
            or known.keys() != {*new, "started"}
            or not isinstance(known["candidates"], list)
        ):
            raise UserError(
                f"{path} is damaged, or another version of Positron wrote it: restore this file from a copy, or give another "
                "name="
            )
        started = str(known["started"])
        old, listed = known["candidates"], _listed(plan)
        for key in new:
            same = listed[: len(old)] == old if key == "candidates" else known[key] == new[key]
            if not same:
                raise UserError(
                    f"the key {key} in the file of candidates differs from the earlier start in {folder}: "
                    + (
                        f"{known[key]} -> {new[key]}"
                        if key != "candidates"
                        else "new candidates can only be added after the earlier ones, which must not change"
                    )
                    + "; restore the earlier content of this key, or give another name= to begin anew"
                )
    write_json(path, {"started": started, **new, "candidates": _listed(plan)})
    return started


def _listed(plan: Plan) -> list[list[Any]]:
    """Return the candidates of the plan as [[name, settings], ...]; a list keeps their order, which is a part of the plan."""
    return [[name, overrides] for name, overrides in plan.candidates.items()]


def research(folder: Path, plan: Plan, train: Trainer, budget_s: float = math.inf) -> Iterator[list[Trial]]:
    """Test the plan's candidates in order; yield the list of all trials so far after each pair of runs.

    A candidate is a change of the base recipe, and a trial holds its results so far. The two runs of a pair have the same seed:
    one is without the candidate, one with it. A candidate that is adopted becomes part of the base recipe. `train` trains a
    run.

    A candidate whose settings the recipe has already, because an adopted candidate contains them, is rejected without training.
    If the run without the candidate fails, an error is raised. If the run with the candidate fails, the verdict about the
    candidate is "failed", and the next candidate is tested.

    `budget_s`: the seconds of training that all runs in `folder` may take together, including runs of earlier calls. When the
    budget is used up, no further run is started, the trials are yielded once more, and the iteration ends.
    """
    runs = _Runs(folder, train, budget_s)
    base, against = plan.base, BASE
    trials: list[Trial] = []
    try:
        for name, overrides in plan.candidates.items():
            recipe = merged(base, overrides)
            trials.append(Trial(name, overrides, against))
            # such as the better learning rate, after another candidate that contains it
            if _in_one_spelling(recipe) == _in_one_spelling(base):
                trials[-1] = dataclasses.replace(trials[-1], changes_nothing=True)
                yield list(trials)
                continue
            for number in range(plan.pairs):
                trials[-1] = _next_pair(runs, trials[-1], base, recipe, plan, plan.first_seed + number)
                yield list(trials)
                if trials[-1].verdict != "open":
                    break
            if trials[-1].verdict == "adopted":
                base, against = recipe, name
    except _BudgetUsed:
        yield list(trials)


def _in_one_spelling(overrides: Sequence[str]) -> set[tuple[str, str]]:
    """Return the pairs of key and value, in which 1e-2 and 0.01 are the same value."""
    pairs = (override.partition("=") for override in overrides)
    return {(key, canonical(value)) for key, _, value in pairs}


def _next_pair(runs: _Runs, trial: Trial, base: list[str], recipe: list[str], plan: Plan, seed: int) -> Trial:
    without = runs.result(trial.against, base, seed, may_fail=False)
    assert without.bpb is not None  # otherwise an error was raised
    with_it = runs.result(trial.name, recipe, seed, may_fail=True)
    date = max(without.date, with_it.date, trial.date or "")
    if with_it.bpb is None:
        return dataclasses.replace(trial, date=date, failure=f"seed {seed}: {with_it.failure}")
    trial = dataclasses.replace(
        trial,
        seeds=[*trial.seeds, seed],
        bpb_without=[*trial.bpb_without, without.bpb],
        bpb_with=[*trial.bpb_with, with_it.bpb],
        date=date,
    )
    gains = trial.gains
    return dataclasses.replace(trial, look=look(gains, plan.pairs, plan.min_gain)) if len(gains) > 1 else trial


class _BudgetUsed(Exception):
    """Signal that the budget of training time is used up, so that no further run may start."""


@dataclass(frozen=True)
class _Result:
    """Hold the recorded result of a run: its bits per byte or why it failed, and the date of its end."""

    bpb: float | None
    failure: str | None
    date: str


class _Runs:
    """Read the recorded results of the runs in a folder, and train the runs that have no recorded result."""

    def __init__(self, folder: Path, train: Trainer, budget_s: float) -> None:
        self.folder, self._train, self._budget_s = folder, train, budget_s
        self._first: Run | None = None  # the first run of the base recipe; all runs must have its text
        self._spent_s = sum(float(read_job(path)["time_s"]) for path in sorted(folder.glob(f"*/*/{JOB}")))

    def result(self, label: str, recipe: list[str], seed: int, *, may_fail: bool) -> _Result:
        """Return the result of the run of `recipe` with `seed`; if no result is recorded, train the run first.

        `label` is the name of the folder that holds the runs of this recipe. Raises _BudgetUsed if the run must be trained and
        the budget is used up, and UserError if the run was trained with other settings, or on another text than the first run
        of the base recipe. If the training fails, the result holds the reason, or an error is raised. `may_fail` decides this
        (see `_trained`).
        """
        folder, overrides = self.folder / label / str(seed), merged(recipe, [f"seed={seed}"])
        run = Run(folder)
        if not run.job_path.exists():
            if self._spent_s >= self._budget_s:
                raise _BudgetUsed
            if self._first is not None:
                _refuse_changed_text(self._first)
            job = self._trained(folder, overrides, may_fail)
            make_folder(folder)
            write_json(run.job_path, job)
            self._spent_s += job["time_s"]
        job = read_job(run.job_path)
        if job["overrides"] != overrides:
            raise UserError(
                f"{folder} was trained with other settings ({' '.join(job['overrides'])}): give another name= to begin anew"
            )
        first = self._first = self._first or run
        if len({each.facts().data_fingerprint for each in (first, run)} - {None}) > 1:
            raise UserError(
                f"{folder} was trained on another text than {first.folder}: restore the earlier text and delete {folder} to "
                "train it again, or give another name= to begin anew"
            )
        return _Result(job["bpb"], job["failed"], job["date"])

    def _trained(self, folder: Path, overrides: list[str], may_fail: bool) -> dict[str, Any]:
        """Train a run, or continue it if it was begun earlier, and return its record.

        `may_fail` decides what happens if the training fails. If it is true, the record says why the training failed. If it is
        false, an error is raised.

        Some errors are raised in both cases, because they are not the fault of the settings: `Interrupted` (a signal, such as
        Ctrl+C, ended the training), `Unreachable` (the network failed), a fault of the machine, such as a full disk, and every
        error except divergence after the run has metrics or a checkpoint. The user can correct the cause, and then continue.
        """
        logger.info(f"{folder}: {' '.join(overrides)}")
        run, failure = Run(folder), None
        try:
            facts = self._train(overrides, folder)
            if facts.status != "finished":
                failure = f"it ended with the status {facts.status}, before its last step"
            elif facts.val_bpb is None:
                failure = "its validation loss is missing or NaN"
        except (Interrupted, Unreachable):
            raise
        except Exception as error:
            has_begun = run.metrics_path.exists() or run.has_checkpoint
            if not may_fail or _is_of_the_machine(error) or (has_begun and not isinstance(error, Diverged)):
                raise
            facts, failure = run.facts(), describe(error)[1].removeprefix("positron: ")
        if failure is not None:
            if not may_fail:
                raise UserError(
                    f"{folder}, a run of the base recipe, cannot be used: {failure}; change the key base in the file of "
                    "candidates, and give another name="
                )
            logger.warning(f"{folder} failed: {failure}")
        return {
            "overrides": overrides,
            "failed": failure,
            "bpb": facts.val_bpb if failure is None else None,
            "time_s": facts.time_s or 0.0,
            "date": time.strftime("%Y-%m-%d"),
        }


def _is_of_the_machine(error: BaseException | None) -> bool:
    """Tell whether an error or one of its causes is due to the state of the machine, and not to the settings of a run."""
    while error is not None:
        if isinstance(error, Occupied | MemoryError) or is_of_this_machine(error):
            return True
        error = error.__cause__
    return False


def _refuse_changed_text(run: Run) -> None:
    """Raise UserError if the text files on which a run was trained have changed since then.

    Only files are read. A change of another text, such as a dataset of the hub, is noticed when the next run has been trained.
    """
    known = run.facts().data_fingerprint
    if known is None:
        return
    data = run.settings().data
    if data.source == "text" and data.tokens_per_epoch is None and open_source(data).fingerprint != known:
        raise UserError(
            f"the training text of {run.folder} has changed since this run was trained: restore the text, or give another "
            "name= to begin anew"
        )


def read_job(path: Path) -> dict[str, Any]:
    """Return the record of a run. Raises UserError if the record is damaged."""
    job = read_json(path)
    if (
        isinstance(job, dict)
        and isinstance(job.get("overrides"), list)
        and is_number(job.get("time_s"))
        and isinstance(job.get("date"), str)
        and (is_number(job.get("bpb")) if job.get("failed") is None else isinstance(job["failed"], str))
    ):
        return {"bpb": None, "failed": None, **job}
    raise UserError(
        f"{path} is damaged: restore this file from a copy, or delete it and give the same command again (a finished training "
        "is not repeated)"
    )
