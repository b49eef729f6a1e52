"""Train the first 100 steps of a run again (--whole: all), and check whether the losses are identical to the last bit.

positron reproduce outputs/quickstart
positron reproduce quickstart --steps 20 --name quickstart-check
positron reproduce quickstart --whole

Exit code 0: identical; 1: different; 2: the run cannot be trained again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from positron.cli.preflight import check_name
from positron.config import RunConfig, TrainConfig
from positron.run.find import find_run
from positron.run.folder import DISTILL, FROM_TEXT, OUTPUTS, PREFERENCE, PRETRAIN, REINFORCE, SFT, TUNED, Run
from positron.run.metrics import read_metrics
from positron.run.provenance import environment, read_provenance, recorded_changes, start_of
from positron.settings import from_dict
from positron.system.command_parser import CommandParser
from positron.system.console import one_line, say_loading
from positron.system.disk import expanded, make_folder, write_json
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted
from positron.system.paths import relative_to_here
from positron.system.ranks import first_rank

TRACE = ("train/loss", "train/grad_norm", "train/lr", "val/loss")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("reproduce", __doc__)
    parser.add_argument("run", help="run folder, or name below outputs/")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=int,
        metavar="N",
        default=100,
        help="compare the first N steps, rounded up to a logged step (default %(default)s)",
    )
    length.add_argument("--whole", action="store_true", help="compare all steps of the run")
    parser.add_argument("--name", help="name of the new run (default: NAME-again)")
    return parser


def main() -> None:
    """Run `positron reproduce` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_args()
        say_loading(options.run)
        if options.steps < 1:
            raise UserError(f"--steps must be at least 1, not {options.steps}")
        run = find_run(options.run)
        if run.kind not in (*FROM_TEXT, *TUNED):
            raise UserError(
                one_line(f"{run.folder} was trained by the objective {run.kind} of a Python program: run this program ")
                + "again with another name="
            )
        rows, first_start = recorded(run)
        last = last_step(rows, math.inf if options.whole else first_start["step"] + options.steps)
        config = again(run, first_start, options.name or default_name(run), last)
        folder = OUTPUTS / config.name
        if first_rank(config.device.processes):
            check_name(folder)
            claim(folder, run, last, str(config.device.accelerator))
        from positron.distill import distill
        from positron.prefer import prefer
        from positron.reinforce import reinforce
        from positron.sft import sft
        from positron.train import train

        commands = {PRETRAIN: train, DISTILL: distill, SFT: sft, PREFERENCE: prefer, REINFORCE: reinforce}
        commands[run.kind](config, folder)
        if first_rank(config.device.processes):
            same, text = verdict(run, Run(folder), last)
            print("\n" + text)
            raise SystemExit(0 if same else 1)


