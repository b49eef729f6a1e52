"""Compose the files in `conf/` and the settings of a command line, or of a call from Python, to the configuration of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.cli.custom_data import write_custom_data
from positron.cli.hydra_app import conf_folder, conf_folders, hydra_errors_as_ours
from positron.cli.overrides import experiment_keys, given_keys, groups_of, read_settings
from positron.cli.preflight import check
from positron.cli.teachers import take_from_teachers
from positron.cli.unused_settings import refuse_unread
from positron.config import Asked, RunConfig
from positron.interop.names import needs_import
from positron.run.folder import OUTPUTS
from positron.settings import BESIDE_VALUES, Recipe, WrongSetting, from_dict, recipe_of
from positron.system.console import one_line
from positron.system.errors import UserError
from positron.system.paths import relative_to_here


@dataclass(frozen=True)
class Request:
    """Hold the composed settings of a run (`values`), the settings that the user gave (`asked`), and the user's callbacks."""

    values: dict[str, Any]  # the settings of the run, nested
    asked: Asked
    callbacks: Mapping[str, Any] | None  # the user's callbacks by name; None if the configuration has no `callbacks`

    def refuse_unread(self, *, is_sweep: bool = False, swept: Iterable[str] = ()) -> None:
        """Raise UserError if the user gave a setting that the run would not read; see `unused_settings.refuse_unread`.

        In a sweep, `swept` contains the keys with several values.
        """
        experiment = experiment_keys(conf_folders(), self.asked.given)
        recipe = recipe_of(self.values)
        refuse_unread(
            self.values, self.asked.given, experiment=experiment, recipe=recipe, is_sweep=is_sweep, swept=swept
        )

    def configured(self, configure: Callable[[dict[str, Any]], RunConfig]) -> RunConfig:
        """Return the configuration that `configure` builds from `values`.

        Raises UserError if the values contradict each other.
        """
        try:
            config = configure(self.values)
        except WrongSetting as error:
            place = None if error.key in self.asked.given else _place_of(error.key, self.asked.given)
            if place is None:
                raise
            raise UserError(f"in {place}: {error}") from error
        if self.asked.auto_size and config.budget is None:
            auto = "auto_size=true" if "auto_size" in self.asked.given else "model=auto"
            raise UserError(
                f"{auto} needs budget=, the training time for which the best model is chosen, such as budget=10min"
            )
        return config

    def settle(self, configure: Callable[[dict[str, Any]], RunConfig]) -> tuple[RunConfig, Path]:
        """Return the run's configuration and its folder below outputs/.

        `configure` builds the configuration from the attribute `values`. If init_from= names a model that was trained
        elsewhere, the model is imported first. Raises UserError if the run cannot start (see `preflight`), or if the user gave
        a setting that the run would not read.
        """
        origin = self.values.get("init_from")
        if origin is not None and needs_import(str(origin)):
            # imported now, because the checks below read the architecture from the run
            from positron.interop.importing import import_source_run

            self.values["init_from"] = import_source_run(str(origin))
        config = self.configured(configure)
        self.refuse_unread()
        folder = OUTPUTS / config.name
        return check(config, folder, self.asked), folder


def read_request(composed: Any, overrides: Sequence[str]) -> Request:
    """Build a request from the configuration that Hydra composed with `overrides`.

    Replaces a leading `~` in paths, writes the data of data=custom to a file, and fills in the settings that a distillation
    takes from its teachers (see `take_from_teachers`). Raises UserError if one of these steps fails.
    """
    from omegaconf import OmegaConf

    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    given = given_keys(overrides)
    _refuse_values_in_place_of_groups(values, given)
    expand_paths(values)
    write_custom_data(values)
    callbacks = values.pop("callbacks", None)
    extra_values = {key: values.pop(key) for key in BESIDE_VALUES if key in values}
    take_from_teachers(values, given)
    return Request(values, from_dict(Asked, {**extra_values, "given": given}), callbacks)


