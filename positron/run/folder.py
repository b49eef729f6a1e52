"""Find, create and check the folder of a run (invariant 1 of docs/ARCHITECTURE.md)."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.config import RunConfig
from positron.run.facts import (
    Facts,
    Resolved,
    damage,
    read_config,
    read_facts,
    update_facts,
    warn_of_damage,
    write_record,
)
from positron.run.kept_weights import KeptWeights, kept_weights
from positron.run.paths import CONFIG, FACTS, RunPaths
from positron.settings import flat, from_dict, recipe_of
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.disk import expanded, make_folder, read_json, refuse_links_in
from positron.system.errors import UserError, without_advice
from positron.system.paths import without_home

if TYPE_CHECKING:
    from positron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

OUTPUTS = Path("outputs")
# the kinds of runs that the commands make
PRETRAIN, DISTILL, SFT, PREFERENCE, REINFORCE = "pretrain", "distillation", "sft", "preference", "reinforce"
FROM_TEXT = (PRETRAIN, DISTILL)  # the kinds that have a text of their own, and no base run
TUNED = (SFT, PREFERENCE, REINFORCE)  # the kinds that always have a base run

# Settings that may differ between two commands that train the same run, because they do not change what it learns.
_CHANGEABLE_KEYS = {
    "ckpt_path",
    "init_from",
    "resume",
    "distill.teachers",
}  # the weights of the teachers are compared instead
_CHANGEABLE_GROUPS = ("device.", "logger.", "monitor.", "sweep.")
_CHANGEABLE_TRAIN = {
    "stop_at",
    "max_time",
    "extend",
    "keep_last",
    "keep_history",
    "save_every",
    "micro_batch_size",
    "sample_every",
}
TEXT_LOCATION = {
    "data.path",
    "data.dir",
    "data.url",
    "data.sha256",
}  # where the text is; its fingerprint is compared instead
_SHOWN_DIFFERENCES = 3  # in an error message
_RESOLVED = ("max_steps", "batch_tokens")  # settings whose `auto` is compared as the number that replaced it


@dataclass(frozen=True)
class Run(RunPaths):
    """Represent a run by its folder, `outputs/<name>/`; `RunPaths` names the files in it."""

    @property
    def is_chat(self) -> bool:
        """Tell whether the run answers messages, that is, whether its folder contains the chat template.

        Raises UserError if its chat template differs from the template of this version.
        """
        path = self.chat_path
        if not path.exists():
            return False
        from positron.text.conversation import TEMPLATE

        if read_json(path) != TEMPLATE:
            raise UserError(
                f"{path} is damaged or was written by another version of Positron: restore it from a copy, or use "
                "the version that trained this run"
            )
        return True

    @property
    def kind(self) -> str:
        """Return the kind of training: `pretrain`, `distillation`, `sft`, `preference`, `reinforce` or a user's own kind."""
        kind = self.facts().kind
        if kind is not None:
            return kind
        return PRETRAIN if self.config().get("sft") is None else SFT  # a run of an older version

    @property
    def is_measured_on_answers(self) -> bool:
        """Tell whether validation scores only answers, as in supervised fine-tuning on conversations.

        If so, the best validation of the run is reported as its result; otherwise the last one is.
        """
        return self.is_chat and self.kind == SFT

    @property
    def base(self) -> str | None:
        """Return the recorded path of the run whose weights this one started from; None for random weights.

        The other run may have been moved since then; `base_of` in run/base.py finds it.
        """
        facts = self.facts()
        if facts.kind is None:  # a run of an older version
            return self.config().get("init_from")
        return None if facts.base is None else str(expanded(facts.base))

    @property
    def exists(self) -> bool:
        """Tell whether the folder contains a run."""
        return self.config_path.exists()

    def config(self) -> dict[str, Any]:
        """Return the settings in `config.json` as nested dicts (see `facts.read_config`).

        Raises UserError if the file is damaged.
        """
        path = self.config_path
        config, is_whole = read_config(path)
        if not is_whole:
            warn_of_damage(path)
        return config

    def settings(self) -> RunConfig:
        """Return the settings as a `RunConfig`; keys that an older version did not have get their defaults.

        Raises UserError if the file is damaged.
        """
        config = self.config()
        try:
            return from_dict(RunConfig, config)
        except UserError as error:
            raise UserError(
                f"{self.config_path} is damaged or was written by another version of Positron: {without_advice(error)}; "
                "restore it from a copy, or use the version that trained this run"
            ) from error

    def facts(self) -> Facts:
        """Return the facts in `run.json`, or empty facts if the file is missing.

        Logs a warning if the checksum of the file is wrong. Raises UserError if the file is not a JSON object or a value has
        the wrong type.
        """
        path = self.facts_path
        if not path.exists():
            return Facts()
        facts, is_whole = read_facts(path)
        if not is_whole:
            warn_of_damage(path)
        return facts

    def resolved(self) -> Resolved:
        """Return the values that replaced `auto` when the run began. Raises UserError if `run.json` lacks them."""
        resolved = self.facts().resolved
        if resolved is None:
            raise UserError(
                f"{self.facts_path} is damaged: resolved must contain batch_tokens, micro_batch_size and max_steps; "
                "restore it from a copy, or train under another name="
            )
        return resolved

    def refuse_damaged_facts(self) -> None:
        """Raise UserError if `run.json`, which decides how training continues, does not match its checksum."""
        path = self.facts_path
        if path.exists() and not read_facts(path)[1]:
            raise UserError(damage(path))

    def update(self, **facts: Any) -> None:
        """Write facts into `run.json`: `run.update(status="stopped", val_bpb=1.2)`; see `facts.update_facts`."""
        update_facts(self.facts_path, **facts)

    def begin(self, config: RunConfig, tokenizer: Tokenizer, *, kind: str, new: bool, forked_from: Path | None) -> None:
        """Write the run's settings, the name of its objective (`kind`), and the run that it started from (init_from=).

        For a `new` run, also write its tokenizer, its name, and `forked_from`: the checkpoint of another run
        (ckpt_path=) that this run continues, or None.

        Raises UserError if the run exists and was trained by another objective than `kind`.
        """
        if not new and self.kind != kind:
            starter = "command" if self.kind in (*FROM_TEXT, *TUNED) else "Python program"
            raise UserError(
                one_line(f"{self.folder} was trained by the objective {self.kind}, and this command uses {kind}: ")
                + f"continue the run by the {starter} that started it, or give another name="
            )
        write_record(self.config_path, dataclasses.asdict(config))
        origin = {"kind": kind, "base": config.init_from}
        if new:
            make_folder(self.checkpoint_folder, self.folder)
            tokenizer.save(make_folder(self.tokenizer_folder, self.folder))
            origin |= {"name": config.name, "forked_from": str(forked_from) if forked_from else None}
        self.update(**origin)

    @property
    def history(self) -> list[KeptWeights]:
        """Return the weights that `train.keep_history` kept, earliest first; an empty list if the setting was 0."""
        return kept_weights(self.history_folder)

    def metrics(self) -> Any:
        """Return the columns of `metrics.jsonl`, with NaN for missing numbers.

        The result is a pandas DataFrame if pandas is installed, otherwise a dict of NumPy arrays. Raises UserError for a
        damaged line.
        """
        import numpy as np

        from positron.run.metrics import read_metrics

        rows = read_metrics(self.metrics_path)
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: np.array([np.nan if row.get(name) is None else row[name] for row in rows]) for name in names}
        try:
            import pandas as pd
        except ImportError:
            return columns
        return pd.DataFrame(columns)

    def differences(self, config: RunConfig) -> list[str]:
        """Return `key: recorded -> requested` for each setting in which the run and `config` differ.

        Only settings that decide what the model learns are compared.
        """
        resolved = self.resolved()
        recorded, requested = (learned_settings(settings, resolved) for settings in (self.settings(), config))
        ignored = TEXT_LOCATION if self.facts().data_fingerprint else set()
        keys = [key for key in {**recorded, **requested} if key not in ignored]
        return [
            one_line(f"{key}: {_shown(recorded.get(key))} -> {_shown(requested.get(key))}", 200)
            for key in keys
            if str(recorded.get(key)) != str(requested.get(key))
        ]


