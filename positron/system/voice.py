"""Lines for the user: on the screen of the first rank, and with their time in the run's log."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

from positron.system.console import one_line, shows_bars
from positron.system.disk import append_text
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, UserError
from positron.system.exits import describe
from positron.system.paths import without_home


def first_rank(processes: int) -> bool:
    """Whether this process speaks and writes, of the `processes` that train one run; known before any of them meet.

    The only process is the first one: containers, notebooks, launchers and SLURM leave variables of ranks behind that
    do not concern it.
    """
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return processes == 1 or all((os.environ.get(key) or "0") == "0" for key in ranks)


class Voice:
    """Says a line to the user (on the first rank) and keeps it, with its time, in the run's log file."""

    def __init__(self, log: Path | None, prefix: str = "", processes: int = 1) -> None:
        """`prefix`: of each line on the screen, where several jobs speak at once. `processes`: that train the run."""
        self.log, self.prefix = log, prefix
        self.is_first_rank = first_rank(processes)
        self._is_unwritable = False

    def __enter__(self) -> Voice:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The reason why a run ended stands in its own log, also under a sweep."""
        if error is not None and self.is_first_rank:
            text = describe(error)[1] or one_line(str(error))
            if not isinstance(error, (UserError, Diverged, Interrupted, LeftAtOnce)):
                lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
                text = "\n    ".join([text, *map(one_line, lines)])
            self._keep(text)

    def __call__(self, line: str) -> None:
        if not self.is_first_rank:
            return
        line = one_line(line)
        try:
            if shows_bars():
                from tqdm import tqdm

                tqdm.write(self.prefix + line, file=sys.stderr)
            else:
                print(self.prefix + line, file=sys.stderr, flush=True)
        except OSError:  # the terminal was closed, or the pipe: the log has the line, and training continues
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self._keep(line)

    def _keep(self, text: str) -> None:
        """Add it to the log. A full disk or a deleted folder is told once and ends nothing."""
        if self.log is None:
            return
        try:
            append_text(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {without_home(text)}\n")
            self._is_unwritable = False
        except (OSError, UserError) as error:
            if not self._is_unwritable:
                reason = error.strerror if isinstance(error, OSError) else error
                print(one_line(f"WARNING: cannot write {self.log}: {reason}"), file=sys.stderr)
            self._is_unwritable = True
