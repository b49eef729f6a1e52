"""Write the report of `positron research`: an entry for docs/LOG.md, its numbers as a file for docs/results/, and a plot."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from positron.evaluation.log_table import origin, table
from positron.evaluation.research import BASE, Plan, Trial, merged
from positron.evaluation.run_plots import research_picture
from positron.evaluation.sequential import FIRST_ADOPTION, FIRST_REJECTION, LEVEL, MISS
from positron.evaluation.statistics import half_interval
from positron.run.find import numbered_folders
from positron.run.folder import Run
from positron.run.paths import PROVENANCE
from positron.system.disk import whole_file, write_json, write_text
from positron.system.formatting import aligned, counted

COLUMNS: list[dict[str, str]] = [
    {"key": "date", "title": "date"},
    {"key": "candidate", "title": "candidate"},
    {"key": "settings", "title": "settings"},
    {"key": "against", "title": "compared with"},
    {"key": "pairs", "title": "pairs", "format": "d"},
    {"key": "bpb_without", "title": "bits per byte without", "format": ".4f"},
    {"key": "bpb_with", "title": "with", "format": ".4f"},
    {"key": "gain", "title": "gain ± 95 % over seeds", "format": ".4f", "pair": "±"},
    {"key": "p", "title": "p, corrected", "format": ".2g"},
    {"key": "verdict", "title": "verdict"},
]


def write_report(folder: Path, date: str, file: str, plan: Plan, trials: Sequence[Trial]) -> None:
    """Write `DATE-NAME.md`, `DATE-NAME.json` and `DATE-NAME.png` into `folder`, where NAME is the name of this folder.

    `date` is the date on which `positron research` was first started in the folder. `file` is the path of the file of
    candidates, as given on the command line. If the report is written again later, it has the same content, unless there are
    new runs.
    """
    name = f"{date}-{folder.name}"
    record = as_record(folder, date, file, trials)
    write_json(folder / f"{name}.json", record)
    write_text(folder / f"{name}.md", as_entry(folder, name, plan, trials, record))
    with whole_file(folder / f"{name}.png") as file_of_plot:
        file_of_plot.write(research_picture(trials, plan.min_gain, folder.name))


def as_record(folder: Path, date: str, file: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the results of `positron research` in the JSON format of docs/results/.

    `folder` contains the runs. `date` is the date on which the command was first started in this folder. `file` is the path of
    the file of candidates, as given on the command line. `trials` are the results of the candidates; a candidate is a change of
    the settings. The recorded commit and machine are those of the first run of the recipe without a candidate. They are None if
    there is no such run.
    """
    runs = numbered_folders(folder / BASE)  # other folders, such as a copy of a run, are none of its runs
    return {
        "date": date,
        **(origin(Run(runs[0])) if runs else {"commit": None, "machine": dict.fromkeys(("cpu", "cores", "torch"))}),
        "command": shlex.join(["positron", "research", f"candidates={file}", f"name={folder.name}"]),
        "seeds": max((len(trial.seeds) for trial in trials), default=0),
        "columns": COLUMNS,
        "rows": [_row(trial) for trial in trials],
    }


def _row(trial: Trial) -> dict[str, Any]:
    gains, half_width = trial.gains, half_interval(trial.gains)
    known = bool(gains)
    gain = round(statistics.fmean(gains), 6) if known else None
    return {
        "date": trial.date,
        "candidate": trial.name,
        "settings": " ".join(trial.overrides).replace("|", "\\|"),
        "against": trial.against,
        "pairs": len(gains),
        "bpb_without": round(statistics.fmean(trial.bpb_without), 6) if known else None,
        "bpb_with": round(statistics.fmean(trial.bpb_with), 6) if known else None,
        "gain": gain if half_width is None else [gain, round(half_width, 6)],
        "p": trial.look.p if trial.look else None,
        "verdict": trial.verdict,
    }


