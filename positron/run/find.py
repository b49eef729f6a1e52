"""Find runs by their names. The name of a run is the path of its folder, or the part of this path below `outputs/`."""

from __future__ import annotations

import difflib
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from positron.run.folder import OUTPUTS, Run
from positron.run.outcome import read_outcome
from positron.run.paths import CHECKPOINTS, CONFIG, FACTS, JOB
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.disk import expanded, is_temporary, read_json, refuse_links_in
from positron.system.errors import UserError

logger = logging.getLogger(__name__)


def find_run(
    name: str | None, outputs: Path = OUTPUTS, *, is_candidate: Callable[[Run], bool] = lambda run: True
) -> Run:
    """Return the run whose folder is `name` or `outputs / name`, or the run that was trained last if `name` is None.

    If `name` is None, only runs for which `is_candidate` returns True are considered. Among these, runs made by the command
    `reproduce` and runs without a checkpoint are used only if there are no other runs. Raises UserError if no run is found, or
    if the folder of the run contains a symbolic link.
    """
    if name is None:
        newest_first = sorted(files_below(outputs, FACTS), key=_changed, reverse=True)
        candidates = (
            run for path in newest_first if is_candidate(run := Run(path.parent))
        )  # lazy: usually one is enough
        newest = next(candidates, None)
        if newest is None:
            raise UserError(
                f"init_from= is not given, and this command accepts none of the runs in {outputs.resolve()} as its default: "
                "give init_from=RUN"
                if newest_first
                else f"there is no run in {outputs.resolve()}: train one with {command('train', 'experiment=quickstart')}"
            )
        run = next((run for run in itertools.chain([newest], candidates) if _is_preferred(run)), newest)
        refuse_links_in(run.folder)
        return run
    named = named_run(name, outputs)
    if named is not None:
        refuse_links_in(named.folder)
        return named
    names = split_names(name, outputs)
    if len(names) > 1 and all(each and named_run(each, outputs) for each in names):
        raise UserError(
            one_line(f"{name} names {len(names)} runs, but only one run can be named here: ")
            + "name one of these runs (evaluate, generate and chat can use several runs as one model, as --run A,B; compare, "
            "scaling and serve take several runs, separated by spaces)"
        )
    if folder := next((path for path in (outputs / name, Path(name)) if os.path.isdir(path)), None):
        if inner := next((folder / name for name in _names(folder) if Run(folder / name).exists), None):
            raise UserError(
                one_line(f"{folder} contains runs, but is not a run itself: name one of them, such as {inner}")
            )
        if inside := next((parent for parent in folder.parents if Run(parent).exists), None):
            raise UserError(one_line(f"{folder} is inside the run {inside}: name the run, {inside}"))
        if (folder / JOB).exists() and not (folder / CONFIG).exists() and (reason := read_outcome(folder / JOB).failed):
            raise UserError(
                one_line(
                    f"{folder} is a job that failed before its run began: {reason.removeprefix('positron: ')}", 600
                )
                + "; name another run"
            )
        if (folder / CONFIG).exists():
            raise UserError(
                one_line(f"{folder} is not a run, because it has a {CONFIG} but no {FACTS}: ")
                + "restore the other files of the run from a copy or, if this is a model of Hugging Face transformers, import "
                f"the model first with {command('import', str(folder))}"
            )
        if any((folder / name).exists() for name in (FACTS, CHECKPOINTS)):
            raise UserError(
                one_line(f"{folder} has no {CONFIG}, so it cannot be read as a run: ")
                + "restore the file from a copy, or name another run"
            )
    if os.path.isfile(name) and (inside := next((path for path in Path(name).parents if Run(path).exists), None)):
        raise UserError(one_line(f"{name} is a file of the run {inside}: name the run, {inside}"))
    known = _names(outputs)
    similar = _similar(name, known)
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    if similar:
        hint = f": did you mean {similar}?"
    elif known:
        hint = f" (its runs: {shown})"
    elif nested := next(iter(sorted(files_below(outputs, FACTS))), None):
        hint = f", such as {nested.parent}"
    else:
        hint = f", which has no runs yet: train one with {command('train', 'experiment=quickstart')}"
    if folder is not None:
        raise UserError(one_line(f"{folder} is not a run; name a run in {outputs}/{hint}"))
    raise UserError(one_line(f"there is no run {name}: it is neither a run folder nor a name in {outputs}/{hint}"))


