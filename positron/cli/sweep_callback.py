"""Check a sweep before its first job and show its table after the last, as a callback of Hydra (conf/_recipe.yaml)."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from positron.cli.hydra_app import hydra_errors_as_ours
from positron.cli.overrides import quoted
from positron.cli.preflight import check_files, check_name, check_packages
from positron.cli.request import is_search, read_request, typed_overrides
from positron.config import DataConfig, LoggerConfig
from positron.evaluation.summary import next_words
from positron.evaluation.sweep_report import SEED, as_text, paired_arguments, write_sweep_report
from positron.run.differences import decides_a_new_run
from positron.run.find import find_run
from positron.run.folder import Run
from positron.run.validated import DATA_OF_TRAINING
from positron.settings import from_dict, recipe_of
from positron.system.commands import command, module_of
from positron.system.console import say
from positron.system.disk import make_folder
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted
from positron.system.locks import lock
from positron.system.threads import usable_cores

_LOCKS = contextlib.ExitStack()  # holds the lock of the sweep until this process ends


class SweepTable(Callback):
    """Check a sweep before its first job, and show the table of its jobs after the last.

    An error raises SystemExit, because Hydra would turn any other exception of a callback into a warning and go on.
    """

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Check the sweep, choose the folder of its jobs and lock it, and divide the machine between the jobs.

        Several devices per job are refused: Lightning starts further processes with the same command line, so each process
        would start the whole sweep. Exits with code 2 if the sweep cannot start.
        """
        with errors_as_one_line(), hydra_errors_as_ours():
            self._begin(config)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Write the report of the sweep, and print its table and the command that tries the model of its best job.

        Exits with code 1 if a job failed or was refused. A job is refused if its run had finished earlier and cannot continue
        with the settings of the job.
        """
        with errors_as_one_line():
            jobs = write_sweep_report(self.folder)
            print(f"\n{self.folder}  (sweep.md, sweep.csv, sweep.png)\n{as_text(jobs)}")
            if arguments := paired_arguments(jobs, self.folder):
                comparison = command("compare", "--paired", *arguments)
                say(f"\nto check whether the best settings are better by more than chance: {comparison}")
            best = next((job for job in jobs if job.result is not None), None)
            if best is not None:
                print(f"next:    {command(*next_words(Run(self.folder / best.number)))}")
            if any(job.status in ("failed", "refused") for job in jobs):
                raise SystemExit(1)

    def _begin(self, config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        for key in ("devices", "num_nodes"):
            if config.device[key] > 1:
                raise UserError(f"each job of a sweep (-m) runs on one device: leave device.{key}= out")
        parsed = sweep_overrides(config)
        _refuse_search_over_seeds(config, {override.key_or_group for override in parsed})
        _refuse_search_over_what_is_measured(config, {override.key_or_group for override in parsed})
        _refuse_search_for_the_worst(config)
        _refuse_repeated_values(parsed)
        _refuse_keys_without_influence(parsed)
        _refuse_several_extensions(config, {override.key_or_group for override in parsed})
        jobs = count_jobs(config, parsed)
        if jobs is not None and jobs < 2:
            raise UserError(
                f"this sweep (-m) has {counted(jobs, 'job')}: give a key several values, such as optimizer.lr=1e-3,3e-3"
                + (", or leave out -m" if jobs else "")
            )
        HydraConfig.instance().set_config(
            config
        )  # Hydra sets it only for jobs, but the name of the sweep refers to it too
        self.folder = Path(config.hydra.sweep.dir)
        check_name(self.folder, is_sweep=True)
        check_all_jobs(config, {override.key_or_group for override in parsed})
        if jobs is not None:
            _check_each_job(config, parsed)
        _set(config, "sweep.dir", quoted(self.folder.as_posix()), self.folder.as_posix())
        _share_machine(config, jobs)
        if "optuna" in config.hydra.sweeper._target_ and config.hydra.sweeper.sampler.get("seed", 0) is None:
            # with a fixed seed, a search that is started again asks for the same jobs, and finished jobs are not run again
            _set(config, "sweeper.sampler.seed", str(config.seed), config.seed)
        busy = f"another process runs a sweep in {self.folder}: wait until that sweep ends, or give another name="

        def refuse() -> None:
            raise UserError(busy)

        _LOCKS.enter_context(lock(make_folder(self.folder) / "lock", refuse))


def sweep_overrides(config: Any) -> list[Any]:
    """Return the overrides that have several values, as parsed by Hydra.

    They come from the command line and from `hydra.sweeper.params`, which an experiment such as conf/experiment/lr_sweep.yaml
    sets. For a key that both contain, the command line counts.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # needed by glob()
    params = dict(config.hydra.sweeper.get("params") or {})
    parsed = parser.parse_overrides(typed_overrides(config.hydra))
    given = {override.key_or_group for override in parsed}
    parsed += parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
    return [override for override in parsed if override.is_sweep_override()]