def as_entry(folder: Path, name: str, plan: Plan, trials: Sequence[Trial], record: dict[str, Any]) -> str:
    """Return an entry for docs/LOG.md, in Markdown, with the settings and results of the research in `folder`.

    `name` is the name of the files of the report, without the extension. `plan` has the base recipe and the candidates, and
    `trials` are the results of the candidates tested so far. `record` is the result of `as_record`. The entry contains the same
    table that scripts/render_log.py renders from `record`.
    """
    adopted = [trial.name for trial in trials if trial.verdict == "adopted"]
    is_open = any(trial.verdict == "open" for trial in trials) or len(trials) < len(plan.candidates)
    verdict = f"adopted: {', '.join(adopted)}" if adopted else "measured" if is_open else "rejected"
    commits = dict.fromkeys(origin(Run(path.parent))["commit"] for path in sorted(folder.glob(f"*/*/{PROVENANCE}")))
    machine = record["machine"]
    missing = [trial.name for trial in trials if trial.verdict == "open"] + list(plan.candidates)[len(trials) :]
    lines = [
        f"## {record['date']} · Research {folder.name} ({verdict})",
        "",
        f"- Commit: {', '.join(f'`{commit}`' for commit in commits if commit) or 'not recorded'}",
        f"- Machine: {machine['cores'] or '?'} cores of {machine['cpu'] or 'a processor that was not recorded'}; "
        f"torch {machine['torch'] or 'not recorded'}",
        f"- Command: `{record['command']}`",
        f"- Seeds: {_seeds(plan, record['seeds'])}",
        f"- Open: {', '.join(missing) or 'nothing'}",
        "",
        f"Base: `{' '.join(plan.base)}`. {rule(plan)}",
        "",
        f"<!-- table: {name} -->",
        "",
        f"{table(record)}",
        "<!-- end -->",
        "",
        *(f"- *{trial.name}*, {trial.verdict}: {trial.reason}" for trial in trials),
        "",
        f"Recipe with all adopted candidates: `{' '.join(recipe(plan, trials))}`",
    ]
    return "\n".join(lines) + "\n"


def _seeds(plan: Plan, count: int) -> str:
    return f"up to {count}, from {plan.first_seed} on, the same ones for all recipes" if count else "none yet"


def rule(plan: Plan) -> str:
    """Return a paragraph that explains when a candidate is adopted or rejected."""
    tested_pairs = f"each of the pairs {FIRST_ADOPTION} to {plan.pairs} and corrected for the number of these tests"
    if plan.pairs == FIRST_ADOPTION:
        tested_pairs = f"pair {FIRST_ADOPTION}"
    return (
        f"A candidate is adopted if p < {LEVEL}; p is computed after {tested_pairs}. A candidate is rejected early, from pair "
        f"{FIRST_REJECTION} on, if a gain of {plan.min_gain:g} is excluded with {1 - MISS:.0%} confidence over all tests. An "
        "adopted candidate belongs to the base recipe of the candidates after it."
    )


def recipe(plan: Plan, trials: Sequence[Trial]) -> list[str]:
    """Return the settings of a training: the plan's base settings, changed by the settings of all adopted candidates.

    A candidate is a change of settings that was tested; `trials` holds the results of the tests. A setting is a word of the
    command line, such as optimizer.lr=4e-3.
    """
    words = plan.base
    for trial in trials:
        if trial.verdict == "adopted":
            words = merged(words, trial.overrides)
    return words


def as_text(plan: Plan, trials: Sequence[Trial]) -> str:
    """Return a table of the trials and, below it, the current recipe, as text for the terminal.

    A candidate is a change of the training settings. A trial holds the results of one candidate, and its verdict, for example
    "adopted". The recipe is the list of the settings of `plan.base`, changed by the adopted candidates.
    """
    rows = [["candidate", "compared with", "pairs", "gain", "p", "verdict", "reason"]]
    for trial in trials:
        gain = f"{statistics.fmean(trial.gains):+.4f}" if trial.gains else ""
        p = f"{trial.look.p:.2g}" if trial.look and trial.look.p is not None else ""
        rows.append([trial.name, trial.against, str(len(trial.gains)), gain, p, trial.verdict, trial.reason])
    lines = [aligned(rows, underline=True), ""]
    untested = len(plan.candidates) - len(trials) + sum(trial.verdict == "open" for trial in trials)
    if untested:
        lines.append(
            f"{counted(untested, 'candidate is', 'candidates are')} open: the budget is used up; give a larger budget= to "
            "continue"
        )
    lines.append(f"recipe: {' '.join(recipe(plan, trials))}")
    return "\n".join(lines)
