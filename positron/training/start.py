"""Law 2: where a run starts. Fresh, from its own newest checkpoint, from another run's, or refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.config import RunConfig, UserError
from positron.disk import lock, make_folder
from positron.door import Voice, first_rank
from positron.runs import Run, find_run
from positron.training.checkpoint import best_or_newest, load_checkpoint, newest_checkpoint
from positron.training.device import Machine, choose_machine, set_threads


@contextlib.contextmanager
def only_one(run: Run) -> Iterator[None]:
    """Two processes never train one run; ranks other than the first belong to the one that holds the lock."""

    def refuse() -> None:
        raise UserError(f"another process is training {run.folder}: wait for it, or give another name=")

    if first_rank():
        with lock(run.folder / "lock", refuse):
            yield
    else:
        yield


@dataclass(frozen=True)
class Start:
    """`checkpoint` restores everything, `weights` only the model; `tokenizer_from` is the run whose tokenizer is kept."""

    checkpoint: Path | None = None
    weights: Path | None = None
    tokenizer_from: Run | None = None
    step: int = 0
    is_own: bool = False  # the run goes on from its own checkpoint
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)  # what `auto` became when the run began


@contextlib.contextmanager
def begin(folder: Path, config: RunConfig) -> Iterator[tuple[Run, Machine, Start, Voice]]:
    """Hold the run of `folder` alone, speak into its log, take this machine, and decide where the run starts."""
    run = Run(make_folder(folder))
    with only_one(run), Voice(run.folder / "train.log", f"{folder.name}: " if config.device.share < 1 else "") as say:
        set_threads(config.device)
        machine = choose_machine(config.device, config.precision)
        say(f"running on {machine.why}")
        yield run, machine, decide_start(run, config, say), say


def decide_start(run: Run, config: RunConfig, say: Callable[[str], None]) -> Start:
    """Raises UserError where going on would mix two configurations, or overwrite or lose what the run has."""
    newest = newest_checkpoint(run.checkpoint_folder, say) if run.exists else None
    named = _named_checkpoint(config.ckpt_path, run, newest, say)
    if newest is not None:
        _refuse_other_checkpoint(run, named, newest)
        step = int(load_checkpoint(newest)["global_step"])
        if config.resume == "never":
            raise UserError(
                f"{run.folder} is at step {step} and resume=never would overwrite it: give another name=, "
                "or delete that folder"
            )
        _refuse_differences(run, config, say)
        say(f"resuming {run.folder} at step {step} from {newest.name}")
        return Start(checkpoint=newest, tokenizer_from=run, step=step, is_own=True, resolved=run.facts()["resolved"])
    if config.resume == "must":
        raise UserError(f"resume=must, but {run.folder} has no checkpoint to go on from")
    if named is not None:
        other = Run(named.parent.parent)
        step = int(load_checkpoint(named)["global_step"])
        say(f"starting {run.folder} at step {step} with everything of {named}")
        return Start(checkpoint=named, tokenizer_from=other if other.exists else None, step=step)
    if config.init_from is not None:
        other = find_run(config.init_from)
        weights = best_or_newest(other.checkpoint_folder, say)
        if weights is None:
            raise UserError(f"init_from={config.init_from}: {other.folder} has no checkpoint")
        say(f"fresh start in {run.folder} with the weights of {weights}")
        return Start(weights=weights, tokenizer_from=other)
    say(f"fresh start in {run.folder}")
    return Start()


def _named_checkpoint(ckpt_path: str | None, run: Run, newest: Path | None, say: Callable[[str], None]) -> Path | None:
    """The file that ckpt_path=FILE|RUN|latest means."""
    if ckpt_path is None:
        return None
    if ckpt_path == "latest":
        if newest is None:
            raise UserError(
                f"ckpt_path=latest, but {run.folder} has no checkpoint; leave ckpt_path out to start afresh"
            )
        return newest
    path = Path(ckpt_path).expanduser()
    if path.suffix == ".ckpt":
        load_checkpoint(path)  # says what is wrong with it, if anything
        return path
    other = find_run(ckpt_path)
    found = newest_checkpoint(other.checkpoint_folder, say)
    if found is None:
        raise UserError(f"ckpt_path={ckpt_path}: {other.folder} has no checkpoint")
    return found


def _refuse_other_checkpoint(run: Run, named: Path | None, newest: Path) -> None:
    """A run goes on from its own newest checkpoint; going back or elsewhere is a new run with a new name."""
    if named is None or named.resolve() == newest.resolve():
        return
    if str(named) == run.facts().get("forked_from"):
        return
    raise UserError(
        f"{run.folder} already has {newest.name}; to start from {named} instead, give the new run another name="
    )


def _refuse_differences(run: Run, config: RunConfig, say: Callable[[str], None]) -> None:
    differences = run.differences(config)
    extended = [d for d in differences if d.startswith("train.max_steps: ")]
    others = [d for d in differences if d not in extended] if config.train.extend else differences
    if others:
        hint = "train.extend=true accepts a longer horizon; otherwise " if extended and others is differences else ""
        raise UserError(
            f"{run.folder} was made with other settings ({'; '.join(others)}): {hint}give the same settings, "
            "or another name="
        )
    if extended:
        say(f"extending the horizon, {extended[0].split(': ')[1]} steps: the learning rate follows the new one")
        run.update(resolved={**run.facts()["resolved"], "max_steps": config.train.max_steps})
