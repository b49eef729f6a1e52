"""What all doors share: errors as one line with a true exit code, what is said and logged, where `conf/` lies."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from positron import __version__
from positron.run.facts import without_home
from positron.settings import unknown_key
from positron.system.console import one_line, open_streams
from positron.system.disk import append_text
from positron.system.errors import Diverged, Unreachable, UserError


def conf_folder() -> Path:
    """`conf/` of the checkout, or its copy inside the installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Exit 2 for what the user can fix, 128 + signal after an interruption, 1 for the rest; 0 for a closed pipe.

    With POSITRON_DEBUG=1 every error shows its traceback.
    """
    open_streams()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if os.environ.get("POSITRON_DEBUG") == "1":
            traceback.print_exc()
        code, line = describe(error)
        if line:
            print(line, file=sys.stderr)
        raise SystemExit(code) from None


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error and one line, in which text from files cannot forge a second one."""
    code, line = _described(error)
    return code, one_line(line)


def _described(error: BaseException) -> tuple[int, str]:
    if isinstance(error, UserError):
        return 2, f"positron: {error}"
    if isinstance(error, (Unreachable, Diverged)):
        return 1, f"positron: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "positron: interrupted"
    if isinstance(error, BrokenPipeError):
        return 0, ""
    if hasattr(error, "exit_code"):  # an interruption, which has already said what was saved
        return int(error.exit_code), ""
    kind = type(error).__name__
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        return 2, f"positron: {_hydra_reason(error)}"
    text = " ".join(str(error).split())
    return 1, f"positron: {kind}: {text} (POSITRON_DEBUG=1 shows where)"


def _hydra_reason(error: BaseException) -> str:
    """Hydra's advice for an unknown key is `+key=`, which would be refused next; the nearest right key helps more."""
    import re

    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or "").split())
    unknown = re.match(r"Could not override '([^']+)'", text) or re.match(r"Key '([^']+)' is not in struct", text)
    if unknown and ("not in struct" in text or "not in struct" in cause or "not found" in text.lower()):
        return unknown_key(unknown[1])
    missing = re.match(
        r"In '[^']*': Could not find '([^']+)'.*?Available options in '[^']*': (.*?)(?: Config search|$)", text
    )
    if missing:
        group, _, name = missing[1].rpartition("/")
        if group.startswith("hydra/") and name in ("joblib", "submitit_local", "submitit_slurm", "optuna"):
            return f"{group}={name} needs an extra: pip install 'positron[sweep]'"
        return f"there is no {group}={name}: choose from {missing[2].strip()}"
    return text


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
            if not isinstance(error, (UserError, Diverged)) and not hasattr(error, "exit_code"):
                lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
                text = "\n    ".join([text, *map(one_line, lines)])
            self._keep(text)

    def __call__(self, line: str) -> None:
        if not self.is_first_rank:
            return
        line = one_line(line)
        try:
            if sys.stderr.isatty():
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


def compose(recipe: str, settings: list[str]) -> dict[str, Any]:
    """`conf/<recipe>.yaml` with `key=value` settings, for a command that is no Hydra program."""
    import hydra
    from omegaconf import OmegaConf

    from positron.effects import refuse_unread
    from positron.overrides import experiment_keys, given_keys, read_settings

    overrides = read_settings(settings, recipe, conf_folder())
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        values: dict[str, Any] = OmegaConf.to_container(hydra.compose(recipe, overrides), resolve=True)  # type: ignore[assignment]
    given = given_keys(overrides)
    refuse_unread(values, given, experiment=experiment_keys(conf_folder(), given), is_sft="sft" in values)
    expand_paths(values)
    return values


def expand_paths(values: dict[str, Any]) -> None:
    """Replace `~` at the beginning of paths by the home folder, as a shell does only at the beginning of a word."""
    for group, key in ((values["data"], "path"), (values["data"], "dir"), (values, "init_from"), (values, "ckpt_path")):
        if isinstance(group.get(key), str) and group[key].startswith("~"):
            group[key] = os.path.expanduser(group[key])


def run_hydra(job: Callable[[Any], Any], recipe: str) -> None:
    """Compose `conf/<recipe>.yaml` with the command line and call `job` with it, once or for each job of a sweep.

    Errors of a job bypass Hydra, which would print them in its own way: a lone job's are kept until Hydra is done; of
    a sweep's jobs only Ctrl-C and SIGTERM come this far, as the exit that ends the sweep.
    """
    failures: list[BaseException] = []
    typed = sys.argv

    def guarded(cfg: Any) -> Any:
        sys.argv = typed  # what is recorded, and what further processes are started with
        try:
            return job(cfg)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failures.append(error)
            return None

    with errors_as_one_line():
        if {"--version"} & set(typed[1:]):
            print(f"Positron {__version__}")
            return
        if {"--help", "-h"} & set(typed[1:]):
            from positron.settings_help import help_text

            print(help_text(recipe, conf_folder()))
            return
        from positron.overrides import read_command_line

        line = read_command_line(typed[1:], recipe, conf_folder())
        import hydra

        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of composing reach us instead of being printed by Hydra
        sys.argv = [typed[0], *line.words]
        try:
            hydra.main(config_path=str(conf_folder()), config_name=recipe, version_base="1.3")(guarded)()
        finally:
            sys.argv = typed
        if failures:
            raise failures[0]


def side_by_side(columns: Sequence[tuple[str, str]], width: int) -> str:
    """Texts under their titles, in so many columns as have room for 24 letters each, then the next ones below."""
    import textwrap

    at_once = max(1, min(len(columns), width // 26))
    each = width // at_once - 2
    blocks = []
    for start in range(0, len(columns), at_once):
        some = []
        for title, text in columns[start : start + at_once]:
            title = title if len(title) <= each else "..." + title[3 - each :]
            wrapped = [row for line in text.splitlines() for row in textwrap.wrap(line, each) or [""]]
            some.append([title, "-" * len(title), *wrapped])
        height = max(map(len, some))
        rows = [[column[i] if i < len(column) else "" for column in some] for i in range(height)]
        blocks.append("\n".join("  ".join(cell.ljust(each) for cell in row).rstrip() for row in rows))
    return "\n\n".join(blocks)
