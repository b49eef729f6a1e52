"""Write the report of a sweep (sweep.md, sweep.csv and sweep.png in the sweep's folder), anew after every job.

The jobs are the runs of the sweep. Jobs that differ only in their seed, and in settings such as device.threads that do not
change what a run learns, are one variant. Variants are ranked by their mean over the seeds.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.evaluation.run_plots import sweep_picture
from positron.evaluation.seed_groups import SeedGroup, seed_groups
from positron.run.differences import decides_a_new_run, deciding_settings
from positron.run.facts import Facts
from positron.run.find import numbered_folders
from positron.run.folder import TUNED, Run
from positron.run.measure import BITS_PER_BYTE, Measure, measure_of
from positron.run.metrics import read_metrics
from positron.run.outcome import canonical, read_outcome
from positron.run.paths import JOB
from positron.run.validated import ValidationText, comparable, validation_text
from positron.system.commands import command
from positron.system.disk import whole_file, write_text
from positron.system.errors import UserError
from positron.system.formatting import aligned, counted, representative_bpb

SEED = "seed"  # the key whose values are repetitions of a variant and not variants


@dataclass(frozen=True)
class Job:
    """Hold a job, one run of a sweep, that has ended. `choices` maps the key of each override to its value.

    If other commands gave other keys to jobs of the same sweep, `choices` also has these keys, with the values of the run.

    `status` is "refused" if the run had finished earlier and cannot continue with the settings of this job. It is "unknown" if
    the files of the job are damaged or record no status. Otherwise, it is the status of the run, such as finished, stopped,
    pruned or failed.
    """

    number: str  # name of the job's folder in the folder of the sweep
    choices: dict[str, str]
    status: str
    score: float | None  # see `reported_score`; None if the job failed or was never validated
    facts: Facts  # contents of run.json; all fields are None if the files of the job are damaged
    why: str  # reason why the job failed, was refused or cannot be read, otherwise empty
    validated: ValidationText | None = None  # on which the score was measured; None if there is no score

    @property
    def measure(self) -> Measure:
        """Return the metric whose score is `score`."""
        return measure_of(self.facts.kind)

    @property
    def deciding(self) -> dict[str, str]:
        """Return the choices that decide what the job learns, as a dict from key to value in one spelling (`canonical`)."""
        return {key: canonical(value) for key, value in self.choices.items() if decides_a_new_run(key)}

    @property
    def variant(self) -> dict[str, str]:
        """Return the choices that decide what the job learns, without the seed; see `deciding`."""
        return {key: value for key, value in self.deciding.items() if key != SEED}

    @property
    def result(self) -> float | None:
        """Return the score of the job if its status is "finished" or "stopped", otherwise None.

        A stopped job can be continued: it ended at a limit of time or steps, or by a signal. Other jobs have no result, for
        example a pruned job, which was ended because it was worse than others.
        """
        return self.score if self.status in ("finished", "stopped") else None


def reported_score(run: Run, facts: Facts) -> float | None:
    """Return the score by which a run of a sweep or a search is ranked, or None if the run has none; a lower one is better.

    `facts` are those of `run`. The result is the score of the value that the run reports at its end. For most runs, this is the
    value of the bits per byte (see `representative_bpb`). In supervised fine-tuning, it is the value of the best checkpoint,
    which is the model that is kept. In preference tuning and reinforcement learning, it is the accuracy or the reward at the
    last validation, with a minus sign (see `measure_of`).
    """
    measure = measure_of(facts.kind)
    if measure != BITS_PER_BYTE:
        return next(reversed(measure.curve(read_metrics(run.metrics_path)).values()), None)
    if facts.val_bpb is None or facts.best_bpb is None:
        return facts.val_bpb
    return representative_bpb(facts.val_bpb, facts.best_bpb, run.is_measured_on_answers)


def sweep_jobs(folder: Path) -> list[Job]:
    """Return the ended jobs of the sweep in `folder`: the jobs of the best variant first, the jobs without a score last."""
    jobs = []
    for path in (job / JOB for job in numbered_folders(folder)):
        if not path.exists():
            continue
        number = path.parent.name
        try:
            run = Run(path.parent)
            outcome, facts = read_outcome(path), run.facts()
            score = None if outcome.failed else reported_score(run, facts)
            validated = None if score is None else validation_text(facts, _config(run), measure_of(facts.kind))
        except UserError as error:  # one damaged file must not cost the report of the other jobs
            jobs.append(Job(number, {}, "unknown", None, Facts(), str(error)))
            continue
        status = "failed" if outcome.failed else "refused" if outcome.refused else facts.status or "unknown"
        why = outcome.failed or outcome.refused or ""
        jobs.append(Job(number, outcome.choices, status, score, facts, why, validated))
    keys = dict.fromkeys(key for job in jobs for key in job.choices if decides_a_new_run(key))
    jobs = [_with_values(job, keys, Run(folder / job.number)) for job in jobs]
    jobs.sort(key=lambda job: (job.score is None, job.score or 0, _place(job.number)))
    ranked = [job for group in variants(jobs) for job in group.members]
    return sorted(ranked, key=lambda job: job.score is None)


def _config(run: Run) -> dict[str, Any]:
    """Return the settings of a run as nested dicts, or an empty dict if they cannot be read."""
    try:
        return run.config()
    except UserError:  # a damaged config.json must not cost the score of the job
        return {}


def _with_values(job: Job, keys: Iterable[str], run: Run) -> Job:
    """Return `job` with the choices `keys`: a key that its command did not give gets the value that the run recorded."""
    missing = [key for key in keys if key not in job.choices]
    if not missing or not job.choices or not run.exists:
        return job
    try:
        settings = deciding_settings(run)
    except UserError:  # the files of a job that failed may lack them
        return job
    known = {key: canonical(settings[key]) for key in missing if key in settings}
    return dataclasses.replace(job, choices={**job.choices, **known})


def variants(jobs: Sequence[Job]) -> list[SeedGroup[Job]]:
    """Group the jobs that differ only in their seed, and return the groups, the best one first (see `seed_groups`)."""
    return seed_groups(
        jobs,
        variant=lambda job: tuple(sorted(job.variant.items())),
        seed=lambda job: job.deciding.get(SEED),
        score=lambda job: job.result,
    )


def _place(number: str) -> tuple[int, str]:
    return (int(number), "") if number.isdigit() else (1 << 30, number)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the keys of the overrides whose values differ between the jobs, in the order of the command line.

    Keys that do not change what a run learns, such as device.threads, are left out.
    """
    choices = [job.deciding for job in jobs]
    keys = dict.fromkeys(key for deciding in choices for key in deciding)
    return [key for key in keys if len({deciding.get(key) for deciding in choices}) > 1]


