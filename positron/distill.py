"""Train a new model on what trained models predict: `positron distill teachers=quickstart name=student`.

The training is pretraining with one more term in the loss: the divergence from the probabilities that the trained models, the
teachers, predict. These probabilities are computed in each step. The teachers are never changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.hydra_app import run_hydra
from positron.cli.sweeps import run_job
from positron.config import Asked, RunConfig
from positron.run.facts import Facts
from positron.run.folder import OUTPUTS, Run
from positron.run.teachers import find_teachers, is_finished_student, refuse_shorter_context
from positron.system.callable_module import make_callable
from positron.system.errors import UserError
from positron.train import configure as configure_pretraining

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig


def distill(config: RunConfig, folder: Path, callbacks: Sequence[Callback] = (), asked: Asked | None = None) -> Facts:
    """Train the run in `folder` up to its last step, from its last checkpoint if it has one; return what run.json records.

    For `callbacks` and `asked`, see `positron.train.train`. Raises the errors of `train`, and UserError if a teacher cannot be
    used or has changed since the run began.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator(config.train.max_steps)

    from positron.training.from_text import train_on_text
    from positron.training.teachers import lesson_of_teachers

    return train_on_text(config, folder, callbacks, asked or Asked(), started, lesson_of_teachers)


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a distilled run from `values`, its settings as nested dicts.

    Raises UserError if settings contradict each other, if a teacher is missing or has a shorter context than the run, or if the
    run itself is a teacher. If the run is already a finished distillation from the same teachers, the teachers are not checked.
    """
    config = configure_pretraining(values)
    assert config.distill is not None
    folder = OUTPUTS / config.name
    if is_finished_student(Run(folder), config.distill.teachers):
        return config  # the training needs the teachers only if it is extended, and then checks them
    teachers = find_teachers(config.distill.teachers)
    refuse_shorter_context(teachers, config.model.context_length)
    if folder.exists() and any(folder.samefile(run.folder) for run in teachers):
        raise UserError(f"{folder} is a teacher, which is never changed: give the new run another name=")
    return config


def job(cfg: DictConfig) -> float:
    """Run one Hydra job with `run_job`, and return the validation bits per byte, which a hyperparameter search minimises."""
    return run_job(cfg, configure, distill)


def main() -> None:
    """Run `positron distill` with the options in `sys.argv`."""
    run_hydra(job, "distill")


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
