"""Let the runs of a group, such as the jobs of a sweep, compute in the same precision, so that they can be compared."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

from positron.config import ModelConfig, PrecisionConfig, RunConfig
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.errors import UserError


def with_common_precision(config: RunConfig, run: Run, group: Iterable[Run]) -> RunConfig:
    """Return `config` with the recorded precision of the first run of `group` that has one, in place of precision=auto.

    precision=auto measures each new run, so without this function, the runs of a group could differ in their precision.
    `config` is returned unchanged if it has another precision than auto, or if no run of `group` has recorded one. If `run`,
    the run that is to be trained, has a checkpoint, it keeps its own setting. A damaged run is skipped.
    """
    if config.precision.dtype != "auto":
        return config
    if run.has_checkpoint:
        with contextlib.suppress(UserError):  # the training names the damage
            return dataclasses.replace(config, precision=run.settings().precision)
        return config
    for other in group:
        with contextlib.suppress(UserError):
            resolved = other.facts().resolved
            if resolved is not None and resolved.precision is not None:
                precision = from_dict(PrecisionConfig, {"dtype": resolved.precision}, "precision")
                return dataclasses.replace(config, precision=precision)
    return config


def with_model(model: ModelConfig, runs: Iterable[Run]) -> Iterator[Run]:
    """Yield those of `runs` that recorded the settings `model`. A damaged run is skipped.

    Of the runs of a sweep over model sizes, only these are compared as repetitions, and a larger model may be several times as
    fast in the precision that is slower for a small one.
    """
    for run in runs:
        with contextlib.suppress(UserError):
            if run.exists and run.config().get("model") == dataclasses.asdict(model):
                yield run
