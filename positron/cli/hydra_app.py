"""Compose the files in `conf/` and the command line to a configuration with Hydra, and translate the errors of Hydra."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from positron.cli.overrides import groups_of, similar_choice
from positron.settings import Recipe, unknown_key
from positron.system.errors import UserError, why_not_yaml
from positron.system.exits import errors_as_one_line
from positron.system.paths import relative_to_here
from positron.version import __version__

_PLUGINS = {  # choice of hydra/launcher= or hydra/sweeper= -> package that provides it
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "optuna": "hydra-optuna-sweeper",
}


def conf_folder() -> Path:
    """Return the folder `conf/` of the repository, or its copy inside the installed package."""
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def conf_folders() -> list[Path]:
    """Return the folders in which Hydra looks for a file, in its order: `conf/`, and the folder of --config-dir, if given."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # called from Python, where there is no --config-dir
        return [conf_folder()]
    return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]


@contextmanager
def hydra_errors_as_ours() -> Iterator[None]:
    """Translate errors of Hydra and OmegaConf to UserError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("hydra", "omegaconf")):
            raise UserError(_hydra_reason(error)) from error
        if type(error).__module__.startswith("yaml"):
            raise UserError(_yaml_reason(error)) from error
        if isinstance(error, UnicodeDecodeError) and (path := _file_being_read(error)):
            raise UserError(f"{path} is not UTF-8: save it as UTF-8 without a byte order mark") from error
        if _is_raised_by_defaults(error):
            raise UserError(_defaults_reason(error)) from error
        raise


def _file_being_read(error: Exception) -> str | None:
    """Return the configuration file that Hydra was reading when `error` was raised, or None if it was reading none."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "hydra._internal.core_plugins.file_config_source":
            return relative_to_here(Path(frame.f_locals["full_path"]))
    return None


