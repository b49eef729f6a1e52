"""Find pairs of runs that have the same seed and differ in one setting, or only in the settings of --differ-in.

Two runs with the same seed begin with the same random numbers. Unless settings of the data differ, they also read the same
batches in the same order. Therefore both runs share much of the noise of training, and it cancels in their difference.

Runs whose settings are the same, except for the seed, are one variant. A group is the runs of one variant, one for each seed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.evaluation.comparison import LOST, find_runs
from positron.run.differences import (
    STARTING_POINTS,
    TEXT_LOCATION,
    decides_a_new_run,
    deciding_settings,
    is_changeable,
)
from positron.run.folder import Run
from positron.run.outcome import canonical, read_outcome
from positron.run.provenance import read_provenance, recorded_changes, start_of
from positron.settings import all_keys, unknown_key
from positron.system.commands import quoted
from positron.system.console import one_line
from positron.system.disk import refuse_links_in
from positron.system.errors import UserError
from positron.system.formatting import counted

logger = logging.getLogger(__name__)

STEPS = "steps"  # the key of the number of steps that a run was trained, beside the settings
_NOT_COMPARED = {"name", "seed"}
# With another value of these settings, the same seed gives other batches.
_ORDER_KEYS = (
    *("model.context_length", "train.batch_tokens", "sft.packing", "sft.replay_ratio"),
    *("reinforce.prompts", "reinforce.hard_share"),
)
_ORDER_GROUPS = ("data.", "tokenizer.")
_MAX_GROUPS_NAMED = 8
_REMEDIES = {  # for a variant one of whose runs ended with this status of LOST
    "pruned": "train the variant again under another name=, without sweep.prune=median",
    "diverged": "train the variants again under another name=, with lower learning rates",
    "failed": "start this run or its sweep again with the same command",
}
_NAME_STEPS = f"if a limit ended these runs early, name {STEPS} among the keys of --differ-in"
_SURROUNDINGS = (
    *("git.commit", "git.diff_sha256", "versions.", "resolved.threads", "resolved.accelerator"),
    *("hardware.cpu", "hardware.accelerator"),
)


@dataclass(frozen=True)
class Member:
    """Hold a run with the values that decide with which other runs it can be compared."""

    run: Run
    seed: int
    # The settings that decided what the run learned, by key (see `deciding_settings`), and the number of trained steps under
    # the key STEPS.
    settings: dict[str, Any]
    choices: dict[str, str]  # overrides with which a sweep started the run, {key: value}; empty for other runs
    text: str | None  # fingerprint (hash) of the text on which the run was trained; None if it was not recorded

    def has(self, key: str, value: str) -> bool:
        """Tell whether the setting `key` of the run has the value `value`.

        If a sweep started the run with an override of `key`, such as `model=nano`, `value` is compared with the override.
        """
        return self.value(key) == canonical(value)

    def value(self, key: str) -> str | None:
        """Return the value of `key`, an override or else a setting, in the spelling of `canonical`; None if it has neither."""
        known: dict[str, Any] = {**self.settings, **self.choices}
        return canonical(known[key]) if key in known else None


@dataclass(frozen=True)
class Pairs:
    """Hold pairs of a run of variant A and a run of variant B, sorted by seed, and the settings in which A and B differ."""

    names: tuple[str, str]  # of A and of B
    seeds: list[int]
    runs: list[tuple[Run, Run]]
    changes: list[str]  # `key: value of A -> value of B`
    surroundings: list[str]  # code, versions and hardware that differ, in the same form
    share_batches: bool  # whether both runs of a pair read the same batches


def find_pairs(names: Sequence[str], outputs: Path, differ_in: Sequence[str] = ()) -> Pairs:
    """Return pairs of runs that have the same seed, one run from each of two groups.

    Each of `names` stands for one group. It is a run, a folder that contains runs, or FOLDER:KEY=VALUE[,KEY=VALUE]. The last
    form selects the runs in the folder whose settings KEY have the values VALUE. Runs and folders are also looked up below
    `outputs`. If there is only one name, it stands for both groups. The folder must then contain the runs of exactly two
    variants. Runs of a variant differ only in their seed.

    `differ_in` names the settings in which the two runs of a pair may differ; `data` stands for all settings `data.*`. If
    `differ_in` is empty, the two runs may differ in one setting, which must not change the batches that a run reads.

    A run is left out if its training is not finished, or if the other group has no run with its seed. Raises UserError if the
    groups cannot be compared.
    """
    match len(names):
        case 1:
            labels, groups = _both_groups(names[0], _members(names[0], outputs))
        case 2:
            labels, groups = list(names), [_members(name, outputs) for name in names]
        case _:
            raise UserError(
                "--paired compares two variants: name two runs, two folders of runs, or one folder with the runs of "
                f"both variants; {counted(len(names), 'name was', 'names were')} given"
            )
    by_seed = [_by_seed(members, label, differ_in) for label, members in zip(labels, groups, strict=True)]
    a, b = by_seed
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise UserError(
            f"the variants {labels[0]} and {labels[1]} have no seed in common (seeds of the first: {_listed(a)}; of the "
            f"second: {_listed(b)}): train both with the same seeds, such as seed=0,1,2,3,4 in a sweep (-m)"
        )
    for label, members in zip(labels, by_seed, strict=True):
        alone = [seed for seed in members if seed not in seeds]
        if alone:
            logger.info(f"left out: {label} with seed {_listed(alone)}, because the other variant lacks this seed")
    surroundings = list(dict.fromkeys(text for seed in seeds for text in _surroundings(a[seed].run, b[seed].run)))
    changes = [_changes_of_pair(a[seed], b[seed], differ_in) for seed in seeds]
    if not any(changes) and not surroundings:
        raise UserError(
            f"{labels[0]} and {labels[1]} have the same settings, except for seed= and name=, so there is nothing to compare: "
            "choose runs that differ in another setting"
        )
    keys = dict.fromkeys(key for change in changes for key in change)
    shown = []
    for key in keys:
        values = [
            change.get(key, (a[seed].settings.get(key), b[seed].settings.get(key)))
            for seed, change in zip(seeds, changes, strict=True)
        ]
        shown.append(f"{key}: {' -> '.join(_range(side) for side in zip(*values, strict=True))}")
    return Pairs(
        (labels[0], labels[1]),
        seeds,
        [(a[seed].run, b[seed].run) for seed in seeds],
        [one_line(text, 200) for text in shown],
        [one_line(text, 200) for text in surroundings],
        not any(changes_data_order(key) for key in keys),
    )


def settings_named(text: str) -> list[str]:
    """Split the value of --differ-in, such as "data,model.n_layer", into names of settings and of groups of settings.

    The name "steps" is also allowed. It stands for the number of steps that a run was trained. Raises UserError for a name that
    does not exist.
    """
    keys = [key.strip() for key in text.split(",") if key.strip()]
    for key in keys:
        if key != STEPS and not any(known == key or known.startswith(f"{key}.") for known in all_keys()):
            raise UserError(f"--differ-in {key}: {unknown_key(key)}")
    return keys


def _listed(seeds: Sequence[int] | dict[int, Member]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"


def _range(values: Sequence[Any]) -> str:
    """Return the values of a setting in the runs of a group as text, such as "100", "90 to 100" or "gelu or relu".

    Different numbers are written as a range. The numbers of steps differ, for example, if the runs had a time limit.
    """
    if len(set(map(str, values))) > 1 and all(isinstance(value, int | float) for value in values):
        return f"{min(values)} to {max(values)}"
    return " or ".join(dict.fromkeys(map(str, values)))


def _members(name: str, outputs: Path) -> list[Member]:
    """Return the runs that a name stands for; leave out, with a log message, runs that were interrupted or still train.

    Raises UserError if no run is left, or if one of the runs was pruned, diverged or failed. Such a run is not just left out,
    because its settings would seem better than they are without the bad result.
    """
    folder, chosen = _split(name)
    runs = find_runs([folder], outputs, lost_too=True)
    for run in runs:
        refuse_links_in(run.folder)
    selected = [_member(run) for run in runs]
    for key, value in chosen:
        with_value = [member for member in selected if member.has(key, value)]
        if not with_value:
            raise UserError(f"{name} selects no run: {_why_none(key, value, selected)}")
        selected = with_value
    members = []
    for member in selected:
        if _is_trained(member.run):
            members.append(member)
        else:
            logger.info(
                f"left out: {member.run.folder}, because its training is not finished; to continue the training, give the "
                "command that started it again"
            )
    if not members:
        unfinished = f"the {len(selected)} runs in {name}" if len(selected) > 1 else selected[0].run.folder
        raise UserError(
            f"the training of {unfinished} is not finished: continue it with the command that started it, or name other runs"
        )
    return members


def _why_none(key: str, value: str, members: Sequence[Member]) -> str:
    """Return a message that says why the setting `key` has the value `value` in no run of `members`.

    There are four possible reasons: the key has only other values, does not change what a run learns, names a group of
    settings, or is unknown.
    """
    values = [
        str(member.choices.get(key, member.settings.get(key)))
        for member in members
        if key in member.choices or key in member.settings
    ]
    if values:
        return one_line(f"{key} is {' or '.join(dict.fromkeys(values))} in these runs, not {value}", 200)
    if is_changeable(key):
        return f"{key} does not change what a run learns, so it cannot select runs"
    groups = [known for known in all_keys() if known.startswith(f"{key}.")]
    return f"{key} is a group: give one of its settings, such as {groups[0]}=" if groups else unknown_key(key)


def _split(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Split FOLDER:KEY=VALUE,... into the folder and a list of pairs (key, value), which is empty for a plain FOLDER.

    Raises UserError if a key is missing before its "=".
    """
    folder, *rest = re.split(r":(?=[\w.]*=)", name, maxsplit=1)
    if not rest:
        return name, []
    # a comma that no KEY= follows belongs to a value, such as [0.9,0.95]
    pairs = [part.partition("=") for part in re.split(r",(?=[\w.]*=)", rest[0])]
    if not all(key for key, _, _ in pairs):
        raise UserError(f"{name} does not name runs: write FOLDER:KEY=VALUE or FOLDER:KEY=VALUE,KEY=VALUE")
    return folder, [(key.strip(), value.strip()) for key, _, value in pairs]


