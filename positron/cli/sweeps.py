"""Run one job of Hydra. A job is a single run, or one of the runs of a sweep.

Each job of a sweep records its outcome in its folder. If training raises an exception or calls sys.exit, the job is recorded as
failed, and the sweep goes on; Ctrl-C or SIGTERM ends the sweep. A job is identified by its overrides, which are settings of the
command line, and not by its number. So finished jobs stay finished if the user adds or reorders values of the sweep.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.overrides import given_keys
from positron.cli.preflight import with_source
from positron.cli.request import Request, compose_request, is_search, read_request, typed_overrides
from positron.cli.user_callbacks import make_callbacks
from positron.config import Asked, RunConfig
from positron.evaluation.summary import show_result
from positron.evaluation.sweep_report import remark, reported_score, sweep_jobs, write_sweep_report
from positron.run.common_precision import with_common_precision, with_model
from positron.run.differences import begins_alike, decides_a_new_run, differences
from positron.run.facts import Facts
from positron.run.find import numbered_folders
from positron.run.folder import Run
from positron.run.paths import JOB
from positron.settings import Recipe
from positron.system.caller import is_for_another, name_training, other_processes, unchanged_state
from positron.system.children import end_with
from positron.system.console import say
from positron.system.disk import make_folder, read_json, write_json
from positron.system.errors import Interrupted, LeftAtOnce, UserError
from positron.system.exits import describe, despite_closed_output
from positron.system.locks import lock
from positron.system.paths import relative_to_here
from positron.system.ranks import first_rank, refuse_without_script
from positron.system.threads import usable_cores

if TYPE_CHECKING:
    from lightning import Callback

_JOBLIB_WORKER = "Loky"  # the beginning of the names of joblib's worker processes
_COMPOSING_LOCK = threading.Lock()  # Hydra composes in one global state
_CLAIM_FILE = "overrides.json"  # the overrides of the job that a folder belongs to, written before its first step


def run_job(
    cfg: Any,
    configure: Callable[[dict[str, Any]], RunConfig],
    train: Callable[[RunConfig, Path, Sequence[Callback], Asked], Facts],
    follow: Callable[[RunConfig, Run, Callable[[], Sequence[Callback]], Asked], Iterator[Run]] | None = None,
) -> float:
    """Run one Hydra job, in outputs/<name> or, if it is a job of a sweep, in a numbered folder of the sweep.

    `cfg` is the configuration that Hydra composed, `configure` builds a RunConfig from it, and `train` trains the run. `follow`
    is called after a run that is not a job of a sweep. It may train further runs, and yields each of them at its end; the last
    one is the result of the job.

    Returns the score of the run (see `reported_score`), which a hyperparameter search minimises. If there is none, the result
    is nan for a single run, and inf for a job of a sweep, for example because this job failed. Raises UserError for a single
    run that cannot start, and the errors of `train` for a single run that fails.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    overrides = [override.lstrip("+") for override in typed_overrides(hydra)]
    request, is_sweep = read_request(cfg, overrides), hydra.mode == RunMode.MULTIRUN
    asked = dataclasses.replace(request.asked, trains_generations=follow is not None and not is_sweep)

    def job(config: RunConfig, folder: Path) -> Facts:
        return train(config, folder, make_callbacks(request.callbacks), asked)

    if is_sweep:
        return _sweep_job(hydra, overrides, request, configure, job)
    config, folder = request.settle(configure)
    is_first = first_rank(config.device.processes)
    if is_first and "torch" not in sys.modules:  # the import of torch takes seconds
        say(f"loading PyTorch for {folder}")
    facts = job(config, folder)
    if is_first:
        with despite_closed_output():  # the runs that follow must not depend on it
            show_result(folder)
    result = Run(folder)
    if follow is not None:
        for run in follow(config, result, lambda: make_callbacks(request.callbacks), asked):
            with despite_closed_output():
                show_result(run.folder)
            result, facts = run, run.facts()
    score = reported_score(result, facts)
    return math.nan if score is None else score