def recorded(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of metrics.jsonl of the run, and what provenance.json records about the first start of the run.

    The record of the start contains the step at which the run started, the values that replaced each `auto`, and the
    environment. If the run started from the weights of another run, the record also contains the path of their file. Raises
    UserError if the metrics or the record are missing, or if the run trained no step.
    """
    rows = read_metrics(run.metrics_path)
    if not rows:
        raise UserError(
            f"{run.folder} has no metrics to compare with: name a run that was trained for at least train.log_every steps"
        )
    if rows[-1]["step"] == 0:
        raise UserError(f"{run.folder} has trained no step, so there is nothing to reproduce: name another run")
    known = read_provenance(run.folder)
    first = known["starts"][0] if known["starts"] else None
    if first is None or (first["step"] > 0 and "weights" not in first):
        fault = "does not record the first start of the run" if run.provenance_path.exists() else "does not exist"
        raise UserError(
            f"{run.folder} cannot be reproduced, because {run.provenance_path} {fault}: restore this file from a copy, or name "
            "another run"
        )
    return rows, start_of(known, first["step"] + 1)


def last_step(rows: list[dict[str, Any]], target: float) -> int:
    """Return the first logged step that is not smaller than `target`, or the last logged step if all are smaller."""
    steps = [int(row["step"]) for row in rows]
    return next((step for step in steps if step >= target), steps[-1])


def default_name(run: Run) -> str:
    """Return the default name of the run that repeats `run`.

    The result is `NAME-again` for a run NAME, and `SWEEP-0-again` for job 0 of the sweep SWEEP.
    """
    is_job = run.job_path.exists()  # of a sweep, where folders are called 0, 1, 2
    return f"{run.folder.resolve().parent.name}-{run.folder.name}-again" if is_job else f"{run.folder.name}-again"


def again(run: Run, first_start: dict[str, Any], name: str, last: int) -> RunConfig:
    """Return the settings with which a new run `name` repeats the training of `run` up to step `last`.

    The new run starts from the same initial weights. `first_start` is what provenance.json records about the first start of
    `run` (see `recorded`). Settings that were `auto` get the values that `run` used.

    Raises UserError if `run` started from a file of weights that no longer exists, or if its settings name a class or function
    that would have to be imported.
    """
    run.settings()  # refuses a damaged file
    values, resolved = run.config(), first_start["resolved"]
    for kind, name_of_code in _own_code(values):
        raise UserError(
            f"{run.folder} uses the {kind} {name_of_code}. For safety, reproduce does not import code that a run folder "
            "names. Run the command in its provenance.json yourself, with another name="
        )
    numbers = {key: resolved[key] for key in ("max_steps", "batch_tokens", "micro_batch_size")}
    values["train"] |= {**numbers, "stop_at": last, "max_time": None, "extend": False}
    values["device"] |= {"accelerator": resolved["accelerator"], "threads": resolved["threads"]}
    values |= {"name": name, "precision": {"dtype": resolved["precision"]}, "logger": {}, "resume": "auto"}
    values |= {"init_from": None, "ckpt_path": None}
    if "weights" in first_start:
        path = expanded(first_start["weights"]["path"])
        if not path.is_file():
            raise UserError(f"{run.folder} started from {path}, which no longer exists: restore it from a copy")
        values |= {"ckpt_path": str(path)} if first_start["step"] > 0 else {"init_from": str(path.parent.parent)}
    return from_dict(RunConfig, values)


def _own_code(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each class or function that the settings of a run import, such as ("reward function", "my_module.my_reward")."""
    reward = values.get("reward") or {}
    named = [("optimizer class", (values.get("optimizer") or {}).get("_target_"))]
    named += [("reward function", each.get("function")) for each in (reward, *reward.get("terms", ()))]
    yield from ((kind, name) for kind, name in named if name is not None)


def claim(folder: Path, run: Run, last: int, accelerator: str) -> None:
    """Create `folder` for the reproduction of `run` up to step `last`, or accept a folder with an unfinished one.

    Raises UserError if the folder contains anything else. Among these are a reproduction that has already trained step `last`,
    which would be compared without training anything, and one that was trained with other code, versions or hardware than
    those of this process, which trains on `accelerator`.
    """
    source = relative_to_here(run.folder)
    if folder.is_dir() and any(folder.iterdir()):
        if folder.samefile(run.folder):
            raise UserError(f"{folder} is the run that is reproduced: give another --name")
        known = read_provenance(folder)
        if known.get("reproduces") != source:
            raise UserError(
                f"{folder} exists and is not a reproduction of {source}: give another --name, or delete {folder}"
            )
        before = start_of(known, last)
        if not before:
            return
        again = f"to train again, delete {folder} or give another --name"
        if any(row["step"] >= last for row in read_metrics(Run(folder).metrics_path)):
            raise UserError(f"{folder} already reproduced {source} up to step {last} on {before['time']}: {again}")
        now = environment(accelerator)
        changed = recorded_changes({key: before.get(key) for key in now}, now)
        if changed:
            raise UserError(
                f"{folder} was begun on {before['time']}, and since then this changed: {changed[0]}: {again}"
            )
    else:
        write_json(Run(make_folder(folder)).provenance_path, {"reproduces": source, "starts": [], "environments": []})


def verdict(run: Run, new: Run, last: int) -> tuple[bool, str]:
    """Return whether the logged losses, gradient norms and learning rates of two runs are identical up to step `last`.

    A metric that only one of the runs has is a difference (see `differences`). The second result is a text that describes the
    outcome. Raises UserError if the runs have no logged step in common.
    """
    first_rows = {row["step"]: row for row in read_metrics(run.metrics_path) if row["step"] <= last}
    new_rows = {row["step"]: row for row in read_metrics(new.metrics_path) if row["step"] <= last}
    steps = [step for step in first_rows if step in new_rows]
    if not steps:
        raise UserError(
            f"{new.folder} and {run.folder} have no logged step in common up to step {last}: give a larger --steps"
        )
    difference = next(differences(first_rows, new_rows, run.settings().train), None)
    step = difference[0] if difference else steps[-1]
    changed = recorded_changes(start_of(read_provenance(run.folder), step), start_of(read_provenance(new.folder), step))
    listing = "".join(f"\n  {line}" for line in changed)
    if difference is None:
        text = (
            f"identical: logged steps {steps[0]} to {steps[-1]} ({len(steps)} of them) have the same losses bit for bit"
            if len(steps) > 1
            else f"identical: the one logged step in common, {steps[0]}, has the same losses bit for bit"
        )
        return True, text + (f", although these differ:{listing}" if changed else "")
    before = len([s for s in steps if s < step])
    verb = "is" if before == 1 else "are"
    text = f"different: at step {step} {difference[1]}; {counted(before, 'logged step')} before step {step} {verb} identical"
    if changed:
        return False, f"{text}\nwhat differs ({run.folder} -> {new.folder}):{listing}"
    return (
        False,
        f"{text}\nno recorded difference explains this: code, versions, hardware, threads, text and tokenizer are the same",
    )


def differences(
    first_rows: dict[int, dict[str, Any]], new_rows: dict[int, dict[str, Any]], train: TrainConfig
) -> Iterator[tuple[int, str]]:
    """Yield (step, description) for each loss, gradient norm and learning rate that differs between two runs.

    `first_rows` (first run) and `new_rows` (second run) map each logged step to the metrics of this step; `train` holds the
    training settings of both runs. A metric that only one run has is a difference if both runs should have it (see `is_due`).
    Steps after the end of the shorter run are not compared, because two equal runs can end at different steps: a run that is
    stopped and continued validates once more, and early stopping counts this validation.
    """
    end = min(max(first_rows), max(new_rows))
    for step in sorted(step for step in {*first_rows, *new_rows} if step <= end):
        a, b = first_rows.get(step, {}), new_rows.get(step, {})
        for key in TRACE:
            if key in a and key in b:
                if a[key] != b[key]:
                    change = "" if a[key] is None or b[key] is None else f" ({b[key] - a[key]:+.2g})"
                    yield step, f"{key} is {a[key]} in the first run and {b[key]} in the new run{change}"
            elif (key in a or key in b) and is_due(key, step, train, is_logged=bool(a and b)):
                first, new = (row.get(key, "missing") for row in (a, b))
                yield step, f"{key} is {first} in the first run and {new} in the new run"


def is_due(key: str, step: int, train: TrainConfig, *, is_logged: bool) -> bool:
    """Tell whether both compared runs should have the metric `key` at `step`; `train` holds the training settings of both.

    A metric is due at a multiple of train.val_every. A training loss, a gradient norm or a learning rate is also due in two
    other cases: at a multiple of train.log_every, and if both runs have a row of metrics for `step` (`is_logged`), because
    every row contains these metrics.

    At any other step, a metric may be in one run only: a run that is stopped logs and validates the step at which it stops.
    """
    validates = step % train.val_every == 0
    return validates or (not key.startswith("val/") and (is_logged or step % train.log_every == 0))


if __name__ == "__main__":
    main()
