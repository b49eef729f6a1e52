"""Check the settings of a training command before Hydra reads them: names, choices, and quotation marks.

Hydra would accept some wrong settings without effect, and refuse others with a message about its own grammar. Here they are
refused with advice. An override is Hydra's term for a setting on the command line, such as optimizer.lr=1e-3. In several
functions, the argument `recipe` is the name of the command, such as `train`, and `conf` is the folder of the configuration
files, conf/.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.other_tools import how_to_choose, question, same_option, why_not_needed, with_other_beta
from positron.cli.unused_settings import OWN_FILES, SOURCES_OF, TUNING_EXPERIMENTS, fits
from positron.settings import (
    BASE_GROUPS,
    BUDGET_KEYS,
    NOT_READ_BY,
    OWN_GROUPS,
    SHORT_KEYS,
    Recipe,
    all_keys,
    check_value,
    expected,
    is_group,
    is_list,
    is_list_of_texts,
    is_optional,
    is_text,
    unknown_key,
)
from positron.system.commands import command
from positron.system.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser

_MULTIPLE_CHOICE = ("monitor", "logger", "callbacks")  # groups that accept several choices at once
_EMPTY_CHOICE = {"logger": "files", "monitor": "none", "callbacks": "none"}  # the choice that adds nothing
# groups that may have no choice; without one, `distill` takes model and data from the first teacher
_OPTIONAL_GROUPS: dict[Recipe, tuple[str, ...]] = {
    **dict.fromkeys(OWN_GROUPS, ("experiment",)),
    "distill": ("experiment", "model", "data"),
}
# what a command takes from other runs, so that it cannot be set
_FROM_BASE = "the architecture and tokenizer of the base run, which init_from= names"
_FROM_OTHER_RUNS: dict[Recipe, str] = {"distill": "the tokenizer of the runs that teachers= names"}
_EXAMPLE: dict[Recipe, str] = {  # a setting of each command
    **dict.fromkeys(OWN_GROUPS, "init_from=quickstart"),
    "train": "train.max_steps=100",
    "distill": "teachers=quickstart",
}
# arguments of classes that the user names by _target_
UNCHECKED_KEYS = ("callbacks.", "optimizer.options.", "data.options", "data._target_")

# a text in quotes, as Hydra reads it: a backslash is an escape character only before a quote or another backslash
_QUOTED = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""


def checked_overrides(
    settings: Sequence[str], recipe: Recipe, conf: Path, *, own_conf: Path | None, is_sweep: bool
) -> list[str]:
    """Check the settings of a command that Hydra starts, and return them in the form that Hydra reads.

    `own_conf` is the folder of --config-dir, which may add choices to the groups of settings, or None. `is_sweep` tells whether
    -m is given. If a setting is wrong, raises UserError, which names the wrong word and what to type instead.
    """
    return _Reader(recipe, conf, own_conf, is_sweep=is_sweep).read(settings)


def read_settings(settings: Sequence[str], recipe: Recipe, conf: Path) -> list[str]:
    """Check settings that will be composed without Hydra's command line, and return them in the form that Hydra reads.

    So they can have neither --config-dir nor -m. Raises UserError as `checked_overrides` does.
    """
    return _Reader(recipe, conf, own_conf=None, can_sweep=False).read(settings)


def given_keys(overrides: Sequence[str]) -> dict[str, str]:
    """Return a dict from the key of each override to its value as text, without the overrides of Hydra itself."""
    pairs = (_split(override) for override in overrides)
    return {key: value for _, key, value in pairs if value is not None and not key.startswith("hydra")}


def experiment_keys(folders: Iterable[Path], given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings in the file of the chosen experiment, as a dict from keys, such as optimizer.lr, to values.

    `given` maps the keys of the command line to their values; its key `experiment` names the file, in the subfolder experiment
    of the first of the `folders` that has it. Without this key, the result is empty. If `given` replaces a whole group, as
    model=nano does, the experiment's settings of this group are left out. Settings outside a group, such as seed, are always
    left out.
    """
    paths = (folder / "experiment" / f"{given.get('experiment', '')}.yaml" for folder in folders)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    import yaml

    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {
        f"{group}.{name}": str(value)
        for group, values in settings.items()
        if isinstance(values, dict) and group != "hydra" and group not in given
        for name, value in values.items()
    }


