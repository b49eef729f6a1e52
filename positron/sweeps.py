"""Several runs of one sweep: each job's outcome in its own folder, and the table of all of them.

No job can end the sweep but the user's own Ctrl-C; a job that raised, or called sys.exit, is one failed row.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from positron.config import RunConfig
from positron.disk import make_folder, read_json, write_json
from positron.door import describe, first_rank
from positron.runs import OUTPUTS, Run


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
    return float(facts.get("val/bpb", math.inf))


def run_job(
    cfg: Any,
    configure: Callable[[dict[str, Any]], RunConfig],
    train: Callable[[RunConfig, Path], dict[str, Any]],
    show: Callable[[Path], None],
) -> float:
    """One Hydra job: in its own folder under a sweep, otherwise in outputs/<name>, with its result shown."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.runtime.output_dir)
        if wandb := (values.get("logger") or {}).get("wandb"):  # its jobs lie beside each other there, too
            wandb["group"] = wandb.get("group") or folder.parent.name
            wandb["name"] = wandb.get("name") or f"{folder.parent.name}/{folder.name}"
        return record_job(folder, list(hydra.overrides.task), lambda: train(configure(values), folder))
    config = configure(values)
    folder = OUTPUTS / config.name
    facts = train(config, folder)
    if first_rank():
        show(folder)
    return float(facts.get("val/bpb", "nan"))


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per job of a sweep folder, best val/bpb first, failed ones last."""
    rows = []
    for path in folder.glob("*/job.json"):
        job, facts = read_json(path), Run(path.parent).facts()
        status = "failed" if job["failed"] else facts["status"]
        bpb = facts.get("val/bpb") if status != "failed" else None
        rows.append(
            {
                "job": path.parent.name,
                "overrides": " ".join(job["overrides"]),
                "status": status,
                "val/bpb": bpb,
                "why": job["failed"] or "",
            }
        )
    return sorted(rows, key=lambda row: (row["val/bpb"] is None, row["val/bpb"] or 0, row["job"]))


def sweep_table(rows: list[dict[str, Any]]) -> str:
    width = max((len(row["overrides"]) for row in rows), default=0)
    lines = [f"{'job':>4}  {'overrides':<{width}}  {'status':<8}  val bits per byte"]
    for row in rows:
        score = f"{row['val/bpb']:.4f}" if row["val/bpb"] is not None else row["why"]
        lines.append(f"{row['job']:>4}  {row['overrides']:<{width}}  {row['status']:<8}  {score}")
    return "\n".join(lines)


class SweepTable:
    """A Hydra callback (`hydra.callbacks` in conf/train.yaml): the rules before a sweep and the table after it."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """One folder for the whole sweep, named by the choices that all jobs share, whatever each job chooses.

        Several devices are refused: Lightning starts a second process by the same command line, so each rank would
        start the whole sweep.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import read_write

        if config.device.devices * config.device.num_nodes > 1:
            print("positron: a sweep (-m) runs its jobs on one device each: leave out device.devices=", file=sys.stderr)
            raise SystemExit(2)
        HydraConfig.instance().set_config(config)  # Hydra does so for jobs only; the sweep's name needs it, too
        self.folder = Path(config.hydra.sweep.dir)
        with read_write(config.hydra.overrides):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{self.folder.as_posix()}'")

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        rows = sweep_rows(self.folder)
        print(f"\n{self.folder}\n{sweep_table(rows)}")
        if any(row["status"] == "failed" for row in rows):
            raise SystemExit(1)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Hydra calls ten more hooks, which concern nobody here."""
        return lambda *args, **kwargs: None