def count_jobs(config: Any, parsed: list[Any]) -> int | None:
    """Return the number of jobs of a grid, or None for a sweeper that searches, such as Optuna's.

    `parsed` are the overrides with several values. Raises UserError if a grid contains an `interval()`, which has no list of
    values.
    """
    if is_search(config.hydra):
        return None
    for override in parsed:
        if not override.is_discrete_sweep():
            interval = override.input_line.lstrip("+")
            raise UserError(
                f"only a search can take values from {interval}: add hydra/sweeper=optuna, or list the values, such as KEY=1,2"
            )
    return math.prod(len(list(override.sweep_iterator())) for override in parsed)


def _refuse_search_over_seeds(config: Any, swept: set[str]) -> None:
    """Raise UserError if a search would choose the seed, because the search would choose the luckiest seed."""
    if SEED in swept and is_search(config.hydra):
        raise UserError(
            "a search cannot choose the seed, because the luckiest seed would win: search with a single seed=, "
            "then train the best settings without hydra/sweeper= and with several seeds, such as -m seed=0,1,2,3,4"
        )


def _refuse_search_over_what_is_measured(config: Any, swept: set[str]) -> None:
    """Raise UserError if a search would choose what its jobs are measured on, because the easiest measurement would win."""
    for key in sorted(swept):
        group, _, name = key.partition(".")
        is_measurement = (
            key in ("train.val_tokens", "reinforce.val_prompts")
            or group == "reward"
            or (group == "data" and name not in DATA_OF_TRAINING)
        )
        if is_measurement and is_search(config.hydra):
            raise UserError(
                f"a search cannot choose {key}=, because jobs with different values of it have scores that cannot be compared: "
                "give it a single value, or leave hydra/sweeper= out to train one run for each value"
            )


def _refuse_search_for_the_worst(config: Any) -> None:
    """Raise UserError if a search would maximise the score, of which lower values are always better (see `reported_score`)."""
    direction = str(config.hydra.sweeper.get("direction", "minimize"))
    if not direction.endswith("minimize"):  # it may also be written as Direction.minimize
        raise UserError(
            f"hydra.sweeper.direction={direction} would search for the worst settings, because the score of a job is its loss, "
            "or its accuracy or reward with a minus sign: leave hydra.sweeper.direction= out"
        )


def _refuse_repeated_values(parsed: list[Any]) -> None:
    """Raise UserError if a key has a value twice, because two jobs would then train the same run."""
    for override in parsed:
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise UserError(
                f"{override.input_line.lstrip('+')} has the value {repeated} twice, so two jobs would train the same run: "
                "give each value once"
            )


def _refuse_keys_without_influence(parsed: list[Any]) -> None:
    """Raise UserError if a key has no influence on what a run learns, because all jobs would then continue the same run."""
    for key in (override.key_or_group for override in parsed):
        if not decides_a_new_run(key):
            raise UserError(
                f"a sweep over {key}= would train only one run, because {key}= may change when a run is continued: give it a "
                "single value, or start a run with another name= for each value"
            )


def _refuse_several_extensions(config: Any, swept: set[str]) -> None:
    """Raise UserError if train.extend is set and train.max_steps has several values: each job would extend the same run."""
    if config.train.extend and "train.max_steps" in swept:
        raise UserError(
            "a sweep over train.max_steps= with train.extend=true would make one run longer and longer, and keep only its last "
            "result: leave train.extend=true out to train one run for each value, or give train.max_steps= a single value"
        )


