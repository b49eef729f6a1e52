"""Several runs of one sweep: each job's outcome in its own folder, and the table of all of them.

No job can end the sweep but the user's own Ctrl-C; a job that raised, or called sys.exit, is one failed row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from positron.config import RunConfig
from positron.disk import lock, make_folder, write_json
from positron.door import describe, first_rank
from positron.evaluation.outcome import show_result
from positron.evaluation.sweep_report import as_text, write_sweep_report
from positron.runs import OUTPUTS

_HELD = contextlib.ExitStack()  # a sweep's lock, until this process ends, however it ends


def record_job(folder: Path, overrides: list[str], job: Callable[[], dict[str, Any]]) -> float:
    """Run one job (one that an earlier start finished returns at once). Returns val/bpb, inf for a failed job."""
    print(f"\n{folder}: {' '.join(overrides)}", file=sys.stderr)
    try:
        facts = job()
        outcome: dict[str, Any] = {"failed": None}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # the user means the whole sweep
            raise
        if hasattr(error, "exit_code"):
            raise SystemExit(error.exit_code) from error
        reason = describe(error)[1] or f"{type(error).__name__}: {error}"
        print(reason, file=sys.stderr)
        facts, outcome = {}, {"failed": reason, "traceback": traceback.format_exc()}
    write_json(make_folder(folder) / "job.json", {"overrides": overrides, **outcome})
    try:
        write_sweep_report(folder.parent)
    except Exception as error:  # the table is made again by the next job, and at the end
        print(f"positron: no sweep.md for now: {describe(error)[1]}", file=sys.stderr)
    return float(facts.get("val/bpb", math.inf))


def run_job(
    cfg: Any,
    configure: Callable[[dict[str, Any]], RunConfig],
    train: Callable[[RunConfig, Path], dict[str, Any]],
) -> float:
    """One Hydra job: in its own folder under a sweep, otherwise in outputs/<name>, with its result shown."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hydra = HydraConfig.get()
    if values.get("budget") is not None:
        values["given"] = [override.split("=")[0].lstrip("+") for override in hydra.overrides.task]
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.runtime.output_dir)
        if wandb := (values.get("logger") or {}).get("wandb"):  # its jobs lie beside each other there, too
            wandb["group"] = wandb.get("group") or folder.parent.name
            wandb["name"] = wandb.get("name") or f"{folder.parent.name}/{folder.name}"

        def job() -> dict[str, Any]:
            config = configure(values)
            share = config.device.share * share_of(hydra.launcher)
            return train(dataclasses.replace(config, device=dataclasses.replace(config.device, share=share)), folder)

        return record_job(folder, list(hydra.overrides.task), job)
    config = configure(values)
    folder = OUTPUTS / config.name
    is_first = first_rank(config.device.processes)
    if is_first and "torch" not in sys.modules:  # whose import keeps everybody waiting
        print(f"loading what {folder} needs", file=sys.stderr, flush=True)
    facts = train(config, folder)
    if is_first:
        show_result(folder)
    return float(facts.get("val/bpb", "nan"))


def share_of(launcher: Any) -> float:
    """Of this machine's cores and memory, for each of the jobs that the launcher runs on it at once."""
    kind = launcher._target_.rsplit(".", 1)[-1]
    if kind == "JoblibLauncher":
        return 1 / int(launcher.n_jobs)
    if kind == "LocalLauncher":
        return min(1.0, int(launcher.cpus_per_task) / (os.cpu_count() or 1))
    return 1.0


class SweepTable:
    """A Hydra callback (`hydra.callbacks` in conf/train.yaml): the rules before a sweep and the table after it.

    Hydra turns an exception of a callback into a warning, so what is refused here exits.
    """

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """One folder for the whole sweep, named by the choices that all jobs share, whatever each job chooses.

        Several devices are refused: Lightning starts a second process by the same command line, so each rank would
        start the whole sweep.
        """
        from hydra.core.hydra_config import HydraConfig

        if config.device.devices * config.device.num_nodes > 1:
            refuse("a sweep (-m) runs its jobs on one device each: leave out device.devices=")
        jobs = count_jobs(config)
        if jobs is not None and jobs < 2:
            refuse(
                f"a sweep (-m) of {jobs} jobs: give a key several values, such as optimizer.lr=1e-3,3e-3"
                + (", or leave out -m" if jobs else "")
            )
        HydraConfig.instance().set_config(config)  # Hydra does so for jobs only; the sweep's name needs it, too
        self.folder = Path(config.hydra.sweep.dir)
        _set(config, "sweep.dir", f"'{self.folder.as_posix()}'", self.folder.as_posix())
        _share_machine(config, jobs)
        if "optuna" in config.hydra.sweeper._target_ and config.hydra.sweeper.sampler.get("seed", 0) is None:
            # started again, the search asks for the same jobs, of which those that are done are not done again
            _set(config, "sweeper.sampler.seed", str(config.seed), config.seed)
        busy = f"another sweep is at work in {self.folder}: wait for it, or give another name="
        _HELD.enter_context(lock(make_folder(self.folder) / "lock", lambda: refuse(busy)))

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        jobs = write_sweep_report(self.folder)
        print(f"\n{self.folder}  (sweep.md, sweep.csv, sweep.png)\n{as_text(jobs)}")
        if any(job.status == "failed" for job in jobs):
            raise SystemExit(1)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Hydra calls ten more hooks, which concern nobody here."""
        return lambda *args, **kwargs: None


def refuse(line: str) -> NoReturn:
    print(f"positron: {line}", file=sys.stderr)
    raise SystemExit(2)


def count_jobs(config: Any) -> int | None:
    """How many jobs the grid has; None for a sweeper that searches."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return None
    params = dict(config.hydra.sweeper.params or {})
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    told = {override.key_or_group for override in parsed}
    parsed += OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items() if k not in told])
    return math.prod(len(list(each.sweep_iterator())) for each in parsed if each.is_sweep_override())


def _share_machine(config: Any, jobs: int | None) -> None:
    """Numbers that the launcher would leave open, so that every job knows how many run beside it."""
    launcher, cores = config.hydra.launcher, os.cpu_count() or 1
    kind = launcher._target_.rsplit(".", 1)[-1]
    most = jobs if jobs is not None else int(config.hydra.sweeper.n_jobs)
    if kind == "JoblibLauncher":
        n_jobs = min(most, int(launcher.n_jobs) if launcher.n_jobs > 0 else cores)
        _set(config, "launcher.n_jobs", str(n_jobs), n_jobs)
    if kind == "LocalLauncher":
        if most > cores:
            refuse(f"submitit_local starts all {most} jobs at once, and here are {cores} cores: hydra/launcher=joblib")
        if launcher.cpus_per_task is None:
            _set(config, "launcher.cpus_per_task", str(cores // most), cores // most)


def _set(config: Any, key: str, text: str, value: Any) -> None:
    """hydra.<key>, for this process and for the jobs, whose configs are composed from the overrides anew."""
    from omegaconf import OmegaConf, open_dict, read_write

    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config.hydra, key, value)
        config.hydra.overrides.hydra.append(f"hydra.{key}={text}")