def table(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the table of jobs: a row of titles, then a row for each job.

    The last column has the score of the job or, if the job has no score, the reason.
    """
    keys = swept_keys(jobs)
    rows = [["job", *keys, "status", _measure(jobs).title]]
    for job in jobs:
        score = f"{job.measure.score(job.score):.4f}" if job.score is not None else job.why
        if job.status == "pruned":
            score = f"after {counted(job.facts.step or 0, 'step')}: {score}"
        rows.append([job.number, *(job.choices.get(key, "") for key in keys), job.status, score])
    return rows


def variant_table(jobs: Sequence[Job]) -> list[list[str]]:
    """Return a table with the mean result over the seeds: a row of titles, then one row for each variant, the best first.

    Jobs that differ only in their seed form a variant. If all jobs have the same seed, the table is empty ([]).
    """
    keys = swept_keys(jobs)
    if SEED not in keys:
        return []
    keys.remove(SEED)
    measure = _measure(jobs)
    rows = [[*keys, "seeds", f"mean {measure.title}"]]
    for group in variants(jobs):
        choices = [group.members[0].choices.get(key, "") for key in keys]
        seeds = f"{group.scored} of {group.scored + group.missing}" if group.missing else str(group.scored)
        interval_text = f" ± {group.half:.4f} (95% over seeds)" if group.half is not None else ""
        mean = "none" if group.mean is None else f"{measure.score(group.mean):.4f}{interval_text}"
        rows.append([*choices, seeds, mean])
    return rows


def paired_arguments(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Return the arguments of `positron compare --paired` that compare the best two variants of a sweep.

    A variant consists of the jobs that differ only in their seed. Only variants with scores for at least two seeds count. The
    list is empty if there are fewer than two such variants, if one of the two was started without a choice such as model=,
    which no setting of the run tells, if their texts differ, or if the jobs are fine-tuning: the sweep ranks them by their loss
    on answers, their accuracy or their reward, and `compare` would measure the loss on the pretraining text. Otherwise the list
    has an argument for each variant, FOLDER:KEY=VALUE, with the overrides of this variant.

    The option --differ-in, with the names of the settings in which the two variants differ, is added in three cases: if the
    variants differ in several settings, in a key without a dot such as model, or in a setting that changes the order of the
    data.
    """
    # imports torch, which a sweep that is refused does not need
    from positron.evaluation.pairing import changes_data_order

    keys = swept_keys(jobs)
    groups = [group for group in variants(jobs) if group.scored > 1][:2]
    if SEED not in keys or len(groups) < 2 or any(job.facts.kind in TUNED for job in jobs):
        return []
    keys.remove(SEED)
    first, second = (group.members[0] for group in groups)
    if any(key not in job.choices for job in (first, second) for key in keys) or remark([first, second]):
        return []
    names = [f"{folder}:" + ",".join(f"{key}={job.choices[key]}" for key in keys) for job in (first, second)]
    differing = [key for key in keys if key != "experiment" and first.variant[key] != second.variant[key]]
    if len(differing) > 1 or any("." not in key or changes_data_order(key) for key in differing):
        names += ["--differ-in", ",".join(differing)]
    return names


def _measure(jobs: Sequence[Job]) -> Measure:
    """Return the measure of the jobs, which is that of the first job with a score."""
    return next((job.measure for job in jobs if job.score is not None), BITS_PER_BYTE)


def remark(jobs: Sequence[Job]) -> str:
    """Return a remark that says why the scores of the jobs cannot be compared, or an empty string if they can be."""
    if len({job.measure for job in jobs if job.score is not None}) > 1:
        return "These jobs were trained by different commands, so their scores cannot be compared."
    scored = [job for job in jobs if job.score is not None]
    texts = [job.validated for job in scored if job.validated is not None]
    have_other_texts = len({each.text for each in texts}) > 1
    have_other_lengths = _measure(jobs) == BITS_PER_BYTE and len(set(comparable(texts))) > 1
    if (have_other_texts or have_other_lengths) and any(job.facts.kind in TUNED for job in scored):
        # `compare` would measure the loss on the pretraining text, and not what these jobs learn
        return (
            "These jobs were validated on different data, so their scores cannot be compared: train them with the same data=, "
            "train.val_tokens= and reinforce.val_prompts=."
        )
    if have_other_texts:
        return (
            "These jobs were validated on different texts, so their scores cannot be compared. To score them on one text: "
            + command("compare", "RUNS", "--text", "FILE")
        )
    if any(key.split(".")[0] == "reward" for key in swept_keys(scored)):
        return "These jobs have different rewards (reward=), so their scores cannot be compared."
    if not have_other_lengths:
        return ""
    return (
        "These jobs were validated on beginnings of different length of the validation text (train.val_tokens=, which budget= "
        "chooses, or other tokenizers), so their scores cannot be compared. To score them on the same text: "
        + command("compare", "RUNS")
    )


def as_text(jobs: Sequence[Job]) -> str:
    """Format the table of jobs with aligned columns for the terminal.

    If the jobs have different seeds, the table of variants (see `variant_table`) comes before the table of jobs. If the jobs
    had different texts, a remark says that their scores cannot be compared.
    """
    tables = [aligned(rows) for rows in (variant_table(jobs), table(jobs)) if rows]
    return "\n\n".join(filter(None, [*tables, remark(jobs)]))


def as_markdown(jobs: Sequence[Job], title: str) -> str:
    """Return the content of sweep.md, the report of a sweep, with the heading `title`.

    It lists the overrides that all jobs share. Then it has a table of the variants (groups of jobs that differ only in their
    seed), a table of the jobs, and a link to the figure sweep.png.
    """
    shared = {
        key: value
        for key, value in jobs[0].choices.items()
        if all(key in job.choices and canonical(job.choices[key]) == canonical(value) for job in jobs)
    }
    overrides = "".join(f"- {key} = {value}\n" for key, value in shared.items())
    tables = [_as_markdown(rows) for rows in (variant_table(jobs), table(jobs)) if rows]
    content = "\n\n".join(filter(None, [*tables, remark(jobs)]))
    return f"# {title}\n\n{overrides}\n{content}\n\n![curves and scores](sweep.png)\n"


def _as_markdown(table: Sequence[Sequence[str]]) -> str:
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def as_csv(jobs: Sequence[Job]) -> str:
    """Format the jobs as CSV, with all overrides and the final metrics."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.choices))
    columns = ["step", "tokens", "time_s", "val/bpb", "best/bpb", "floor_bpb"]
    measure = _measure(jobs)
    own = [] if measure == BITS_PER_BYTE else [measure.key]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *keys, "status", *own, *columns, "why"])
    for job in jobs:
        facts = job.facts
        known = [facts.step, facts.tokens, facts.time_s, facts.val_bpb, facts.best_bpb, facts.floor_bpb]
        score = [None if job.score is None else job.measure.score(job.score)] if own else []
        writer.writerow([job.number, *(job.choices.get(key, "") for key in keys), job.status, *score, *known, job.why])
    return text.getvalue()


def write_sweep_report(folder: Path) -> list[Job]:
    """Write the report of the jobs that have ended so far; return these jobs in the order of `sweep_jobs`.

    `folder` is the folder of the sweep. If no job has ended, nothing is written.
    """
    jobs = sweep_jobs(folder)
    if jobs:
        write_text(folder / "sweep.md", as_markdown(jobs, folder.name))
        write_text(folder / "sweep.csv", as_csv(jobs))
        keys = swept_keys(jobs)
        keys = [key for key in keys if key != SEED] or keys
        curves, measure = [], _measure(jobs)
        for job in sorted(jobs, key=lambda job: _place(job.number)):
            rows: list[dict[str, Any]] = []
            with contextlib.suppress(UserError):  # one damaged file must not cost the report of the other jobs
                rows = read_metrics(Run(folder / job.number).metrics_path)
            values = [job.deciding.get(key, "") for key in keys]
            score = None if job.score is None else measure.score(job.score)
            curve = [(row["tokens"] / 1e6, row[measure.key]) for row in rows if row.get(measure.key) is not None]
            curves.append((values, curve, job.status, score))
        floors = [job.facts.floor_bpb for job in jobs if job.facts.floor_bpb and measure == BITS_PER_BYTE]
        # tokenizers end the validation text at slightly different bytes, so comparable jobs may have slightly different floors
        floor = statistics.fmean(floors) if floors and not remark(jobs) else None
        with whole_file(folder / "sweep.png") as file:
            file.write(sweep_picture(keys, curves, floor, folder.name, measure.title.removeprefix("val ")))
    return jobs
