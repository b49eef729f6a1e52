"""Dashboards beside metrics.jsonl. None of them can stop a run: their faults become one warning each."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from positron.config import LoggerConfig, TensorboardConfig, UserError, WandbConfig


class Dashboard(Protocol):
    """What a run tells each of them."""

    def log(self, row: dict[str, float], step: int) -> None: ...

    def sample(self, text: str, step: int) -> None: ...

    def finish(self, exit_code: int) -> None: ...


FINISH_SECONDS = 30.0  # an upload that takes longer is left to `wandb sync`


class Wandb:
    """Weights & Biases, online with a key and offline without one; the run id stays with the run folder."""

    def __init__(self, config: WandbConfig, folder: Path, name: str, settings: dict[str, Any], say: Callable) -> None:
        import wandb

        self.say = say
        id_file = folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        self.run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            name=name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=settings,
            mode=mode,  # type: ignore[arg-type]
            reinit="create_new",  # one job, one run: a live run of an earlier job is never reused
            settings=wandb.Settings(init_timeout=20, console="off", silent=True),
        )
        if mode == "offline":
            say(f"wandb: offline; to upload it later: wandb sync {Path(self.run.dir).parent}")

    def log(self, row: dict[str, float], step: int) -> None:
        self.run.log(row, step=step)

    def sample(self, text: str, step: int) -> None:
        import wandb

        self.run.log({"sample": wandb.Html(f"<pre>{_escape(text)}</pre>")}, step=step)

    def finish(self, exit_code: int) -> None:
        thread = threading.Thread(target=self.run.finish, kwargs={"exit_code": exit_code}, daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            self.say(
                f"wandb: still uploading after {FINISH_SECONDS:.0f} s; wandb sync {self.run.dir} completes it later"
            )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def has_wandb_key() -> bool:
    """A key in the environment or in the netrc file, where `wandb login` puts it; never a prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / (".netrc" if os.name == "posix" else "_netrc")))
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


class TensorBoard:
    def __init__(self, config: TensorboardConfig, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error
        # what an earlier process wrote after the checkpoint that we go on from is taken off the curve
        self.writer = SummaryWriter(str(folder / config.subdir), purge_step=first_step)

    def log(self, row: dict[str, float], step: int) -> None:
        for key, value in row.items():
            if key != "step":
                self.writer.add_scalar(key, value, step)

    def sample(self, text: str, step: int) -> None:
        self.writer.add_text("sample", text, step)

    def finish(self, exit_code: int) -> None:
        self.writer.close()


class Guarded:
    """Any error of a dashboard turns it off, with one line that says so."""

    def __init__(self, make: Callable[[], Dashboard], name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.dashboard: Dashboard | None = None
        self.dashboard = self._try(make)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            self.say(f"WARNING: {self.name} failed and is off for this run: {type(error).__name__}: {error}")
            self.dashboard = None
            return None

    def log(self, row: dict[str, float], step: int) -> None:
        if (dashboard := self.dashboard) is not None:
            self._try(lambda: dashboard.log(row, step))

    def sample(self, text: str, step: int) -> None:
        if (dashboard := self.dashboard) is not None:
            self._try(lambda: dashboard.sample(text, step))

    def finish(self, exit_code: int) -> None:
        if (dashboard := self.dashboard) is not None:
            self._try(lambda: dashboard.finish(exit_code))


def open_dashboards(
    config: LoggerConfig, folder: Path, settings: dict[str, Any], first_step: int, say: Callable[[str], None]
) -> list[Dashboard]:
    dashboards: list[Dashboard] = []
    if (wandb_config := config.wandb) is not None:
        dashboards.append(Guarded(lambda: Wandb(wandb_config, folder, folder.name, settings, say), "wandb", say))
    if (tb_config := config.tensorboard) is not None:
        dashboards.append(Guarded(lambda: TensorBoard(tb_config, folder, first_step), "tensorboard", say))
    return dashboards