def _is_raised_by_defaults(error: Exception) -> bool:
    """Tell whether an error that is not one of Hydra's classes was raised while Hydra read the `defaults:` of the files."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "hydra._internal.defaults_list" for frame in frames)


def _defaults_reason(error: Exception) -> str:
    """Return the message for the user about `defaults:` that Hydra cannot read, or that never end."""
    if isinstance(error, RecursionError):
        return (
            "the `defaults:` of a file in --config-dir name this file itself, or a file that leads back to it: remove this "
            "entry"
        )
    return f"{' '.join(str(error).split())}: write each entry as a line such as `- override /model: nano`"


def _hydra_reason(error: BaseException) -> str:
    """Return the message for the user about an error of Hydra.

    For an unknown key, Hydra advises `+key=`, which Positron would refuse; the message names the most similar key instead.
    """
    import re

    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or "").split())
    unknown = re.match(r"Could not override '([^']+)'", text) or re.match(r"Key '([^']+)' is not in struct", text)
    if unknown and ("not in struct" in text or "not in struct" in cause or "not found" in text.lower()):
        return unknown_key(unknown[1])
    missing = re.match(
        r"In '[^']*': Could not find '([^']+)'.*?Available options in '[^']*': (.*?)(?: Config search|$)", text
    )
    if missing:
        group, _, name = missing[1].rpartition("/")
        if group.startswith("hydra/") and name in _PLUGINS:
            return f"{group}={name} needs the package {_PLUGINS[name]}: pip install {_PLUGINS[name]}"
        choices = missing[2].split()
        hint = similar_choice(group, name, choices) or f"choose from {', '.join(choices)}"
        return f"there is no {group}={name}: {hint}"
    if reason := _entry_reason(text):
        return reason
    if place := re.search(r" full_key: (\S+)", text):
        return f"{place[1]}=: {_reference_reason(text[: place.start()])}"
    if no_file := re.match(r"Cannot find primary config '([^']*)'", text):
        return f"--config-name: there is no file {no_file[1]}.yaml in conf/ or in the folder of --config-dir: correct the name"
    if (no_group := re.match(r"Error merging override (.*)", text)) and cause.startswith("Cannot merge DictConfig"):
        key = no_group[1].partition("=")[0]
        return (
            f"{no_group[1]} is not possible, because {key} is a group of settings: give its keys one by one, as "
            f"{key}.NAME=VALUE"
        )
    return text


def _entry_reason(text: str) -> str | None:
    """Return the message for the user about a wrong entry in the `defaults:` of a file, or None if `text` is about no entry.

    `text` is the message of Hydra, which contains names in Hydra's own notation, and no advice that works in an experiment.
    """
    import re

    if twice := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+: (.*)'$", text):
        return (
            f"the `defaults:` of a file choose {twice[1]}: {twice[2]}, although {twice[1]} has a choice already: write "
            f"`- override /{twice[1]}: {twice[2]}` at the end of this list"
        )
    if not (entry := re.match(r"In '([^']*)': Could not (override|find|load) '([^']*)'", text)):
        return None
    file, verb, name = entry[1], entry[2], entry[3]
    folder, groups = file.rpartition("/")[0], groups_of(conf_folder())
    place = f"in the `defaults:` of {file}.yaml"
    if verb == "load":
        return f"{place}: there is no file {name}.yaml in conf/ or in the folder of --config-dir: correct the name"
    group = name.partition("@")[0] if verb == "override" else name.rpartition("/")[0]
    if (
        group.removeprefix(f"{folder}/") in groups and group not in groups
    ):  # without a slash, a name is relative to the file
        group = group.removeprefix(f"{folder}/")
        choice = name.rpartition("/")[2] if verb == "find" else "NAME"
        return f"{place}: the entry of {group} needs a slash: write `- override /{group}: {choice}` at the end of this list"
    if group in groups and f"@{folder}." in name:
        return (
            f"{file}.yaml does not begin with the line `# @package _global_`: add this line, so that its settings are those "
            "of the run"
        )
    if group in groups:
        return f"{place}: this command has no choice of {group}: remove the entry, or use the file with another command"
    similar = difflib.get_close_matches(group, groups, 1, 0.6)
    hint = f"did you mean {similar[0]}?" if similar else f"choose from {', '.join(groups)}"
    return f"{place}: there is no group {group}: {hint}"


def _yaml_reason(error: Any) -> str:
    """Return the message for the user about a file of --config-dir or conf/ that is not valid YAML."""
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}" if mark is not None else "a file of --config-dir or conf/"
    return f"{place} {why_not_yaml(error)}"


def _reference_reason(text: str) -> str:
    """Return the message for the user about a wrong value of the form ${...}; `text` is the message of OmegaConf."""
    import re

    if no_key := re.match(r"Interpolation key '([^']*)' not found", text):
        if no_key[1] in os.environ:
            variable = f"${{oc.env:{no_key[1]}}}"
            return f"${{{no_key[1]}}} names no key: write {variable} for the environment variable, or a plain value"
        return f"${{{no_key[1]}}} names no key: write a full key, such as ${{train.max_steps}}, or a plain value"
    if no_resolver := re.match(r"Unsupported interpolation type (\S+)", text):
        return (
            f"there is no function {no_resolver[1]} for ${{{no_resolver[1]}:...}}: give a plain value, or ${{oc.env:NAME}} "
            "for an environment variable"
        )
    if no_variable := re.search(r"Environment variable '([^']*)' not found", text):
        return f"the environment variable {no_variable[1]} is not set: set it, or give a plain value"
    return text


def run_hydra(job: Callable[[Any], Any], recipe: Recipe) -> None:
    """Compose `conf/<recipe>.yaml` and the command line to a configuration, and call `job` with this configuration.

    In a sweep, `job` is called once for each run of the sweep. An error of `job` is kept and raised after Hydra has returned,
    because Hydra would print the error in its own format. KeyboardInterrupt and SystemExit are raised at once, so that Ctrl-C
    or SIGTERM also ends a sweep. With --help or --version, only the help or the version is printed.
    """
    failures: list[BaseException] = []
    typed = sys.argv

    def guarded(cfg: Any) -> Any:
        sys.argv = typed  # the run records this command line, and Lightning starts further processes with it
        try:
            return job(cfg)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failures.append(error)
            return None

    with errors_as_one_line():
        if {"--version"} & set(typed[1:]):
            print(f"Positron {__version__}")
            return
        if {"--help", "-h"} & set(typed[1:]):
            from positron.cli.help_text import help_text

            print(help_text(recipe, conf_folder()))
            return
        from positron.cli.command_line import read_command_line
        from positron.cli.defaults import register_defaults

        line = read_command_line(typed[1:], recipe, conf_folder())
        import hydra

        register_defaults()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors of composing instead of printing them
        sys.argv = [typed[0], *line.words]
        try:
            with hydra_errors_as_ours():
                hydra.main(config_path=str(conf_folder()), config_name=recipe, version_base="1.3")(guarded)()
        finally:
            sys.argv = typed
        if failures:
            with hydra_errors_as_ours():
                raise failures[0]
