"""Build the configuration of a run that trains a base run further, with the architecture and tokenizer of the base run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from positron.cli.unused_settings import refuse_other_source
from positron.config import RunConfig
from positron.run.base import portable
from positron.run.find import find_run
from positron.run.folder import OUTPUTS, Run
from positron.settings import BASE_GROUPS, Recipe, from_dict
from positron.system.commands import command
from positron.system.errors import UserError


def configure_tuning(
    values: dict[str, Any], recipe: Recipe, kind: str, can_be_base: Callable[[Run], bool]
) -> RunConfig:
    """Build the configuration of a run of the command `recipe`, which trains a base run further.

    `kind` is the kind of run that the command makes, such as "sft". A new run gets the architecture and tokenizer of its base
    run: the run that init_from= names, or else the run trained last among those that `can_be_base` accepts. A run that
    continues keeps its architecture and tokenizer. Without init_from=, it also keeps its base run. Raises UserError if there is
    no base run, if the command cannot learn from this kind of data, or if the settings choose a model or tokenizer.
    """
    for key in BASE_GROUPS:
        if values.get(key) is not None:
            raise UserError(
                f"{command(recipe)} takes the architecture and tokenizer of the base run, which init_from= names: "
                f"leave {key}= out"
            )
    own_run = Run(OUTPUTS / str(values["name"]))
    if own_run.exists and own_run.kind == kind and own_run.has_checkpoint:
        known, origin = own_run.config(), values["init_from"] or own_run.config().get("init_from")
    else:
        base = find_run(values["init_from"], is_candidate=can_be_base)
        known, origin = base.config(), portable(base.folder)
    values = {**values, "model": known["model"], "tokenizer": known["tokenizer"], "init_from": origin}
    config = from_dict(RunConfig, values)
    refuse_other_source(config.data.source, recipe)
    return config