def groups_of(conf: Path, own_conf: Path | None = None) -> dict[str, list[str]]:
    """Return the choices of each group of settings: the names of the YAML files in the group's folder in `conf`.

    `own_conf` is the user's folder of configuration files, or None. If it has a folder with the name of the group, the YAML
    files in that folder are choices, too. Files in subfolders of that folder also count: the file a/b.yaml is the choice a/b.
    """
    return {
        group.name: [
            *sorted(path.stem for path in group.glob("[!_]*.yaml")),
            *(sorted(_own_choices(own_conf / group.name)) if own_conf else ()),
        ]
        for group in sorted(conf.iterdir())
        if group.is_dir()
    }


def _own_choices(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.yaml"))


def similar_choice(group: str, name: str, choices: Sequence[str]) -> str | None:
    """Return "did you mean GROUP=CHOICE?" for the choice that is most similar to `name`, or None if no choice is similar."""
    similar = difflib.get_close_matches(name.removesuffix(".yaml"), choices, 1, 0.6)
    return f"did you mean {group}={similar[0]}?" if similar else None


def _split(word: str) -> tuple[str, str, str | None]:
    """Split an override into its prefix (`+`, `++`, `~` or empty), key, and value (None without `=`)."""
    prefix = re.match(r"\+\+|\+|~|", word)
    assert prefix is not None
    key, equal, value = word[prefix.end() :].partition("=")
    return prefix[0], key.strip(), value if equal else None


class _Reader:
    def __init__(
        self, recipe: Recipe, conf: Path, own_conf: Path | None, *, is_sweep: bool = False, can_sweep: bool = True
    ) -> None:
        self.recipe, self.own_conf = recipe, own_conf
        self.is_sweep = is_sweep  # whether -m is given
        self.can_sweep = can_sweep  # whether the command has the option -m
        self.groups, self.conf = groups_of(conf, own_conf), conf
        self.optional = _OPTIONAL_GROUPS[recipe]
        self.keys = set(all_keys())
        self.chosen: dict[str, str] = {}

    def read(self, settings: Sequence[str]) -> list[str]:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create()
        words = [self._word(word, parser) for word in settings]
        self._refuse_keys_of_other_loggers(words)
        # null is the default of an optional group, but Hydra does not accept it as a choice
        return [word for word in words if word not in [f"{group}=null" for group in self.optional]]

    def _word(self, word: str, parser: OverridesParser) -> str:
        prefix, key, value = _split(word)
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            return word
        if prefix == "~":
            raise UserError(self._undeletable(key))
        if value is None:
            raise UserError(self._without_value(word))
        key = SHORT_KEYS.get(key, key)
        group, _, package = key.partition("@")
        if group in self.groups and not package:
            self._check_command(key)
            self._check_group(key, value, parser)
            return f"{key}={value}"
        if key.startswith(UNCHECKED_KEYS):
            _refuse_lost_backslash(key, value)
            return f"++{key}={value}"
        if key not in self.keys:
            raise UserError(self._unknown(key, value))
        self._check_command(key)
        return f"{key}={self._value(key, value, parser)}"

    def _check_command(self, key: str) -> None:
        """Raise UserError if the command does not read the setting `key`.

        For example, the key belongs to another command, or the command takes this setting from the base run or the teachers.
        """
        if self._is_unread(key):
            remedy = "give train.max_time=, or train.max_steps=" if key in BUDGET_KEYS else f"leave {key}= out"
            raise UserError(f"{self._why_unread(key)}: {remedy}")

    def _is_unread(self, key: str) -> bool:
        return key.split(".")[0] in NOT_READ_BY[self.recipe]

    def _why_unread(self, key: str) -> str:
        """Return why the command does not read `key`."""
        top, own_command = key.split(".")[0], command(self.recipe)
        if top in BASE_GROUPS:
            return f"{own_command} takes {_FROM_OTHER_RUNS.get(self.recipe, _FROM_BASE)}"
        if top in BUDGET_KEYS:
            return f"{key}= is not read by {own_command}"
        if top == "ckpt_path":
            return (
                f"{own_command} starts with the weights of the run that init_from= names, and the same command continues "
                "a run"
            )
        reader = next(recipe for recipe, groups in OWN_GROUPS.items() if top in groups)
        return f"{key}= is read by {command(reader)}, not by {own_command}"

    def _check_group(self, group: str, text: str, parser: OverridesParser) -> None:
        choices = self.groups[group]
        self.chosen[group] = text  # of two choices of a group, the last one counts
        if text == "null" and group in self.optional:
            return
        parsed = _parsed(parser, group, text)
        if parsed is None:
            raise UserError(self._no_choice(group, text))
        if parsed.is_sweep_override():
            if not self.is_sweep:
                raise UserError(self._several_values(group, text, parsed))
            value = parsed.value()
            names = ["null" if name is None else str(name) for name in getattr(value, "list", [])]
        else:
            value = parsed.value()
            names = [str(name) for name in value] if isinstance(value, list) else [text.strip("'\"")]
            if isinstance(value, list) and group not in _MULTIPLE_CHOICE:
                usable = self._usable(group)
                example = next((f"such as {group}={name}" for name in reversed(names) if name in usable), None)
                raise UserError(
                    f"{group}={text} is a list: give one choice, {example or 'one of ' + ', '.join(usable)}"
                )
        for name in names:
            if name.startswith("[") and name.endswith("]") and group in _MULTIPLE_CHOICE:
                continue
            if name not in choices:
                raise UserError(self._no_choice(group, name))
            if group == "experiment" and not fits(self.recipe, group, name, self.conf):
                reader = next((recipe for recipe, names in TUNING_EXPERIMENTS.items() if name in names), "train")
                remedy = (
                    f"choose from {', '.join(self._usable(group))}" if self._usable(group) else "leave experiment= out"
                )
                raise UserError(
                    f"experiment={name} is an experiment of {command(reader)}, not of {command(self.recipe)}: {remedy}"
                )

    def _no_choice(self, group: str, name: str) -> str:
        if group == "device" and name == "gpu":
            return "there is no device=gpu: give device=cuda, or device=mps on a Mac"
        if (
            group == "experiment"
            and name.endswith((".yaml", ".yml"))
            and (Path(name).name != name or Path(name).is_file())
        ):
            return f"there is no experiment={name}: {how_to_choose(Path(name))}"
        similar = similar_choice(group, name, self.groups[group])
        hint = f"{similar} Choices: " if similar else "choose from "
        if group == "data" and set(name) & set("./~\\"):
            source = next(source for source in SOURCES_OF[self.recipe] if source in OWN_FILES)
            hint = f"give data={source} data.path={name} to read a file of your own; choices: "
        if group == "callbacks" and not similar:
            hint = f"for a callback of your own, write FOLDER/callbacks/{name}.yaml and add --config-dir FOLDER"
            return f"there is no callbacks={name}: {hint}, or leave callbacks= out"
        if name == "null":
            empty_choice = _EMPTY_CHOICE.get(group)
            hint = (
                f"give {group}={empty_choice} instead; choices: "
                if empty_choice
                else f"every run of a sweep over {group}= needs a choice; choices: "
                if group in self.optional
                else f"every run needs a choice of {group}=; choices: "
            )
        other = "; optimizer=custom optimizer._target_=torch.optim.SGD uses any other optimizer of torch"
        return (
            f"there is no {group}={name}: {hint}{', '.join(self._usable(group))}{other if group == 'optimizer' else ''}"
        )

    def _usable(self, group: str) -> list[str]:
        """Return those choices of the setting `group`, such as `data`, that the command can use.

        For example, `positron sft` can use only those choices of `data` that provide conversations.
        """
        return [choice for choice in self.groups[group] if fits(self.recipe, group, choice, self.conf)]

    def _value(self, key: str, text: str, parser: OverridesParser) -> str:
        """Check `text`, the value that the user typed for the setting `key`, and return it in the form that Hydra reads.

        If `key` expects a text, quotation marks are added where Hydra would refuse the value or read it as another type. If
        `key` expects a list of texts, brackets are added: teachers=a,b is one list and not a sweep over two values. Raises
        UserError if Hydra cannot read the value, or if `key` cannot have it. For example, several values such as 1,2 are
        refused without -m, which starts a sweep.
        """
        if is_list_of_texts(key):
            return f"[{','.join(quoted(name) for name in _listed(key, text, parser) if name)}]"
        if not is_text(key):
            _refuse_lost_backslash(key, text)
        parsed = _parsed(parser, key, text)
        if parsed is None:
            if is_text(key):
                return quoted(text)
            raise UserError(f"{key}='{text}' cannot be read; {expected(key)}")
        if parsed.is_sweep_override():
            if self.is_sweep:
                self._check_values(key, parsed)
                if is_text(key) and "\\" in text and not set(text) & set("'\"()[]{}"):  # such as C:\a.txt,C:\b.txt
                    return ",".join(quoted(value.strip()) for value in text.split(","))
                return text
            if is_text(key) and key != "name":
                return quoted(text)
            if is_list(key):
                raise UserError(f"{key}={text}: write a list in brackets: '{key}=[{text}]'")
            raise UserError(self._several_values(key, text, parsed))
        value = parsed.value()
        is_needed = key in OWN_GROUPS[self.recipe]  # null belongs to the other commands, which do not read the group
        if is_group(key) and not (isinstance(value, dict) or (value is None and is_optional(key) and not is_needed)):
            raise UserError(f"{key}={text} is not possible: {expected(key)}")
        # Hydra strips blanks, and removes the backslashes of \\server, \[ and similar texts
        is_quoted = text == text.strip() and text[:1] in ("'", '"')
        as_is = value is None or value == text or is_quoted
        if is_text(key) and not as_is:
            return quoted(text)
        return text

    def _check_values(self, key: str, parsed: Any) -> None:
        """Raise UserError if a value of a sweep has the wrong type or range, before the jobs with the other values are trained.

        `parsed` is the override of `key`, as Hydra parsed it. Only values that it lists, as in 1,2, are checked. A range or an
        interval of numbers has no list, and is not checked.
        """
        for value in getattr(parsed.value(), "list", []):  # a range of numbers or an interval has no list
            text = getattr(value, "text", value)
            if not is_text(key) and "${" not in str(text):
                check_value(key, text)

    def _several_values(self, key: str, text: str, parsed: Any) -> str:
        remedies = []
        if parsed.is_discrete_sweep():
            several, sweep = "gives several values", "add -m to train one run for each"
            if key in _MULTIPLE_CHOICE and "(" not in text:
                remedies.append(f"give '{key}=[{text}]' to use all of them in one run")
        else:
            several, sweep = "is an interval, from which only a search takes values", "add -m hydra/sweeper=optuna"
        if self.can_sweep:
            remedies.append(sweep)
        remedy = f"{', '.join(remedies)}, or give one value" if remedies else "give one value"
        return f"{key}={text} {several}: {remedy}"

    def _undeletable(self, key: str) -> str:
        if key in self.groups:
            empty_choice = _EMPTY_CHOICE.get(key)
            remedy = f"give {key}={empty_choice}" if empty_choice else f"leave ~{key} out, or choose another {key}="
            return f"~{key} would delete the group {key}, which is not possible: {remedy}"
        if key in self.keys:
            null = f", or give {key}=null" if is_optional(key) else ""
            return f"~{key} would delete a key that every run has: leave ~{key} out{null}"
        return unknown_key(key, self.recipe)

    def _without_value(self, word: str) -> str:
        if word in self.keys or word in self.groups or word in SHORT_KEYS:
            return f"{word} needs a value: give {word}=VALUE, without blanks around the ="
        for group in () if self._is_own_run(word) else ("experiment", "model", "data"):
            if group not in NOT_READ_BY[self.recipe] and word in self._usable(group):
                return f"'{word}' is not a setting: did you mean {group}={word}?"
        key, colon, value = word.partition(":")
        if colon and (key in self.keys or key in self.groups):
            return f"'{word}' is not a setting: did you mean {key}={value.strip()}?"
        return f"{repr(word) if word else 'an empty word'} is not a setting: {self._meaning_of(word)}"

    def _meaning_of(self, word: str) -> str:
        """Return a hint for a word without `=`, such as "did you mean experiment=quickstart?".

        The word may name a run, a file or an experiment; for any other word, the hint is a general one.
        """
        from positron.run.folder import OUTPUTS, Run

        name, is_own = word.removeprefix(f"{OUTPUTS}/"), self._is_own_run(word)
        if is_own and self.recipe == "train":
            return f"did you mean name={name}, to continue this run, or init_from={name}, to start a new run with its weights?"
        if is_own or _is_file(Run(Path(word)).config_path):
            return f"did you mean {'teachers' if self.recipe == 'distill' else 'init_from'}={word}?"
        if _is_file(word):
            source = next(source for source in SOURCES_OF[self.recipe] if source in OWN_FILES)
            return f"did you mean data={source} data.path={word}?"
        if word.endswith((".py", ".yaml", ".yml")):
            return "ready-made settings are chosen by name, such as experiment=shakespeare_char"
        similar = difflib.get_close_matches(word, self._usable("experiment"), 1, 0.75)
        return (
            f"did you mean experiment={similar[0]}?"
            if similar
            else f"settings are given as key=value, such as {_EXAMPLE[self.recipe]}"
        )

    def _is_own_run(self, word: str) -> bool:
        """Tell whether `word` is the name or the folder of a run below outputs/ in the current folder."""
        from positron.run.folder import OUTPUTS, Run

        name = word.removeprefix(f"{OUTPUTS}/")
        return bool(name) and _is_file(Run(OUTPUTS / name).config_path)

    def _unknown(self, key: str, value: str) -> str:
        last = key.rpartition(".")[2]
        if betas := with_other_beta(key, value):
            return f"unknown key {key}: did you mean {betas}?"
        if reason := why_not_needed(key, self.recipe):
            return f"unknown key {key}: there is no setting for it, because {reason}: leave it out"
        same_word = [leaf for leaf in all_keys() if leaf.rpartition(".")[2] == last]
        other = same_option(key, self.recipe)
        if other is None and all(map(self._is_unread, same_word)):
            other = next(iter(same_word), None)
        if other is not None and self._is_unread(other):
            steps = "give train.max_steps=, the number of optimizer steps, instead"
            remedy = steps if last.endswith(("epochs", "epoch")) else f"leave {key}= out"
            return f"unknown key {key}: {self._why_unread(other)}: {remedy}"
        near_group = difflib.get_close_matches(key, self.groups, 1, 0.75)
        if other is not None and not near_group:
            return f"unknown key {key}: {question(other, value)}"
        if near_group and "." not in key:
            return f"unknown key {key}: did you mean {near_group[0]}?"
        return unknown_key(key, self.recipe)

    def _refuse_keys_of_other_loggers(self, words: Sequence[str]) -> None:
        chosen = self.chosen.get("logger", "")
        for word in words:
            _, key, value = _split(word)
            for logger in ("wandb", "tensorboard"):
                if key.startswith(f"logger.{logger}.") and logger not in chosen and self.own_conf is None:
                    experiment = self.chosen.get("experiment")
                    if experiment is None or experiment in self.groups["experiment"]:
                        others = [name for name in chosen.strip("[]'\"").split(",") if name not in ("", "files")]
                        remedy = f"give 'logger=[{','.join([*others, logger])}]'" if others else f"add logger={logger}"
                        raise UserError(f"{key}={value} is read only with logger={logger}: {remedy}")


def _is_file(path: str | Path) -> bool:
    return os.path.isfile(path)  # unlike Path.is_file, false for a name that is too long


def _parsed(parser: OverridesParser, key: str, text: str) -> Any:
    from hydra.errors import HydraException

    try:
        return parser.parse_override(f"{key}={text}")
    except HydraException:
        return None


def _listed(key: str, text: str, parser: OverridesParser) -> list[str]:
    """Return the texts in `text`, such as `a,'b, c'`, with or without brackets around it. A text in quotes may have commas."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    words = (word.strip() for word in re.findall(rf"\s*({_QUOTED}(?=\s*(?:,|\Z))|[^,]*)(?:,|\Z)", inner, re.DOTALL))
    return [
        _parsed(parser, key, word).value() if re.fullmatch(_QUOTED, word, re.DOTALL) else word.strip("'\"")
        for word in words
    ]


def _refuse_lost_backslash(key: str, text: str) -> None:
    r"""Raise UserError for a text such as `{pattern:\[a\]}`, which Hydra reads without its backslashes.

    In quotes, Hydra keeps them. A single text never gets here, because it is put in quotes for the user.
    """
    pieces = re.split(rf"({_QUOTED}|\$\{{[^}}]*\}})", text, flags=re.DOTALL)
    if any(re.search(r"\\[\\()\[\]{}:=, \t]", piece) for piece in pieces[::2]):
        pieces[::2] = [re.sub(r"(?:\\.?|[^\\,:\[\]{}])+", _in_quotes, piece) for piece in pieces[::2]]
        raise UserError(
            f'{key}={text} would lose a backslash: put the text with the backslash in quotes, as in "{key}={"".join(pieces)}"'
        )


def _in_quotes(match: re.Match[str]) -> str:
    return quoted(match[0].strip()) if "\\" in match[0] else match[0]


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, in which a backslash is an escape character only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
