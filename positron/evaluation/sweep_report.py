"""Write the report of a sweep (sweep.md, sweep.csv and sweep.png in the sweep's folder), anew after every job."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from positron.evaluation.run_plots import sweep_picture
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.run.paths import JOB
from positron.system.disk import read_json, whole_file, write_text
from positron.system.formatting import aligned, counted


@dataclass(frozen=True)
class Job:
    """Hold a job that has ended. `choices` maps the key of each override to its value."""

    number: str
    choices: dict[str, str]
    status: str  # finished, stopped, pruned, failed, or refused: finished before, then requested with other settings
    bpb: float | None  # bits per byte at the last validation; None if the job failed or was never validated
    facts: Facts
    why: str  # reason why the job failed or was refused, otherwise empty


def sweep_jobs(folder: Path) -> list[Job]:
    """Read the ended jobs of a sweep: the lowest validation bits per byte first, failed jobs last."""
    jobs = []
    for path in folder.glob(f"*/{JOB}"):
        job, facts = read_json(path), Run(path.parent).facts()
        status = "failed" if job["failed"] else "refused" if job.get("refused") else facts.status or "unknown"
        choices = dict(override.lstrip("+").split("=", 1) for override in job["overrides"] if "=" in override)
        bpb = facts.val_bpb if status != "failed" else None
        jobs.append(Job(path.parent.name, choices, status, bpb, facts, job["failed"] or job.get("refused") or ""))
    return sorted(jobs, key=lambda job: (job.bpb is None, job.bpb or 0, _place(job.number)))


def _place(number: str) -> tuple[int, str]:
    return (int(number), "") if number.isdigit() else (1 << 30, number)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the keys whose values differ between the jobs, in the order of the command line."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.choices))
    return [key for key in keys if len({job.choices.get(key) for job in jobs}) > 1]


def table(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the table: a header, then a row for each job, with the score in the last column."""
    keys = swept_keys(jobs)
    rows = [["job", *keys, "status", "val bits per byte"]]
    for job in jobs:
        score = f"{job.bpb:.4f}" if job.bpb is not None else job.why
        if job.status == "pruned":
            score = f"after {counted(job.facts.step or 0, 'step')}: {score}"
        rows.append([job.number, *(job.choices.get(key, "") for key in keys), job.status, score])
    return rows


def as_text(jobs: Sequence[Job]) -> str:
    """Format the table with aligned columns for the terminal."""
    return aligned(table(jobs))


def as_markdown(jobs: Sequence[Job], title: str) -> str:
    """Format the content of sweep.md: the overrides that all jobs share, the table, and the figure."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table(jobs))
    lines = [header, ["---"] * len(header), *rows]
    shared = {key: value for key, value in jobs[0].choices.items() if key not in swept_keys(jobs)}
    overrides = "".join(f"- {key} = {value}\n" for key, value in shared.items())
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"# {title}\n\n{overrides}\n{body}\n\n![curves and scores](sweep.png)\n"


def as_csv(jobs: Sequence[Job]) -> str:
    """Format the jobs as CSV, with all overrides and the final metrics."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.choices))
    columns = ("step", "tokens", "time_s", "val/bpb", "best/bpb", "floor_bpb")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *keys, "status", *columns, "why"])
    for job in jobs:
        facts = job.facts
        known = [facts.step, facts.tokens, facts.time_s, facts.val_bpb, facts.best_bpb, facts.floor_bpb]
        writer.writerow([job.number, *(job.choices.get(key, "") for key in keys), job.status, *known, job.why])
    return text.getvalue()


def write_sweep_report(folder: Path) -> list[Job]:
    """Write the report of the jobs that have ended so far; return these jobs, the best first."""
    jobs = sweep_jobs(folder)
    if jobs:
        write_text(folder / "sweep.md", as_markdown(jobs, folder.name))
        write_text(folder / "sweep.csv", as_csv(jobs))
        keys = swept_keys(jobs)
        curves = []
        for job in sorted(jobs, key=lambda job: _place(job.number)):
            rows = [
                row for row in read_metrics(Run(folder / job.number).metrics_path) if row.get("val/bpb") is not None
            ]
            values = [job.choices.get(key, "") for key in keys]
            curves.append((values, [(row["tokens"] / 1e6, row["val/bpb"]) for row in rows], job.status))
        floors = {job.facts.floor_bpb for job in jobs if job.facts.floor_bpb}
        with whole_file(folder / "sweep.png") as file:
            file.write(sweep_picture(keys, curves, floors.pop() if len(floors) == 1 else None, folder.name))
    return jobs
