"""Log a run to Weights & Biases (wandb)."""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from positron.config import WandbConfig
from positron.run.metrics import read_metrics
from positron.run.paths import RunPaths
from positron.run.samples import Sample, read_samples
from positron.system.commands import quoted
from positron.system.disk import read_text, refuse_links, write_text
from positron.system.errors import UserError

logger = logging.getLogger(__name__)

WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # the hosts of wandb 0.31 and of earlier versions

INIT_SECONDS = 20.0  # if the server does not answer within this time, the run is logged offline
FINISH_SECONDS = 30.0  # if the upload takes longer, the user can complete it with `wandb sync`
_DATA_DIR = os.environ.get("WANDB_DATA_DIR")  # as the user has set it


class Wandb:
    """Log to Weights & Biases, online or offline. A file in the run folder stores the run id of wandb.

    The environment variable WANDB_MODE chooses the mode. If it is not set, the mode is online with an API key, and offline
    without one. If wandb cannot connect, the mode is offline.

    When a run is continued, its earlier steps are logged first, from metrics.jsonl and the samples. Online, these are only the
    steps after the last step that wandb has, because wandb accepts no step twice. Offline, these are all steps, because
    `wandb sync` (0.31) replaces all data of a run id by the folder that it uploads. Raises UserError if the file with the run
    id is damaged.
    """

    def __init__(self, config: WandbConfig, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        self.paths = RunPaths(folder)
        self.samples: list[Sample] = []
        refuse_links(self.paths.wandb_folder, folder)
        id_file = self.paths.wandb_id_path
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        run_id = read_text(id_file, limit=1000).strip()
        if not re.fullmatch(r"[\w.-]{1,128}", run_id):
            raise UserError(
                f"{id_file} is damaged: it does not contain the id of a wandb run; delete it to begin a new wandb run"
            )
        # wandb copies tables to this folder before it uploads them; by default it is inside the run folder
        os.environ["WANDB_DATA_DIR"] = _DATA_DIR or str(self.paths.wandb_folder.absolute())

        def begin(mode: str) -> Any:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=list(config.tags),
                name=config.name or folder.name,
                id=run_id,
                resume=None if mode == "offline" else "allow",
                dir=str(folder),
                config=settings,
                mode=mode,  # type: ignore[arg-type]
                reinit="create_new",  # a run of an earlier job of this process is never reused
                settings=wandb.Settings(
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                    console="off",
                    silent=True,
                ),
            )

        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        if mode == "online":
            logger.info(f"wandb: connecting (for at most {INIT_SECONDS:.0f} s)")
        try:
            self.run = begin(mode)
        except wandb.errors.Error as error:  # the server does not answer, or refuses
            logger.warning(f"wandb cannot be used online, so the run is logged offline: {' '.join(str(error).split())}")
            wandb.teardown()  # otherwise wandb's service would still use the id of the run that could not be started
            self.run = begin("offline")
        if self.run.offline:
            logger.info(f"wandb: the run is logged offline; upload it later with {self._sync_command()}")
        self.run.define_metric("*", step_metric="step")
        self._catch_up()

    def _sync_command(self) -> str:
        return f"wandb sync {quoted(str(Path(self.run.dir).parent))}"

    def _catch_up(self) -> None:
        rows = {row["step"]: row for row in read_metrics(self.paths.metrics_path)}
        samples = {sample.step: sample for sample in read_samples(self.paths)}
        for step in sorted({*rows, *samples}):
            if step in rows:
                self.log({key: value for key, value in rows[step].items() if value is not None}, step)
            if step in samples:
                self.sample(samples[step])

    def log(self, row: dict[str, Any], step: int) -> None:
        """Log a row of metrics, unless wandb already has this step."""
        if step >= self.run.starting_step:
            self.run.log(row, step=step)

    def sample(self, sample: Sample) -> None:
        """Log the attention map of `sample`, and a table of all samples so far.

        All samples are in one table, because wandb shows only the newest table.
        """
        import wandb

        self.samples.append(sample)
        if sample.step < self.run.starting_step:
            return
        row: dict[str, Any] = {"step": sample.step}
        row["samples"] = wandb.Table(columns=list(Sample._fields), data=[list(row) for row in self.samples])
        picture = self.paths.attention_picture(sample.step)
        if picture.exists():
            row["attention"] = wandb.Image(str(picture))
        self.run.log(row, step=sample.step)

    def finish(self, exit_code: int) -> None:
        """End the wandb run, and wait at most 30 seconds (FINISH_SECONDS) for the upload."""
        try:
            self.run.finish(exit_code)
        except TimeoutError:
            logger.info(
                f"wandb: the upload is incomplete after {FINISH_SECONDS:.0f} s; complete it with {self._sync_command()}"
            )


def has_wandb_key() -> bool:
    """Tell whether there is an API key, in the environment or in the netrc file in which `wandb login` stores it.

    The user is not asked for a key.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc" if os.name == "posix" else "~/_netrc")
    try:
        known = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(host in known for host in (*WANDB_HOSTS, urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc))