def _shown(value: Any) -> Any:
    return "null" if value is None else value


def refuse_differences(run: Run, config: RunConfig) -> list[str]:
    """Raise UserError if `config` is not for the command that trained the run, or would change what the run learns.

    One change is accepted: if `train.extend` is set, `train.max_steps` may be larger. Returns a list with a description
    of this change, or an empty list if there is none.
    """
    if run.settings().data.source == "imported":
        raise UserError(
            f"{run.folder} is an imported model, which cannot be continued under its own name: give another name= and "
            f"init_from={run.folder} to train the model further"
        )
    made_by, asked = (
        recipe_of({key: value for key, value in vars(each).items() if value is not None})
        for each in (run.settings(), config)
    )
    if made_by != asked:
        raise UserError(
            one_line(f"{run.folder} is a run of {command(made_by)}, and this command is {command(asked)}: ")
            + f"give another name=, or continue the run by {command(made_by)}"
        )
    differences = run.differences(config)
    before, after = run.resolved().max_steps, config.train.max_steps
    is_shorter = isinstance(after, int) and after < before
    extended = [d for d in differences if d.startswith("train.max_steps: ")]
    others = [d for d in differences if d not in extended] if config.train.extend else differences
    if is_shorter and differences == extended:
        may_end_there = isinstance(after, int) and (run.facts().step or 0) < after
        ends_earlier = " (train.stop_at= ends a run earlier)" if may_end_there else ""
        raise UserError(
            f"train.max_steps={after} is shorter than the {before} steps of {run.folder}, and a run can only be made longer: "
            f"give train.max_steps={before}{ends_earlier}, or another name="
        )
    if len(others) == 1 and others[0].startswith("name: "):
        known = run.settings().name
        raise UserError(
            f"{run.folder} contains a run that was trained with name={known}, so the folder was renamed or copied: rename it "
            f"to {OUTPUTS / known} again, or give another name="
        )
    if others:
        can_extend = extended and others is differences and not is_shorter
        same = "give the same settings as before"
        if can_extend:
            same = (
                "give train.extend=true to train more steps"
                if differences == extended
                else f"{same} (train.max_steps may be larger with train.extend=true)"
            )
        more = f"; and {len(others) - _SHOWN_DIFFERENCES} more" if len(others) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"{run.folder} was trained with other settings: {same}, or another name= "
            f"({'; '.join(others[:_SHOWN_DIFFERENCES])}{more})"
        )
    return extended


