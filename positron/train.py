"""Start or continue a run: `positron train model=tinygpt device=mps`.

`main` composes the configuration with Hydra. `train` can be imported and called with a configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.hydra_app import run_hydra
from positron.cli.sweeps import run_job
from positron.config import Asked, RunConfig
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.callable_module import make_callable
from positron.system.errors import UserError

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from positron.training.objective.pretrain import PretrainObjective


def train(
    config: RunConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    asked: Asked | None = None,
    objective: type[PretrainObjective] | None = None,
) -> Facts:
    """Train the run in `folder` up to its last step, from its last checkpoint if it has one; return what run.json records.

    `callbacks` are Lightning callbacks. After each step, they run before the metrics of the step are written, so values that
    they add to `module.metrics`, a dict of the LightningModule, are written too. `asked` holds the settings that the user gave
    (None: no settings); `budget=` does not change them. `objective` is the class of the training objective (None:
    PretrainObjective).

    Raises UserError if the run cannot start or continue. After Ctrl-C, SIGTERM or SIGHUP, saves the last complete step and
    raises Interrupted. Raises Diverged if the loss diverges.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator(config.train.max_steps)

    from positron.training.from_text import Lesson, train_on_text

    lesson = Lesson() if objective is None else Lesson(objective)
    return train_on_text(config, folder, callbacks, asked or Asked(), started, lambda _: lesson)


def job(cfg: DictConfig) -> float:
    """Run one Hydra job with `run_job`, and return the validation bits per byte, which a hyperparameter search minimises."""
    return run_job(cfg, configure, train, _spend_rest)


def _spend_rest(
    config: RunConfig, run: Run, make_callbacks: Callable[[], Sequence[Callback]], asked: Asked
) -> Iterator[Run]:
    from positron.training.budget.generations import train_generations

    return train_generations(config, run, make_callbacks, asked)


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a run from `values`, its settings as nested dicts.

    Raises UserError if a setting is unknown or has a wrong value, or if settings contradict each other.
    """
    config = from_dict(RunConfig, values)
    if config.budget is not None and config.train.max_steps != "auto" and not config.train.extend:
        raise UserError(
            f"budget={config.budget} chooses the number of steps: give only one of budget= and train.max_steps= "
            "(train.max_steps=auto replaces the value of an experiment)"
        )
    return config


def main() -> None:
    """Run `positron train` with the options in `sys.argv`."""
    run_hydra(job, "train")


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