def run_config(
    recipe: Recipe,
    overrides: Sequence[str],
    configure: Callable[[dict[str, Any]], RunConfig],
    train: Callable[[RunConfig, Path, Sequence[Callback], Asked], Facts],
) -> Run:
    """Run one training for a Python program, with the checks of the command line, and return the trained run.

    `overrides` are settings of the form key=value, as on the command line. `configure` builds a RunConfig from the composed
    settings, and `train` trains the run. A run that Ctrl-C ends is saved and returned. Another signal, such as SIGTERM, ends
    the program after the run is saved. Raises UserError if the run cannot start, and the errors of `train`.
    """
    with _COMPOSING_LOCK:
        request = compose_request(recipe, overrides)
    config, folder = request.settle(configure)
    result = folder.absolute()  # the program may change its current folder afterwards, or in a callback
    training = name_training(result)
    if is_for_another(training):
        return Run(result)
    refuse_without_script(config.device.processes)
    is_alone = config.device.num_nodes == 1  # with several machines, each process runs the whole program
    try:
        with unchanged_state(), other_processes(training) if is_alone else nullcontext():
            train(config, folder, make_callbacks(request.callbacks), request.asked)
    except Interrupted as stop:
        if not stop.is_ctrl_c:
            raise SystemExit(stop.exit_code) from stop
    return Run(result)


def _sweep_job(
    hydra: Any,
    overrides: list[str],
    request: Request,
    configure: Callable[[dict[str, Any]], RunConfig],
    train: Callable[[RunConfig, Path], Facts],
) -> float:
    if multiprocessing.current_process().name.startswith(_JOBLIB_WORKER):
        _end_with_sweep()
    sweep = Path(hydra.sweep.dir).absolute()
    config: RunConfig | None = None
    refusal: BaseException | None = None
    try:
        config = request.configured(configure)
    except UserError as error:  # reported in the row of this job
        refusal = error
    folder = claim_folder(sweep, int(hydra.job.num), overrides, config)

    def job() -> Facts:
        if config is None:
            assert refusal is not None
            raise refusal
        known = with_source(config, folder, request.asked)
        known = with_common_precision(known, Run(folder), with_model(known.model, map(Run, numbered_folders(sweep))))
        share = known.device.share * share_of(hydra.launcher)
        wandb = known.logger.wandb
        if wandb is not None:  # wandb shows the jobs of the sweep as one group
            name = wandb.name or f"{sweep.name}/{folder.name}"
            wandb = dataclasses.replace(wandb, group=wandb.group or sweep.name, name=name)
        logger = dataclasses.replace(known.logger, wandb=wandb)
        device = dataclasses.replace(known.device, share=share)
        return train(dataclasses.replace(known, device=device, logger=logger), folder)

    score = record_job(folder, overrides, job)
    if is_search(hydra):
        end_unfair_search(sweep)
    return score


def end_unfair_search(sweep: Path) -> None:
    """End a search with exit code 2 if the scores of its jobs cannot be compared, because it would minimise them nevertheless.

    `sweep` is the folder of the jobs. Their validation text is not known earlier: its length depends on the tokenizer, and
    budget= and model=auto choose train.val_tokens. Raises SystemExit.
    """
    if reason := remark(sweep_jobs(sweep)):
        print(
            f"positron: the search in {relative_to_here(sweep)} ends, because it cannot find the best of these jobs. {reason} "
            "To search, give another name= and a train.val_tokens= with which all jobs measure the same text: with several "
            "tokenizers, at least the length of the whole validation text in tokens.",
            file=sys.stderr,
        )
        raise SystemExit(2)


@functools.cache  # once in each worker
def _end_with_sweep() -> None:
    """Make this worker of joblib end with the command that started it, which joblib does not do if the command is killed.

    Otherwise the same command, given again, would find that other processes still train its jobs.
    """
    end_with(os.getppid())