def learned_settings(settings: RunConfig, resolved: Resolved) -> dict[str, Any]:
    """Return the settings that decide what a run learns, by dotted key; the numbers of `resolved` replace `auto`."""
    values = flat(without_home(dataclasses.asdict(settings)))
    for name in _RESOLVED:
        if values[f"train.{name}"] == "auto":
            values[f"train.{name}"] = getattr(resolved, name)
    return {key: value for key, value in values.items() if not _is_changeable(key)}


def is_changeable(key: str) -> bool:
    """Tell whether a setting may differ between two commands that train the same run."""
    return _is_changeable(key) or f"{key}." in _CHANGEABLE_GROUPS


def _is_changeable(key: str) -> bool:
    if key in _CHANGEABLE_KEYS or key.startswith(_CHANGEABLE_GROUPS):
        return True
    return key.startswith("train.") and key.split(".", 1)[1] in _CHANGEABLE_TRAIN


def find_run(name: str | None, outputs: Path = OUTPUTS, *, which: Callable[[Run], bool] = lambda run: True) -> Run:
    """Return the run whose folder or name in `outputs` is `name`, or the run that was trained last if `name` is None.

    If `name` is None, only runs for which `which` returns True are considered. Among these, runs made by `reproduce` and
    runs without a checkpoint are used only if there are no others. Raises UserError if no run is found.
    """
    if name is None:
        newest_first = sorted(outputs.glob(f"**/{FACTS}"), key=_changed, reverse=True)
        candidates = (run for path in newest_first if which(run := Run(path.parent)))  # lazy: usually one is enough
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
            + "only evaluate, generate and chat use several runs as one model (--run a,b); compare, scaling and serve take "
            "several runs separated by spaces"
        )
    if folder := next((path for path in (outputs / name, Path(name)) if path.is_dir()), None):
        if inner := min((path.parent for path in folder.glob(f"*/{FACTS}") if Run(path.parent).exists), default=None):
            raise UserError(
                one_line(f"{folder} contains runs, but is not a run itself: name one of them, such as {inner}")
            )
        raise UserError(
            one_line(f"{folder} has no {CONFIG}, so it cannot be read as a run: ")
            + "restore the file from a copy, or name another run"
        )
    known = _names(outputs)
    near = _similar(name, known)
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    if near:
        hint = f": did you mean {near}?"
    elif known:
        hint = f" (its runs: {shown})"
    else:
        hint = f", which has no runs yet: train one with {command('train', 'experiment=quickstart')}"
    raise UserError(one_line(f"there is no run {name}: it is neither a run folder nor a name in {outputs}/{hint}"))