def _refuse_values_in_place_of_groups(values: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Raise UserError if an experiment does not begin with its first line, or has a value in place of a group of settings."""
    file = f"the file of experiment={given['experiment']}" if "experiment" in given else "conf/"
    # without the line below, Hydra puts the settings of the file into a group with the name `experiment`
    if "experiment" in values:
        raise UserError(
            f"{file} does not begin with the line `# @package _global_`: add this line, so that its settings are those of the "
            "run"
        )
    for group in groups_of(conf_folder()):
        value = values.get(group, {})
        if not isinstance(value, Mapping) and not (group == "callbacks" and value is None):
            choice = value if isinstance(value, str) else "NAME"
            raise UserError(
                f"in {_place_of(group, given) or file}: `{group}: {'null' if value is None else value}` does not choose a file "
                f"of conf/{group}: write the line `- override /{group}: {choice}` below `defaults:`"
            )


def _place_of(key: str, given: Mapping[str, str]) -> str | None:
    """Return the file and the line that set `key`, such as `own/model/mine.yaml, line 2`, or None if no file does.

    `given` maps the keys of the command line, such as `model`, to their values. The files that it chooses are searched first,
    then all other files that can set the key, because a file may take settings from another one.
    """
    group, _, _ = key.partition(".")
    line = re.compile(rf"(?:^|[\s{{,'\"]){re.escape(key.rpartition('.')[2])}['\"]?\s*:", re.MULTILINE)
    folders = [folder / name for folder in reversed(conf_folders()) for name in (group, "experiment")]
    chosen = [folder / f"{given.get(folder.name, '')}.yaml" for folder in folders]
    for path in [*chosen, *(path for folder in folders for path in sorted(folder.rglob("*.yaml")))]:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if match := line.search(text):
                number = text.count("\n", 0, match.end()) + 1
                return f"{one_line(relative_to_here(path))}, line {number}"
    return None


def is_search(hydra: Any) -> bool:
    """Tell whether a sweep is a search, such as Optuna's, and not a grid, from the `hydra` section of a configuration."""
    return not hydra.sweeper._target_.endswith("BasicSweeper")


def typed_overrides(hydra: Any) -> list[str]:
    """Return the overrides of the command line as they were typed, from the `hydra` section of a configuration."""
    from omegaconf import OmegaConf

    words: list[str] = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return words


def compose_request(recipe: Recipe, settings: Sequence[str]) -> Request:
    """Compose `conf/<recipe>.yaml` with `key=value` settings, for callers that Hydra does not start.

    Raises UserError for unknown or contradictory settings.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from positron.cli.defaults import register_defaults

    overrides = read_settings(settings, recipe, conf_folder())
    register_defaults()
    state = HydraConfig.instance()
    caller = state.cfg
    with hydra_errors_as_ours(), hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = hydra.compose(recipe, overrides, return_hydra_config=True)
        try:
            state.set_config(composed)  # the default of `name` refers to the choices, ${hydra:runtime.choices.data}
            own_keys = [str(key) for key in composed if key != "hydra"]
            return read_request(OmegaConf.masked_copy(composed, own_keys), overrides)
        finally:
            state.cfg = caller


def compose(recipe: Recipe, settings: Sequence[str]) -> dict[str, Any]:
    """Return the composed settings for a command that starts no run. Raises UserError for settings that training refuses."""
    request = compose_request(recipe, settings)
    request.refuse_unread()
    return request.values


def expand_paths(values: dict[str, Any]) -> None:
    """Replace a leading `~` by the home folder in those settings of `values` that are paths.

    A shell does not do this for a word such as data.path=~/text.
    """
    for group, key in ((values["data"], "path"), (values["data"], "dir"), (values, "init_from"), (values, "ckpt_path")):
        if isinstance(group.get(key), str) and group[key].startswith("~"):
            group[key] = os.path.expanduser(group[key])