def _member(run: Run) -> Member:
    facts = run.facts()
    settings = {**deciding_settings(run), STEPS: facts.step}
    choices = read_outcome(run.job_path).choices if run.job_path.exists() else {}
    return Member(run, settings["seed"], settings, choices, facts.data_fingerprint)


def _is_trained(run: Run) -> bool:
    """Tell whether the training of a run is complete. It is not complete if the run was interrupted or is still being trained.

    If a setting ended the run, such as train.stop_at or train.max_time, the training is complete.

    Raises UserError if the run was pruned (its sweep ended it early), diverged or failed. Such a run must not be left out of a
    comparison: the mean over the other runs with the same settings would seem too good.
    """
    facts = run.facts()
    if facts.status in LOST:
        raise UserError(
            f"{run.folder} ended with the status {facts.status}, and without this run, its variant would seem better than it "
            f"is: {_REMEDIES[facts.status]}, or compare other variants"
        )
    return facts.status == "finished" or (facts.status == "stopped" and facts.error is None)


def _both_groups(name: str, members: list[Member]) -> tuple[list[str], list[list[Member]]]:
    """Return the two variants among the runs `members`: the labels of the variants, and the runs of each variant.

    `name` is the folder, or FOLDER:KEY=VALUE[,KEY=VALUE], with which the user selected the runs. A label is the folder with the
    values that set a variant apart, in the same form. The runs of a variant have the same settings, apart from their names,
    seeds and numbers of steps. Raises UserError if there are not exactly two variants.
    """
    by_choice: dict[tuple[tuple[str, str], ...], list[Member]] = {}
    for member in members:
        by_choice.setdefault(_variant(member, members), []).append(member)
    groups = list(by_choice.values())
    folder, _ = _split(name)
    labels = [f"{folder}:{','.join('='.join(pair) for pair in variant)}" for variant in by_choice]
    if len(members) == 1:
        raise UserError(
            f"--paired compares two variants, but only {members[0].run.folder} was found: name a second run or folder, too"
        )
    if len(groups) != 2:
        runs = f"the runs in {folder}/" if name == folder else f"the runs of {name}"
        shown = "; ".join(labels[:_MAX_GROUPS_NAMED]) + ("; ..." if len(groups) > _MAX_GROUPS_NAMED else "")
        raise UserError(
            f"{runs} form {len(groups)} variants ({shown}), but --paired compares two: name two of these variants"
            if len(groups) > 2
            else f"{runs} differ only in the seed: name a second run or folder to compare them with"
        )
    return labels, groups


