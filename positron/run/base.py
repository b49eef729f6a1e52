"""The run that another run began with (`init_from`): found, checked, and followed to the run that was pretrained.

A fine-tuned run needs its base for the base's text alone; it chats, is measured on files and is continued without it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from positron.config import RunConfig
from positron.run.folder import OUTPUTS, PRETRAIN, SFT, Run
from positron.system.console import one_line
from positron.system.disk import expanded
from positron.system.errors import UserError


def base_of(run: Run) -> Run | None:
    """Return the run that this one was fine-tuned from; None for a pretrained one. Raises UserError if it is not here."""
    kind, origin = run.kind, run.base
    if kind == PRETRAIN or (origin is None and kind != SFT):
        return None
    if origin is None:
        raise UserError(f"{run.folder} was fine-tuned, and does not say from which run: its record is damaged")
    base = _find(origin, run)
    if base is None:
        raise UserError(
            one_line(f"{run.folder} was fine-tuned from {origin}, and that base run is neither there nor in {OUTPUTS}/")
        )
    return base


def pretrained_run(run: Run) -> Run:
    """The run whose pretraining this one rests on: itself, or the first of its bases. UserError if one is missing."""
    return line_of(run)[-1]


def line_of(run: Run) -> list[Run]:
    """The run, its base, the base's base, to the pretrained one. UserError if one is missing, or if they form a circle."""
    line = [run]
    while (base := base_of(line[-1])) is not None:
        if any(_is_same(base, known) for known in line):
            raise UserError(
                one_line(
                    f"{run.folder} has no base run: {line[-1].folder} says that it was fine-tuned from "
                    f"{base.folder}, which was fine-tuned from it"
                    if len(line) > 1
                    else f"{run.folder} has no base run: its record says that it was fine-tuned from itself"
                )
            )
        line.append(base)
    return line


def tokens_seen(run: Run) -> int:
    """Tokens of training, those of the base included; without these where the base is gone and they were not recorded."""
    facts = run.facts()
    tokens = facts.tokens or 0
    if run.kind == PRETRAIN:
        return tokens
    recorded = facts.base_tokens
    if recorded is None:
        try:
            recorded = sum(base.facts().tokens or 0 for base in line_of(run)[1:])
        except UserError:
            recorded = 0
    return tokens + recorded


def with_origin(run: Run, config: RunConfig) -> RunConfig:
    """The config with the `init_from` that the run began with, however this start spells it.

    Raises UserError if a run would begin from itself, or if a run that exists began with another one.
    """
    given = None if config.init_from is None else _find(config.init_from, None)
    if given is not None and _is_same(given, run):
        raise UserError(
            one_line(f"init_from={config.init_from} is {run.folder} itself, and a run cannot begin from itself: ")
            + "give the new run another name=, or leave init_from out to continue this one"
        )
    if not run.exists or not any(run.checkpoint_folder.glob("*.ckpt")):
        return config
    recorded = run.base
    known = None if recorded is None else _find(str(recorded), run)
    if known is not None and _is_same(known, run):
        return config  # an older version let a run begin from itself; its real origin is forgotten
    if (
        given is not None
        and not (known is not None and _is_same(given, known))
        and (recorded is None or known is not None)
    ):
        began = f"began with the weights of {recorded}" if recorded else "began without the weights of another run"
        raise UserError(
            one_line(f"{run.folder} {began}, and init_from={config.init_from} is another run: give another name=")
        )
    return config if known is None and given is not None else dataclasses.replace(config, init_from=recorded)


def portable(folder: Path) -> str:
    """The folder's path as it is recorded: relative where it lies below the current folder, so that both can move."""
    if folder.is_absolute() and folder.resolve().is_relative_to(Path.cwd().resolve()):
        return os.path.relpath(folder.resolve(), Path.cwd().resolve())
    return str(folder)


def _find(name: str, run: Run | None) -> Run | None:
    """A run by its recorded path: beside the run that names it, which may have moved with it, or from here."""
    path = expanded(name)
    beside = [] if run is None else [folder / path for folder in _homes(run.folder.resolve())]
    for folder in (*beside, path, OUTPUTS / path):
        if Run(folder).exists:
            return Run(Path(portable(folder)))
    return None


def _homes(folder: Path) -> list[Path]:
    """Where the names that a run recorded may begin: its own parent, and the folders up to the one with `outputs/` in it."""
    parents = list(folder.parents)
    last = next((i + 1 for i, parent in enumerate(parents) if parent.name == OUTPUTS.name), 0)
    return parents[: last + 1]


def _is_same(one: Run, other: Run) -> bool:
    """Whether two paths name one folder, through links, and in capitals where the disk does not tell them apart."""
    try:
        return os.path.samefile(one.folder, other.folder)
    except OSError:
        return False
