"""Test changes of the training settings by pairs of runs, keep those that are proven to help, and write a report.

    positron research candidates=candidates.yaml budget=8h

The file candidates.yaml contains a base recipe, which is a list of settings, and candidates, which are named lists of settings
that change the recipe. The candidates are tested one after another. After an interruption, give the same command again to
continue. The results are in outputs/research/candidates/, named after the file; with name=NAME they are in
outputs/research/NAME/. budget=TIME limits the training time of all runs together; without budget=, the command ends when it has
decided about all candidates.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.console import say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.log import screen_log
from positron.system.paths import fault_of_name, without_home

if TYPE_CHECKING:
    from positron.cli.request import Request
    from positron.config import RunConfig
    from positron.run.facts import Facts

logger = logging.getLogger("positron.research")  # under `python -m` the module is called __main__

SETTINGS = ("candidates", "budget", "name")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("research", __doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="candidates=FILE, budget=TIME, name=NAME")
    return parser


def main() -> None:
    """Run `positron research` with the options in `sys.argv`."""
    with errors_as_one_line(), screen_log():
        given = read_words(arguments().parse_args().settings)
        if not given.get("candidates"):
            raise UserError(f"give the file of candidates: {command('research', 'candidates=FILE', 'budget=8h')}")
        from positron.config import seconds

        budget_s = seconds(given["budget"], "budget") if "budget" in given else math.inf
        path = Path(given["candidates"]).expanduser()
        name = given.get("name", path.stem)
        if fault := fault_of_name(name) if name else "is empty":
            raise UserError(f"the research cannot be called {name!r}, which {fault}: give another name=")
        say_loading("the recipes")
        from positron.cli.candidates import read_plan
        from positron.cli.preflight import RESEARCH, check_name
        from positron.evaluation.research import begin, research
        from positron.evaluation.research_report import as_text, write_report
        from positron.run.folder import OUTPUTS, Run
        from positron.system.disk import make_folder
        from positron.system.locks import lock
        from positron.train import configure

        folder, file = OUTPUTS / RESEARCH / name, without_home(given["candidates"])
        if Run(folder).exists:
            raise UserError(f"{folder} is a run and not a research: give the research another name=")
        check_name(folder)
        plan = read_plan(path, configure)

        def refuse() -> None:
            raise UserError(f"another process works in {folder}: wait until it ends, or give another name=")

        with lock(make_folder(folder) / "research.lock", refuse):
            date = begin(folder, plan)
            refuse_other_settings(folder)
            trials = []
            for trials in research(folder, plan, _train, budget_s):
                last = trials[-1]
                gain = f"gain {last.gains[-1]:+.4f}, " if last.gains and last.failure is None else ""
                pair = "" if last.changes_nothing else f", pair {len(last.seeds)}"
                logger.info(f"{last.name}{pair}: {gain}{last.verdict} ({last.reason})")
                if last.verdict != "open":
                    write_report(folder, date, file, plan, trials)
            write_report(folder, date, file, plan, trials)
        print(as_text(plan, trials))
        print(f"\nreport: {folder / f'{date}-{name}.md'}")


def read_words(words: list[str]) -> dict[str, str]:
    """Return the settings of the command line by key. Raises UserError for a key that is unknown or given twice."""
    given: dict[str, str] = {}
    for word in words:
        key, equal, value = word.partition("=")
        if key not in SETTINGS or not equal:
            similar = difflib.get_close_matches(key, SETTINGS, 1, 0.6)
            hint = (
                f"give candidates={word}"
                if not equal and (word.endswith((".yaml", ".yml")) or Path(word).is_file())
                else f"did you mean {similar[0]}={value or 'VALUE'}?"
                if similar
                else "write settings of runs into the file of candidates=, below the key base"
                if equal
                else f"give {', '.join(f'{key}=' for key in SETTINGS[:-1])} or {SETTINGS[-1]}= with a value"
            )
            raise UserError(f"{word} is not a setting of {command('research')}: {hint}")
        if key in given:
            raise UserError(f"{key}= is given twice: leave one out")
        given[key] = value
    return given


def refuse_other_settings(folder: Path) -> None:
    """Raise UserError if a run in `folder` was trained with other values than its recipe gives now.

    A recipe may name a file of settings, such as experiment=NAME, which the user may have edited since then.
    """
    from positron.evaluation.research import read_job
    from positron.run.folder import Run
    from positron.run.paths import JOB

    for path in sorted(folder.glob(f"*/*/{JOB}")):
        if Run(path.parent).exists:  # a run that could not start recorded no settings
            _settled(read_job(path)["overrides"], path.parent)


def _train(overrides: list[str], folder: Path) -> Facts:
    """Train or continue the run in `folder` in this process, and return what its run.json records."""
    from positron.cli.user_callbacks import make_callbacks
    from positron.evaluation.research import BASE
    from positron.run.common_precision import with_common_precision
    from positron.run.find import numbered_folders
    from positron.run.folder import Run
    from positron.train import train

    request, config = _settled(overrides, folder)
    of_base = map(Run, numbered_folders(folder.parent.parent / BASE))
    config = with_common_precision(config, Run(folder), of_base)
    return train(config, folder, make_callbacks(request.callbacks), request.asked)


def _settled(overrides: list[str], folder: Path) -> tuple[Request, RunConfig]:
    """Return the request and the configuration of the run in `folder`.

    Raises UserError if the run cannot start, or has a checkpoint and was trained with other settings.
    """
    from positron.cli.request import compose_request
    from positron.run.folder import OUTPUTS
    from positron.train import configure

    request = compose_request("train", [*overrides, f"name={folder.relative_to(OUTPUTS).as_posix()}"])
    return request, request.settle(configure)[0]


if __name__ == "__main__":
    main()