def _variant(member: Member, members: list[Member]) -> tuple[tuple[str, str], ...]:
    """Return the pairs (key, value) of `member` whose value differs from the value of at least one of `members`.

    A member is one of the runs that are compared, with its settings. If a sweep started all `members`, the keys are those of
    their overrides; otherwise, they are those of the settings without the starting points, which may differ between seeds. The
    name, the seed, the number of steps, and keys that do not change what a run learns are left out.
    """
    are_jobs = all(other.choices for other in members)
    ignored = {*_NOT_COMPARED, STEPS, *(() if are_jobs else STARTING_POINTS)}
    keys = dict.fromkeys(key for other in members for key in (other.choices if are_jobs else other.settings))
    pairs = [(key, member.value(key)) for key in keys if key not in ignored and decides_a_new_run(key)]
    return tuple(
        (key, value)
        for key, value in pairs
        if value is not None and any(other.value(key) != value for other in members)
    )


def _by_seed(members: list[Member], label: str, differ_in: Sequence[str]) -> dict[int, Member]:
    """Return the members of one group as a dict from seed to member. `label` is the name of the group for messages.

    Raises UserError if two members have the same seed, or differ in a setting that `differ_in` does not name.
    """
    group: dict[int, Member] = {}
    for member in members:
        differences = _differences(members[0], member, differ_in, in_group=True)
        if differences:
            key, (first, second) = next(iter(differences.items()))
            raise UserError(
                one_line(
                    f"the runs of {label} are not one variant: {key} is {first} in {members[0].run.folder} and {second} in "
                    f"{member.run.folder}",
                    800,
                )
                + f"; {_NAME_STEPS if key == STEPS else _how_to_select(members[0], label, key, first)}"
            )
        if member.seed in group:
            other = group[member.seed]
            named = _differences(other, member, (), in_group=False)  # only in settings that `differ_in` names
            key, (first, _) = next(iter(named.items()), ("", (None, None)))
            raise UserError(
                f"the variant {label} must have one run per seed, but {other.run.folder} and {member.run.folder} both have the "
                "seed "
                + (
                    f"{member.seed}, with different {key}: {_how_to_select(other, label, key, first)}"
                    if named
                    else f"{member.seed} and the same settings: move one of these two runs out of the folder"
                )
            )
        group[member.seed] = member
    return group


