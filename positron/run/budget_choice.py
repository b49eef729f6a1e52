"""Restore the settings that `budget=` chose for a run when the same command continues it."""

from __future__ import annotations

import dataclasses
from typing import Any

from positron.config import Asked, RunConfig
from positron.run.find import no_checkpoint
from positron.run.folder import Run

# The keys that a budget chooses, unless the command line gives them (Asked.given).
SIZE_KEYS = ("model.n_layer", "model.d_model", "model.n_head")
INTERVAL_KEYS = ("train.log_every", "train.val_every", "train.save_every", "train.sample_every")
RATE_KEYS = ("optimizer.lr", "optimizer.weight_decay", "schedule.warmup_steps")
LENGTH_KEYS = ("train.max_steps", "train.batch_tokens", "train.val_tokens")
CHOSEN_KEYS = (*SIZE_KEYS, *LENGTH_KEYS, *INTERVAL_KEYS, *RATE_KEYS, "model.dropout")


def with_free_values(config: RunConfig, asked: Asked, values: dict[str, Any]) -> RunConfig:
    """Return `config` with `values` (dotted key -> value), except for the settings that the user gave (`asked.given`)."""
    for group in ("model", "train", "optimizer", "schedule"):
        free = [key for key in values if key.startswith(f"{group}.") and key not in asked.given]
        part = dataclasses.replace(getattr(config, group), **{key.split(".")[1]: values[key] for key in free})
        config = dataclasses.replace(config, **{group: part})
    return config


def restore_choice(config: RunConfig, asked: Asked, run: Run) -> RunConfig:
    """Return `config` with the values that the budget chose when the run was started, so that nothing is measured again.

    The settings that the user gave (`asked.given`) keep their values. The model size is restored only if the budget chose it
    (`asked.auto_size`). If train.max_steps= and train.extend=true are given, the run is extended to train.max_steps. Raises
    UserError if a run that is to be extended has no checkpoint.

    `config` is returned unchanged in three cases:

    - budget= is not given.
    - train.max_steps= is given, but train.extend=true is not.
    - The run has no checkpoint, and train.max_steps= is not given.
    """
    extends = config.train.max_steps != "auto"
    if config.budget is None or (extends and not config.train.extend):
        return config
    if not run.exists or not run.has_checkpoint:
        if extends:
            instead = "leave train.extend and train.max_steps out, and the budget chooses the steps"
            raise no_checkpoint(run, "train.extend=true", instead)
        return config
    # model=auto gave another momentum in earlier versions, and their runs keep it
    saved, keys = run.config(), {*CHOSEN_KEYS, "optimizer.momentum"}
    if extends:
        keys.remove("train.max_steps")
    if not asked.auto_size:
        keys.difference_update(SIZE_KEYS)
    return with_free_values(
        config, asked, {key: saved[group][name] for key in keys for group, name in [key.split(".")]}
    )