def named_run(name: str, outputs: Path = OUTPUTS) -> Run | None:
    """Return the run whose folder is `name`, which may begin with `~`, or `outputs / name`; None if there is no such run."""
    return next((run for run in (Run(expanded(name)), Run(outputs / name)) if run.exists), None)


def numbered_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder` whose names are numbers, such as the jobs of a sweep, in the order of the numbers."""
    return sorted((path for path in folder.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))


def files_below(folder: Path, name: str) -> list[Path]:
    """Return the files `name` at any depth below a folder of runs, except those of runs that are not complete.

    Of the links to folders, only those in `folder` are followed.
    """
    # `**` follows no link, but a run may be a link, for example to another disk
    paths = dict.fromkeys([*folder.glob(f"**/{name}"), *folder.glob(f"*/{name}")])
    return [path for path in paths if not is_temporary(path.relative_to(folder))]


def split_names(names: str, outputs: Path = OUTPUTS) -> list[str]:
    """Split a comma-separated list into names of runs; a name is empty if there is nothing before or after a comma.

    The name of an existing run may itself contain commas, because the longest possible name is tried first.
    """
    parts, split = names.split(","), []
    while parts:
        beginnings = [",".join(parts[:count]).strip() for count in range(len(parts), 0, -1)]
        split.append(next((text for text in beginnings if text and named_run(text, outputs)), beginnings[-1]))
        parts = parts[split[-1].count(",") + 1 :]
    return split


def no_checkpoint(run: Run, setting: str, alternative: str) -> UserError:
    """Return the UserError for a run that has no checkpoint or does not exist, although `setting` needs its checkpoint.

    `setting` is a setting such as `resume=must`. `alternative` says what the user can do without this setting.
    """
    if run.exists:
        return UserError(f"{setting}, but {run.folder} has no checkpoint to continue from: {alternative}")
    similar = _similar(run.folder.name, _names(run.folder.parent))
    hint = "correct name=" if similar is None else f"did you mean name={similar}? Correct name="
    return UserError(one_line(f"{setting}, but there is no run {run.folder}: {hint}, or {alternative}"))


def announce(run: Run, named: str | None, prompt: str | None = None, outputs: Path = OUTPUTS) -> None:
    """Log which run is used, if the user named no run (`named` is None). Also log if `prompt` is the name of a run."""
    if named is None:
        logger.info(
            f"no run was named: using {run.folder}, trained last ({progress_of(run)}); --run NAME selects another"
        )
        if prompt is not None and prompt.removeprefix(f"{outputs}/").rstrip("/") in _names(outputs):
            logger.info(f"{prompt} is read as a text to continue or answer; --run {prompt} uses the run of this name")


def progress_of(run: Run) -> str:
    """Describe a run's progress and the time of its last update: `finished, step 40 of 40, 2026-07-01 12:00:00`."""
    facts = run.facts()
    steps = f"step {facts.step or 0} of {facts.resolved.max_steps}" if facts.resolved else "no step"
    return ", ".join(part for part in (facts.status or "never started", steps, facts.updated) if part)


def _similar(name: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, 1, 0.6)), None)


def _names(outputs: Path) -> list[str]:
    """Return the names of the runs that are directly in a folder and complete."""
    names = (path.parent.name for path in outputs.glob(f"*/{FACTS}"))
    return sorted(name for name in names if not is_temporary(Path(name)))


def _is_preferred(run: Run) -> bool:
    """Tell whether the run has a checkpoint and was not made by the command `reproduce`."""
    if not run.has_checkpoint:
        return False
    try:
        return "reproduces" not in read_json(run.provenance_path)
    except (UserError, OSError):  # damaged, or written by a version without provenance
        return True


def _changed(path: Path) -> float:
    return os.lstat(path).st_mtime