def no_checkpoint(run: Run, setting: str, instead: str) -> UserError:
    """Return the error for a missing run or a run without a checkpoint, if `setting` needs a checkpoint to continue from.

    `instead` says what the user can do without `setting`.
    """
    if run.exists:
        return UserError(f"{setting}, but {run.folder} has no checkpoint to continue from: {instead}")
    near = _similar(run.folder.name, _names(run.folder.parent))
    hint = "correct name=" if near is None else f"did you mean name={near}? Correct it"
    return UserError(one_line(f"{setting}, but there is no run {run.folder}: {hint}, or {instead}"))


def _similar(name: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, 1, 0.6)), None)


def _names(outputs: Path) -> list[str]:
    return sorted(path.parent.name for path in outputs.glob(f"*/{FACTS}"))


def named_run(name: str, outputs: Path = OUTPUTS) -> Run | None:
    """Return the run whose folder is `name` or whose name in `outputs` is `name`, or None if there is no such run."""
    return next((run for run in (Run(Path(name)), Run(outputs / name)) if run.exists), None)


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


def _is_preferred(run: Run) -> bool:
    """Tell whether the run has a checkpoint and was not made by `reproduce`."""
    if not any(run.checkpoint_folder.glob("*.ckpt")):
        return False
    try:
        return "reproduces" not in read_json(run.provenance_path)
    except (UserError, OSError):  # damaged, or written by a version without provenance
        return True


def _changed(path: Path) -> float:
    return os.lstat(path).st_mtime


def announce(run: Run, named: str | None) -> None:
    """Log which run is used, if the user named no run (`named` is None)."""
    if named is None:
        logger.info(
            f"no run was named: using {run.folder}, trained last ({progress_of(run)}); --run NAME selects another"
        )


def progress_of(run: Run) -> str:
    """Describe a run's progress and the time of its last update: `finished, step 40 of 40, 2026-07-01 12:00:00`."""
    facts = run.facts()
    steps = f"step {facts.step or 0} of {facts.resolved.max_steps}" if facts.resolved else "no step"
    return ", ".join(part for part in (facts.status or "never started", steps, facts.updated) if part)