def _how_to_select(member: Member, label: str, key: str, value: Any) -> str:
    """Return the advice for a user who selected runs of several variants by `label`, which is FOLDER or FOLDER:KEY=VALUE.

    A variant consists of runs with equal settings, apart from the seed, and with the same training text. If the variants differ
    in the setting `key`, `value` is the value of this setting in the run `member`, and the advice is to add `key`=`value` to
    `label`, because this selects only the runs with this value. If they differ in the text, `value` is the hash of the text of
    `member`. No run can be selected by such a hash, and none should be selected by its number of steps, which may be a result
    of the training. The advice is then to name a folder that has the runs of only one variant.
    """
    if key == STEPS or not member.has(key, str(value)):  # without the key, `value` is the fingerprint of a text
        return "name a folder that has only the runs of one variant"
    narrower = f"{label}{',' if _split(label)[1] else ':'}{key}={value}"
    return f"to choose the runs with one of these values, give {quoted(narrower)} instead of {quoted(label)}"


def _differences(a: Member, b: Member, differ_in: Sequence[str], *, in_group: bool) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two runs, as {key: (value of a, value of b)}.

    The name and the seed are not compared. If both runs record a fingerprint of their text, the fingerprints are compared
    instead of the locations of the texts, such as data.path. The number of trained steps is left out if it follows from
    train.max_steps, which differs or is in `differ_in`, and if both runs are finished: then it is a result of early stopping.

    `differ_in` names the settings in which the user allows runs to differ. `in_group`: true if both runs belong to the same one
    of the two groups that `find_pairs` compares. Then the settings that `differ_in` names are left out, too. Otherwise, they
    are returned like all others.
    """
    same_text = a.text is not None and a.text == b.text
    ignored = _NOT_COMPARED | STARTING_POINTS | (TEXT_LOCATION if same_text or None not in (a.text, b.text) else set())
    keys = [key for key in {**a.settings, **b.settings} if key not in ignored]
    value_pairs = {key: (a.settings.get(key), b.settings.get(key)) for key in keys}
    value_pairs = {key: values for key, values in value_pairs.items() if str(values[0]) != str(values[1])}
    if a.text != b.text and not any(key.startswith("data.") for key in value_pairs):
        key = next((key for key in ("data.path", "data.url") if a.settings.get(key)), "data.source")
        locations = a.settings.get(key), b.settings.get(key)
        hashes = f"text {str(a.text)[:12]}", f"text {str(b.text)[:12]}"  # two contents of one file
        value_pairs[key] = hashes if locations[0] == locations[1] or None in locations else locations
    are_finished = all(member.run.facts().status == "finished" for member in (a, b))
    if are_finished or "train.max_steps" in value_pairs or "train.max_steps" in differ_in:
        value_pairs.pop(STEPS, None)  # the consequence of another setting, or of early stopping
    return {key: values for key, values in value_pairs.items() if not (in_group and _is_named(key, differ_in))}


def _changes_of_pair(a: Member, b: Member, differ_in: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the two runs of a pair differ, as {key: (value of a, value of b)}.

    Raises UserError if `differ_in` does not allow these differences (see `find_pairs`).
    """
    changes = _differences(a, b, differ_in, in_group=False)
    bases = (a.run.base, b.run.base)
    if bases[0] != bases[1]:
        changes["init_from"] = bases
    forks = (a.run.fork, b.run.fork)
    if forks[0] != forks[1]:
        changes["ckpt_path"] = forks
    distill_a, distill_b = a.run.settings().distill, b.run.settings().distill
    if distill_a is not None and distill_b is not None and distill_a.teachers != distill_b.teachers:
        changes["distill.teachers"] = (",".join(distill_a.teachers), ",".join(distill_b.teachers))
    others = {key: values for key, values in changes.items() if not _is_named(key, differ_in)}
    pair = f"{a.run.folder} and {b.run.folder} (seed {a.seed})"
    for key, (first, second) in others.items():
        if changes_data_order(key):
            raise UserError(
                one_line(f"{pair} read different batches, because {key} differs: {first} -> {second}", 800)
                + "; compare runs that read the same batches, or add --differ-in "
                f"{','.join([*differ_in, *others])} to compare them nevertheless"
            )
    if differ_in and others:
        key, (first, second) = next(iter(others.items()))
        raise UserError(
            one_line(f"{pair} differ in {key}, which --differ-in does not name: {first} -> {second}", 800)
            + f"; compare runs with the same {key}, or give --differ-in {','.join([*differ_in, *others])}"
        )
    if len(others) > 1:
        listed = "; ".join(f"{key}: {first} -> {second}" for key, (first, second) in others.items())
        raise UserError(
            one_line(f"{pair} differ in {len(others)} settings ({listed})", 800)
            + f": change one at a time, or add --differ-in {','.join(others)} to compare these changes together"
        )
    return changes


def _surroundings(a: Run, b: Run) -> list[str]:
    """Return the differences of two runs in code, package versions and hardware, such as `versions.torch: 2.6 -> 2.7`.

    A run may have been trained by several processes, one after the other. The last process of each run is compared.
    """
    starts = [start_of(read_provenance(run.folder), run.facts().step or 0) for run in (a, b)]
    return [text for text in recorded_changes(*starts) if text.startswith(_SURROUNDINGS)]


def _is_named(key: str, differ_in: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in differ_in)


def changes_data_order(key: str) -> bool:
    """Tell whether two runs with the same seed read different batches if they differ in the setting `key`."""
    return key in _ORDER_KEYS or key.startswith(_ORDER_GROUPS)