def record_job(folder: Path, overrides: list[str], job: Callable[[], Facts]) -> float:
    """Run one job of a sweep, record its outcome and update the report of the sweep.

    Returns the score of the job (see `reported_score`), or inf if there is none, for example because the job failed. If an
    earlier start of the same sweep finished the job, `job()` returns at once. Raises SystemExit if Ctrl-C or another signal
    ended the training of the job, and KeyboardInterrupt if Ctrl-C was pressed before the training began or after it ended.
    """
    say(f"\n{relative_to_here(folder)}: {' '.join(overrides)}")
    try:
        facts = job()
        outcome: dict[str, Any] = {"failed": None}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C ends the whole sweep
            raise
        if isinstance(error, Interrupted | LeftAtOnce):
            raise SystemExit(error.exit_code) from error
        reason = describe(error)[1] or f"{type(error).__name__}: {error}"
        say(reason)
        facts, outcome = Facts(), {"failed": reason, "traceback": traceback.format_exc()}
        if isinstance(error, UserError) and Run(folder).facts().status == "finished":
            facts, outcome = Run(folder).facts(), {"failed": None, "refused": reason}  # a finished run stays finished
    write_json(Run(make_folder(folder)).job_path, {"overrides": overrides, **outcome})
    try:
        write_sweep_report(folder.parent)
    except Exception as error:  # the next job writes the table again
        say(f"positron: could not write sweep.md ({describe(error)[1]}); the next job writes this file again")
    score = None
    with suppress(UserError):  # a damaged metrics.jsonl, which the row of this job names
        score = reported_score(Run(folder), facts)
    return math.inf if score is None else score


def claim_folder(sweep: Path, number: int, overrides: Sequence[str], config: RunConfig | None) -> Path:
    """Return the folder of a job: the folder of the same job in an earlier start of the sweep, or a new folder.

    `config` is None if the settings of the job are wrong. An existing folder belongs to the job if it records the same
    overrides, apart from those that do not change what is learned, or contains a run with the same configuration. With
    train.extend=true, train.max_steps may differ. A new folder gets the number that Hydra gave the job, if this number is free.
    """
    with lock(make_folder(sweep) / "jobs.lock", lambda: None):
        folders = numbered_folders(sweep)
        overrides_by_folder = {path: _overrides_of(path) for path in folders}
        for ignores_steps in (False, True) if config is not None and config.train.extend else (False,):
            identity = _identity(overrides, ignores_steps)
            matches = [
                path
                for path, recorded in overrides_by_folder.items()
                if recorded and _identity(recorded, ignores_steps) == identity
            ]
            if len(matches) == 1 or (matches and not ignores_steps):
                return matches[0]
        for path in folders if config is not None else ():
            if _has_config(path, config):
                return path
        taken_numbers = {int(path.name) for path in folders if any(path.iterdir())}
        new_number = number if number not in taken_numbers else max(taken_numbers) + 1
        folder = make_folder(sweep / str(new_number))
        write_json(folder / _CLAIM_FILE, list(overrides))
        return folder


def _overrides_of(folder: Path) -> list[str] | None:
    for name in (_CLAIM_FILE, JOB):  # sweeps of older versions have only the second file
        if (folder / name).exists():
            content = read_json(folder / name)
            overrides = content.get("overrides") if isinstance(content, dict) else content
            if isinstance(overrides, list):
                return [str(override) for override in overrides]
    return None


def _identity(overrides: Sequence[str], ignores_steps: bool = False) -> dict[str, str]:
    """Return the overrides that determine what a job learns, as a dict from key to value.

    Settings that may change when a run is continued, such as train.save_every and device.threads, are left out. If
    `ignores_steps` is true, train.max_steps is left out, too.
    """
    keys = given_keys([override.lstrip("+") for override in overrides])
    ignored = {"train.max_steps"} if ignores_steps else set()
    return {key: value for key, value in keys.items() if decides_a_new_run(key) and key not in ignored}


def _has_config(folder: Path, config: RunConfig | None) -> bool:
    run = Run(folder)
    try:
        # two jobs may differ only in the place of their text, or in the run with which they begin
        return config is not None and run.exists and not differences(run, config) and begins_alike(run, config)
    except (UserError, KeyError, TypeError, ValueError):  # damaged, or from a version with other settings
        return False


def share_of(launcher: Any) -> float:
    """Return the share of this machine's cores and memory, from 0 to 1, that each of the launcher's parallel jobs may use."""
    kind = launcher._target_.rsplit(".", 1)[-1]
    if kind == "JoblibLauncher":
        return 1 / int(launcher.n_jobs)
    if kind == "LocalLauncher":
        return min(1.0, int(launcher.cpus_per_task) / usable_cores())
    return 1.0
