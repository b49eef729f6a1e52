"""Open the trackers that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from positron.config import LoggerConfig
from positron.training.trackers.tensorboard import TensorBoard
from positron.training.trackers.tracker import GuardedTracker, Tracker
from positron.training.trackers.wandb import Wandb


def open_trackers(config: LoggerConfig, folder: Path, settings: dict[str, Any], first_step: int) -> list[Tracker]:
    """Open the trackers that a configuration names; `first_step` is the first step that this process trains.

    `folder`: the run folder. `settings`: the settings of the run, which wandb displays. Raises UserError if the package
    tensorboard is needed and missing, or if the file with the id of the wandb run is damaged. After any other error, the
    tracker is disabled, and a warning is logged.
    """
    trackers: list[Tracker] = []
    # TensorBoard is first: if it is not installed, the run is refused before wandb has begun a run
    if (tb_config := config.tensorboard) is not None:
        trackers.append(GuardedTracker(lambda: TensorBoard(tb_config, folder, first_step), "tensorboard"))
    if (wandb_config := config.wandb) is not None:
        trackers.append(GuardedTracker(lambda: Wandb(wandb_config, folder, settings), "wandb"))
    return trackers