def check_all_jobs(config: Any, swept: set[str]) -> None:
    """Raise UserError for settings that are wrong in every job of the sweep.

    `swept` are the keys with several values.
    """
    from omegaconf import OmegaConf

    shared = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    request = read_request(shared, typed_overrides(config.hydra))
    request.refuse_unread(is_sweep=True, swept=swept)
    if not any(key == "experiment" or key.split(".")[0] == "data" for key in swept):
        check_files(from_dict(DataConfig, request.values["data"], "data"), request.asked.given)
    if not any(key == "experiment" or key.split(".")[0] == "logger" for key in swept):
        check_packages(from_dict(LoggerConfig, request.values["logger"], "logger"))
    if request.values["init_from"] is not None and "init_from" not in swept:
        find_run(request.values["init_from"])


def _check_each_job(config: Any, parsed: list[Any]) -> None:
    """Print how many jobs of a grid cannot start because of their settings, and why the first of these jobs cannot start.

    `config` is Hydra's configuration of the sweep, and `parsed` are the overrides with several values. A grid may contain
    impossible combinations of values. Therefore UserError is raised only if no job can start.
    """
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    loader = GlobalHydra.instance().config_loader()
    swept = [[f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()] for each in parsed]
    lines = {override.input_line for override in parsed}
    fixed = [word for word in typed_overrides(config.hydra) if word not in lines]
    jobs = list(itertools.product(*swept))
    refusals: dict[tuple[str, ...], str] = {}
    for values in jobs:
        overrides = [*fixed, *values]
        job: Any = loader.load_sweep_config(config, overrides)
        settings = OmegaConf.masked_copy(job, [key for key in job if key != "hydra"])
        try:
            request = read_request(settings, [override.lstrip("+") for override in overrides])
            request.configured(importlib.import_module(f"positron.{module_of(recipe_of(request.values))}").configure)
        except UserError as error:
            refusals[values] = str(error)
    if not refusals:
        return
    values, reason = next(iter(refusals.items()))
    if len(refusals) < len(jobs):
        say(
            f"{len(refusals)} of {len(jobs)} jobs cannot start; the reason for the first of these jobs "
            f"({' '.join(values)}): {reason}"
        )
    elif len(set(refusals.values())) == 1:
        raise UserError(reason)
    else:
        raise UserError(
            f"none of the {len(jobs)} jobs can start; the reason for the first job ({' '.join(values)}): {reason}"
        )


def _share_machine(config: Any, jobs: int | None) -> None:
    """Set how the jobs of a sweep that run at the same time share the cores of this machine.

    For the launcher joblib, at most `jobs` jobs run in parallel; if the user gave no number of parallel jobs, at most one per
    core. For the launcher submitit_local, the cores are divided among the jobs, unless the user gave a number of cores per job.
    Other launchers are not changed. `sweeps.share_of` later reads the numbers that are set here.

    `jobs` is the number of jobs. It is None for a hyperparameter search, which has hydra.sweeper.n_jobs jobs at a time. Raises
    UserError if submitit_local would start more jobs than there are cores.
    """
    launcher, cores = config.hydra.launcher, usable_cores()
    kind = launcher._target_.rsplit(".", 1)[-1]
    parallel = jobs if jobs is not None else int(config.hydra.sweeper.n_jobs)
    if kind == "JoblibLauncher":
        n_jobs = min(parallel, int(launcher.n_jobs) if launcher.n_jobs > 0 else cores)
        _set(config, "launcher.n_jobs", str(n_jobs), n_jobs)
    if kind == "LocalLauncher":
        if parallel > cores:
            raise UserError(
                f"hydra/launcher=submitit_local starts all {parallel} jobs at once, but this machine has {cores} cores: give "
                "hydra/launcher=joblib, which starts one job per core"
            )
        if launcher.cpus_per_task is None:
            _set(config, "launcher.cpus_per_task", str(cores // parallel), cores // parallel)


def _set(config: Any, key: str, text: str, value: Any) -> None:
    """Set a setting of Hydra to `value`, in this process and in all jobs of the sweep.

    `key` is the key of the setting without the word hydra: "launcher.n_jobs" stands for hydra.launcher.n_jobs. For this
    process, the function sets the value in `config`. Each job composes a configuration of its own. For the jobs, the function
    adds an override such as hydra.launcher.n_jobs=4 to the overrides of Hydra. `text` is the value in this override.
    """
    from omegaconf import OmegaConf, open_dict, read_write

    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config.hydra, key, value)
        config.hydra.overrides.hydra.append(f"hydra.{key}={text}")
