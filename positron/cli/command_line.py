"""Sort the words of a training command into options and settings, and check both before Hydra reads them.

In several functions, the argument `recipe` is the name of the command, such as `train`, and `conf` is the folder of the
configuration files, conf/.
"""

from __future__ import annotations

import codecs
import difflib
import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from positron.cli.other_tools import advice, how_to_choose, same_option, why_not_needed, with_other_beta
from positron.cli.overrides import checked_overrides, groups_of
from positron.settings import NOT_READ_BY, SHORT_KEYS, Recipe, all_keys, is_possible, keys_read_by
from positron.system.commands import command
from positron.system.errors import UserError

_OPTIONS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--experimental-rerun",
}
_PRINTED = ("job", "hydra", "all")  # values of --cfg
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # values of --info
_OPTIONS_WITHOUT_VALUE = {
    "--resolve",
    "--run",
    "-r",
    "--multirun",
    "-m",
    "--hydra-help",
    "--info",
    "-i",
}


@dataclass(frozen=True)
class CommandLine:
    """Hold a checked command line: the `options` of Hydra, and the settings (`overrides`) in the form that Hydra reads."""

    options: list[str]
    overrides: list[str]

    @property
    def is_sweep(self) -> bool:
        """Tell whether -m asks for several runs."""
        return bool({"-m", "--multirun"} & set(self.options))

    @property
    def words(self) -> list[str]:
        """Return all words of the command line: first the options, then the settings."""
        return [*self.options, *self.overrides]


def read_command_line(words: Sequence[str], recipe: Recipe, conf: Path) -> CommandLine:
    """Check the words after `positron RECIPE` and sort them into options and settings.

    `conf` is the folder of Positron's configuration files. If a word is wrong, raises UserError, whose message names the word
    and what to type instead.
    """
    options, settings = _options(words, recipe, conf)
    is_sweep = CommandLine(options, []).is_sweep
    own_conf = _own_conf(options)
    if own_conf is not None:
        _refuse_hidden_files(own_conf, conf)
        _refuse_byte_order_mark(own_conf, settings)
    return CommandLine(options, checked_overrides(settings, recipe, conf, own_conf=own_conf, is_sweep=is_sweep))


def _own_conf(options: Sequence[str]) -> Path | None:
    """Return the folder of --config-dir, or None without this option. Raises UserError if the folder does not exist."""
    folders = [Path(value) for option, value in pairwise(options) if option in ("--config-dir", "-cd")]
    if not folders:
        return None
    if folders[-1].is_file():
        raise UserError(
            f"--config-dir: {folders[-1]} is a file: give the folder that contains experiment/, and choose the file by "
            "experiment=NAME"
        )
    if not folders[-1].is_dir():
        raise UserError(f"--config-dir: there is no folder {folders[-1]}: correct the path")
    return folders[-1]


def _refuse_hidden_files(own_conf: Path, conf: Path) -> None:
    """Raise UserError for a file of --config-dir that Hydra would not read, because `conf` has another file of this name."""
    for path in sorted(conf.glob("*/**/*.yaml")):
        own = own_conf / path.relative_to(conf)
        if own.is_file() and not filecmp.cmp(own, path, shallow=False):
            choice = path.relative_to(conf).with_suffix("")
            raise UserError(
                f"--config-dir: {own} would not be read, because {choice.parent.as_posix()}={choice.name} chooses a file of "
                "Positron: rename your file"
            )


def _refuse_byte_order_mark(own_conf: Path, settings: Sequence[str]) -> None:
    """Raise UserError if an experiment that the settings choose begins with a byte order mark.

    Hydra does not see the line `# @package _global_` behind such a mark, which some editors of Windows write.
    """
    chosen = [word.removeprefix("experiment=") for word in settings if word.startswith("experiment=")]
    for name in ",".join(chosen).split(","):
        path = own_conf / "experiment" / f"{name.strip()}.yaml"
        if path.is_file() and path.read_bytes().startswith(codecs.BOM_UTF8):
            raise UserError(
                f"--config-dir: {path} begins with a byte order mark: save it as UTF-8 without a byte order mark"
            )


def _options(words: Sequence[str], recipe: Recipe, conf: Path) -> tuple[list[str], list[str]]:
    options: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equal, value = word.partition("=")
        if not word.startswith("-"):
            settings.append(word)
        elif word in _OPTIONS_WITHOUT_VALUE:
            options.append(word)
            if word in ("--info", "-i"):  # without a value, Hydra would take the next setting for it
                options.append(rest.pop(0) if rest and rest[0] in _INFO else "all")
        elif name in _OPTIONS_WITH_VALUE or name.removeprefix("--") in SHORT_KEYS:
            if not equal and not rest:
                raise UserError(f"{name} needs a value; {command(recipe, '--help')} shows all options")
            value = value if equal else rest.pop(0)
            if name in ("--cfg", "-c") and value not in _PRINTED:
                raise UserError(f"{name} cannot print {value}: choose from {', '.join(_PRINTED)}")
            if name in _OPTIONS_WITH_VALUE:
                options += [name, value]
            else:
                settings.append(f"{name.removeprefix('--')}={value}")
        else:
            following = rest[0] if rest and not equal and not rest[0].startswith("-") and "=" not in rest[0] else None
            raise UserError(_unknown_option(name, value if equal else following, recipe, conf))
    return options, settings


def _unknown_option(name: str, value: str | None, recipe: Recipe, conf: Path) -> str:
    key = same_option(name, recipe)
    bare = name.strip("-").replace("-", "_")
    if bare == "resume" or (bare, value) == ("init_from", "resume"):
        return f"there is no option {name}: to continue a run, give the command with which it was started again"
    if key == "experiment" and value and value.endswith((".yaml", ".yml")):
        return f"there is no option {name}: {how_to_choose(Path(value))}"
    if betas := with_other_beta(bare, value):
        return f"there is no option {name}; settings are given as key=value: write {betas}"
    if value in groups_of(conf).get(bare, ()):
        return f"there is no option {name}; settings are given as key=value: write {bare}={value}"
    if reason := why_not_needed(name, recipe):
        return f"there is no option {name}, and no setting for it, because {reason}: leave it out"
    if key is None and bare in all_keys():
        key = bare
    if key is None:
        same_ending = [leaf for leaf in (*keys_read_by(recipe), *all_keys()) if leaf.rsplit(".", 1)[-1] == bare]
        key = same_ending[0] if same_ending else None
    if key is None:
        similar = difflib.get_close_matches(name, ["--multirun", "--cfg", "--resolve", "--help", "--version"], 1, 0.75)
        hint = f"did you mean {similar[0]}?" if similar else f"{command(recipe, '--help')} lists options and settings"
        return f"there is no option {name}: {hint}"
    is_same = key.replace(".", "_").endswith(bare) and key.split(".")[0] not in NOT_READ_BY[recipe]
    # a possible choice of a group was returned above
    takes_value = value and is_same and key not in groups_of(conf) and is_possible(key, value)
    setting = f"{key}={value}" if takes_value else advice(key, value)
    return f"there is no option {name}; settings are given as key=value: write {setting}"
