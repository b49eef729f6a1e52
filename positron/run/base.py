"""Find the base run of a fine-tuned run: the run whose weights it started from (`init_from`).

A fine-tuned run needs its base run only to read the base run's text. If the base run is gone, the fine-tuned run can still chat
and be evaluated on files. Its training can continue if it replays no text of the base run (sft.replay_ratio=0).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from positron.config import RunConfig
from positron.run.folder import FROM_TEXT, OUTPUTS, TUNED, Run
from positron.system.console import one_line
from positron.system.disk import expanded
from positron.system.errors import UserError


def base_of(run: Run) -> Run | None:
    """Return the base run of `run`, from whose weights its fine-tuning started, or None if it has none.

    A pretrained or distilled run has no base run, even if it started from the weights of another run. Raises UserError if the
    base run cannot be found.
    """
    kind, origin = run.kind, run.base
    if kind in FROM_TEXT or (origin is None and kind not in TUNED):
        return None
    if origin is None:
        raise UserError(
            f"{run.facts_path} is damaged: it does not name the run whose weights {run.folder} started from; "
            "restore it from a copy"
        )
    base = find_recorded(origin, run)
    if base is None:
        raise UserError(
            one_line(
                f"{run.folder} was trained from {origin}, but that run does not exist, neither at this path nor in {OUTPUTS}/: "
                f"if the folder {origin} was moved or renamed, undo this; otherwise restore the folder from a copy"
            )
        )
    return base


def pretrained_run(run: Run) -> Run:
    """Return the run at the start of the chain of base runs, which has no base run itself; this may be `run`.

    It is the last run of `lineage(run)`. Raises the errors of `lineage`.
    """
    return lineage(run)[-1]


def lineage(run: Run) -> list[Run]:
    """Return the run, its base run, the base run of that run and so on, up to a run without a base run (see `base_of`).

    Raises UserError if one of them is missing, or if they form a cycle.
    """
    runs = [run]
    while (base := base_of(runs[-1])) is not None:
        if any(_is_same(base, known) for known in runs):
            origins = ", which was trained from ".join(str(known.folder) for known in [*runs[1:], base])
            raise UserError(
                one_line(
                    f"{run.folder} was trained from {origins}: one of these runs has a damaged run.json; "
                    "restore this file from a copy"
                )
                if len(runs) > 1
                else f"{run.facts_path} is damaged: it says that the run was trained from itself; restore it from a copy"
            )
        runs.append(base)
    return runs


def tokens_seen(run: Run) -> int:
    """Return the number of training tokens of the run and, if it is fine-tuned, of its base runs.

    The base runs are the base run, the base run of that run, and so on. If `run` did not record their tokens, and one of these
    runs no longer exists, only the tokens of `run` are counted.
    """
    facts = run.facts()
    tokens = facts.tokens or 0
    if run.kind in FROM_TEXT:
        return tokens
    recorded = facts.base_tokens
    if recorded is None:
        try:
            recorded = sum(base.facts().tokens or 0 for base in lineage(run)[1:])
        except UserError:
            recorded = 0
    return tokens + recorded


def with_origin(run: Run, config: RunConfig) -> RunConfig:
    """Return `config` with `init_from` set to the recorded path of the run whose weights `run` started from.

    `init_from` becomes None if `run` started from random weights. In three cases, `config` is returned unchanged:

    - `run` has no checkpoint.
    - The recorded path is that of `run` itself, which older versions allowed.
    - No run exists at the recorded path, for example because it was moved, and `config.init_from` names an existing run.

    Raises UserError if `config.init_from` names `run` itself, or in the third case a run with another tokenizer than `run`. In
    all but these three cases, also raises UserError if `config.init_from` names an existing run that is not the run at the
    recorded path.
    """
    from positron.text.factory import load_tokenizer

    named_run = None if config.init_from is None else find_recorded(config.init_from, None)
    if named_run is not None and _is_same(named_run, run):
        raise UserError(
            one_line(f"init_from={config.init_from} is {run.folder} itself, and a run cannot start from itself: ")
            + "give the new run another name=, or leave init_from= out to continue this run"
        )
    if not run.exists or not run.has_checkpoint:
        return config
    recorded = run.base
    recorded_run = None if recorded is None else find_recorded(str(recorded), run)
    if recorded_run is not None and _is_same(recorded_run, run):
        return config  # an older version let a run begin from itself; its real origin is not recorded
    if (
        named_run is not None
        and not (recorded_run is not None and _is_same(named_run, recorded_run))
        and (recorded is None or recorded_run is not None)
    ):
        origin = f"the weights of {recorded}" if recorded else "random weights"
        raise UserError(
            one_line(f"{run.folder} started from {origin}, not from init_from={config.init_from}: ")
            + "give another name=, or leave init_from= out to continue this run"
        )
    if recorded_run is not None or named_run is None:
        return dataclasses.replace(config, init_from=recorded)
    if load_tokenizer(named_run.tokenizer_folder).hash != load_tokenizer(run.tokenizer_folder).hash:
        raise UserError(
            one_line(f"{run.folder} started from the weights of {recorded}, which was not found, and the run ")
            + one_line(f"init_from={config.init_from} has another tokenizer: ")
            + "give the present path of the base run as init_from=, or another name="
        )
    return config


def portable(folder: Path) -> str:
    """Return the path of a run's folder in the form in which other runs record the path, for example `outputs/base`.

    An absolute path below the current folder becomes a relative path, so that a run still finds its base run after both were
    moved together. The path is written with slashes, also on Windows.
    """
    if folder.is_absolute() and folder.resolve().is_relative_to(Path.cwd().resolve()):
        folder = Path(os.path.relpath(folder.resolve(), Path.cwd().resolve()))
    return folder.as_posix()


def find_recorded(name: str, run: Run | None) -> Run | None:
    """Return the run at the path `name`, or None if there is no such run.

    `run` is the run that recorded the path, or None if the path is a setting of the user. The path is tried relative to the
    folders above `run`, because `run` and the run at `name` may have been moved together, then relative to the current folder,
    and then below outputs/.
    """
    path = expanded(name)
    near_run = [] if run is None else [folder / path for folder in _possible_roots(run.folder.resolve())]
    for folder in (*near_run, path, OUTPUTS / path):
        if Run(folder).exists:
            return Run(Path(portable(folder)))
    return None


def _possible_roots(folder: Path) -> list[Path]:
    """Return the folders to which a path in a run's files may be relative. `folder` is the folder of that run.

    The result is the parents of `folder`, up to the folder that contains `outputs/`. If `folder` is not below a folder
    `outputs/`, only the first parent is returned.
    """
    parents = list(folder.parents)
    last = next((i + 1 for i, parent in enumerate(parents) if parent.name == OUTPUTS.name), 0)
    return parents[: last + 1]


def _is_same(first: Run, second: Run) -> bool:
    """Tell whether two runs have the same folder, even if their paths differ, for example because of a symbolic link."""
    try:
        return os.path.samefile(first.folder, second.folder)
    except OSError:
        return False
