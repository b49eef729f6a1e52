"""Take settings of a distillation from its teachers: always the tokenizer, and the model and the text if they are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from positron.config import DataConfig, DistillConfig, ModelConfig
from positron.run.base import portable, pretrained_run
from positron.run.folder import OUTPUTS, Run
from positron.run.teachers import find_teachers, is_finished_student
from positron.settings import MISSING, defaults_of, from_dict
from positron.system.console import one_line
from positron.system.errors import UserError


def take_from_teachers(values: dict[str, Any], given: Mapping[str, str]) -> None:
    """Write the tokenizer, model and data settings of the first teacher into `values`, a composed configuration.

    Does nothing if `values` has no group `distill`. `given` maps the keys of the command line to their values. The model
    settings are not taken from the teacher if the command line or an experiment chooses a preset of the model. The same applies
    to the data settings. Single keys in `given`, such as model.n_layer=, take precedence over those of the teacher. The entry
    distill.teachers of `values` is replaced by the paths of the teachers' folders. If a teacher cannot be used, but the run
    values["name"] is a finished distillation from the same teachers, the settings of this run are taken instead. If there is no
    such run either, raises UserError.
    """
    if "distill" not in values:
        return
    names = from_dict(DistillConfig, values["distill"], "distill").teachers
    try:
        teachers = find_teachers(names)
        source, recorded = teachers[0], [portable(run.folder) for run in teachers]
    except UserError:
        own_run = Run(OUTPUTS / values["name"])
        if not is_finished_student(own_run, names):
            raise
        source, recorded = own_run, own_run.config()["distill"]["teachers"]
    values["distill"]["teachers"] = recorded
    values["tokenizer"] = source.config()["tokenizer"]
    if not _is_chosen("model", ModelConfig, values, given):
        values["model"] = source.config()["model"] | _single_keys("model", values, given)
    if not _is_chosen("data", DataConfig, values, given):
        values["data"] = _text_of(source) | _single_keys("data", values, given)


def _is_chosen(group: str, cls: type, values: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Tell whether the command line or an experiment chooses the settings of the group `group`.

    The command line does so by naming a file of conf/GROUP, as in `model=tinygpt`; single keys, such as `model.n_layer=6`, do
    not count. An experiment, which is a file of conf/experiment, does so by naming such a file, or by setting a key that has no
    default value. `cls` is the dataclass of the group. `values` is the composed configuration, and `given` maps the keys of the
    command line to their values.

    If a key of `cls` that has no default value has a value that the command line did not give, this value comes from an
    experiment.
    """
    needed = [key for key, value in defaults_of(cls).items() if value == MISSING and f"{group}.{key}" not in given]
    return group in given or any(values[group].get(key, MISSING) != MISSING for key in needed)


def _single_keys(group: str, values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    return {key: value for key, value in values[group].items() if f"{group}.{key}" in given}


def _text_of(source: Run) -> dict[str, Any]:
    """Return the settings of the text on which a run was pretrained.

    Raises UserError if these settings name a web address from which nothing was downloaded yet. The run folder, and so the
    address, may come from someone else. Therefore Positron downloads from the address only if the user gives it.
    """
    from positron.data.files import cached_path, not_downloaded

    data: dict[str, Any] = pretrained_run(source).config()["data"]
    url = data.get("url")
    if url is not None and not cached_path(url, data.get("sha256")).exists():
        raise UserError(f"{not_downloaded(source.folder)}give data=text data.url={one_line(url, 200)}")
    return data
