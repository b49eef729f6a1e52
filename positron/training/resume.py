"""Decide where a run starts: at step 0, from its newest checkpoint, or from another run. Refuse a start that would lose work.

Giving the same command again continues a run (invariant 2 of docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from positron.config import RunConfig
from positron.model.memory import TRAINING_COPIES, check_memory
from positron.run.checkpoint import BEST, best_or_newest, checkpoints, load_checkpoint, newest_checkpoint
from positron.run.differences import differences, refuse_differences
from positron.run.facts import Resolved
from positron.run.find import find_run, no_checkpoint
from positron.run.folder import OUTPUTS, Run
from positron.run.metrics import read_metrics
from positron.run.provenance import read_provenance
from positron.run.samples import read_samples
from positron.system.console import one_line
from positron.system.disk import expanded, make_folder, refuse_links_in, sweep_temporary_files
from positron.system.errors import Diverged, Occupied, UserError
from positron.system.locks import lock
from positron.system.log import run_log
from positron.system.ranks import first_rank, started_together
from positron.training.device import Machine, choose_machine, set_threads, use_device
from positron.training.optim.custom import refuse_unusable

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_run(run: Run, processes: int) -> Iterator[None]:
    """Hold the lock of a run during a `with` block, so that no other command trains the run in the meantime.

    If the training has several processes, only the first process takes the lock. Raises UserError if another command holds the
    lock.
    """

    def refuse() -> None:
        together = started_together()
        if together > processes:
            raise UserError(
                f"a launcher has started {together} processes, and with device.devices={processes} each of them would train "
                f"{run.folder} on its own: give device.devices= (processes per machine), device.num_nodes= (machines) and "
                "device.strategy=ddp, or start a single process"
            )
        raise Occupied(f"another process is training {run.folder}: wait until it ends, or give another name=")

    if first_rank(processes):
        with lock(run.lock_path, refuse, instead="give another name="):
            yield
    else:
        yield


@dataclass(frozen=True)
class Start:
    """Describe the state from which a run starts.

    `checkpoint`: the file from which weights, optimizer and step are restored. `weights`: the file from which only the weights
    are restored. If both are None, the run starts with new weights. `tokenizer_from`: the run whose tokenizer is used. If it is
    None, the tokenizer does not come from another run.
    """

    checkpoint: Path | None = None
    weights: Path | None = None
    tokenizer_from: Run | None = None
    step: int = 0  # the optimizer step after which the training begins
    is_own: bool = False  # true if the checkpoint belongs to this run, which then continues
    resolved: Resolved | None = None  # the values that replaced `auto` when the run was started; None for a new run


@dataclass(frozen=True)
class Session:
    """Hold the facts of one training: the locked run, its settings, the machine, and the state from which the run starts."""

    run: Run
    config: RunConfig
    machine: Machine
    start: Start
    is_first_rank: bool  # this process is the first of those that train the run; only it writes files and logs
    started: float  # time.monotonic() at the start of the command, from which train.max_time counts


@contextlib.contextmanager
def open_session(folder: Path, config: RunConfig, started: float) -> Iterator[Session]:
    """Lock the run in `folder` during a `with` block, choose accelerator and precision, and decide from which state it starts.

    Yields a Session. What the block logs is also written to the log file of the run. `started`: time.monotonic() at the start
    of the command, from which train.max_time is counted. Raises UserError if the run cannot start as the configuration says,
    and Diverged if the run has diverged before. The folder of a new run is deleted if the block raises a UserError before the
    run has metrics or a checkpoint.
    """
    is_new = not folder.exists()
    run, processes = Run(make_folder(folder)), config.device.processes
    refuse_links_in(run.folder)
    prefix, is_first = f"{folder.name}: " if config.device.share < 1 else "", first_rank(processes)
    log = run_log(run.log_path, prefix=prefix, is_first_rank=is_first)
    with hold_run(run, processes), _no_trace_of_a_refusal(run, is_new), log:
        if is_first:
            sweep_temporary_files(run.folder)
        set_threads(config.device)
        machine = choose_machine(config.device, config.precision)
        use_device(machine)
        logger.info(f"running on {machine.why}")
        refuse_unusable(config.optimizer, machine.precision)
        refuse_untrainable(config, machine, vocab_size=1)  # the vocabulary is not known yet; it only adds parameters
        yield Session(run, config, machine, decide_start(run, config), is_first, started)


def refuse_untrainable(config: RunConfig, machine: Machine, *, vocab_size: int) -> None:
    """Raise UserError if training the model needs more memory than this machine has, by an estimate."""
    gpt, has_mean = config.model.with_vocab(vocab_size), config.schedule.average_share > 0
    copies = 1 if config.lora.rank else TRAINING_COPIES + has_mean
    is_new = config.init_from is None  # otherwise the model of another run decides its size
    check_memory(gpt, copies=copies, accelerator=machine.accelerator, device=config.device, is_new=is_new)


@contextlib.contextmanager
def _no_trace_of_a_refusal(run: Run, is_new: bool) -> Iterator[None]:
    """Delete the folder of a new run if the `with` block raises a UserError before the run has metrics or a checkpoint."""
    try:
        yield
    except UserError:
        is_there = run.folder.exists()  # the user may have deleted it, which is then the reason of the error
        if is_new and is_there and not run.metrics_path.exists() and not checkpoints(run.checkpoint_folder):
            shutil.rmtree(run.folder, ignore_errors=sys.platform == "win32")  # the lock is open, and stays there
        raise


def refuse_before_start(session: Session, *, last_step: int, fingerprint: str) -> None:
    """Raise UserError if the run continues with another text than the one it began with, or if a new run has no step to train.

    The first check is for a run that has a checkpoint; without one, the run begins anew, with any text. The second check is for
    a new run that starts from a checkpoint of another run (ckpt_path=): the checkpoint must be at an earlier step than
    `last_step`, the last step of this run. `fingerprint`: the hash of the training text. Call this function before a file of
    the run is changed. If the run continues, its step is logged.
    """
    run, start = session.run, session.start
    known = run.facts().data_fingerprint
    if start.is_own and known and known != fingerprint:
        before, now = run.settings().data.path, session.config.data.path
        if before != now:
            is_renamed = before is not None and now is not None and Path(before).name != Path(now).name
            raise UserError(
                f"{run.folder} was trained on another text, data.path={before}: give this path to continue the run, or another "
                "name= to start a new one"
                + (" (a file with another name counts as another text: undo a renaming)" if is_renamed else "")
            )
        raise UserError(
            f"the training text of {run.folder} has changed since the run started: restore the text, or give another name="
        )
    if start.checkpoint is not None and not start.is_own and start.step >= last_step:
        raise UserError(
            f"{start.checkpoint} is at step {start.step} and this run would end at step {last_step}: nothing is left to "
            f"train; give train.max_steps= (and train.stop_at=, if it is set) above {start.step}"
        )
    if start.is_own and start.checkpoint is not None:
        logger.info(f"resuming {run.folder} at step {start.step} from {start.checkpoint.name}")


def decide_start(run: Run, config: RunConfig) -> Start:
    """Return the state from which the run starts.

    The run starts from its newest checkpoint. If it has no checkpoint, it starts from the checkpoint that ckpt_path= names,
    else from the weights of the run that init_from= names, else with new weights at step 0.

    Raises UserError in four cases: a file that the start needs is missing or damaged, such as config.json of a run with
    checkpoints; `resume=` forbids the start; the run has a checkpoint and was started with other settings (train.extend=true
    permits a larger train.max_steps=); or the start would overwrite or lose checkpoints and metrics of the run. Raises
    Diverged, with the recorded message, if the run has diverged before with the same settings, because it would diverge again.
    """
    run.refuse_lost_settings()
    newest = newest_checkpoint(run.checkpoint_folder) if run.exists else None
    if newest is None:
        _refuse_lost_checkpoints(run)
        if run.facts().status == "diverged" and not differences(run, config):
            _refuse_diverged(run)
    if newest is not None:
        _refuse_other_checkpoint(run, config.ckpt_path, newest)
        step = int(load_checkpoint(newest)["global_step"])
        match config.resume:
            case "auto" | "must":
                pass
            case "never":
                raise UserError(
                    f"{run.folder} exists and is at step {step}, and resume=never does not continue a run: give another name=, "
                    "or delete that folder; to continue the run, leave resume=never out"
                )
            case _:
                assert_never(config.resume)
        _refuse_damage(run)
        _refuse_differences(run, config, step)
        return Start(checkpoint=newest, tokenizer_from=run, step=step, is_own=True, resolved=run.resolved())
    match config.resume:
        case "auto" | "never":
            pass
        case "must":
            raise no_checkpoint(run, "resume=must", "leave resume=must out to start a new run")
        case _:
            assert_never(config.resume)
    named = _named_checkpoint(config.ckpt_path, run)
    if named is not None:
        other = Run(named.parent.parent)
        step = int(load_checkpoint(named)["global_step"])
        logger.info(
            f"starting {run.folder} at step {step} with the weights, the optimizer and the step number of {named}"
        )
        return Start(checkpoint=named, tokenizer_from=other if other.exists else None, step=step)
    if config.init_from is not None:
        other = find_run(config.init_from)
        weights = best_or_newest(other.checkpoint_folder)
        if weights is None:
            raise UserError(
                f"init_from={config.init_from}: {other.folder} has no checkpoint: train it first, or name another run"
            )
        logger.info(f"fresh start in {run.folder} with the weights of {weights}")
        return Start(weights=weights, tokenizer_from=other)
    logger.info(f"fresh start in {run.folder}")
    return Start()


def _named_checkpoint(ckpt_path: str | None, run: Run) -> Path | None:
    """Return the checkpoint with which ckpt_path= lets a run start that has none, or None without ckpt_path=.

    ckpt_path=FILE names a checkpoint, and ckpt_path=RUN the newest one of another run. Raises UserError if the checkpoint does
    not exist or is damaged, and for ckpt_path=latest, which names the newest checkpoint of `run` itself.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "latest":
        raise no_checkpoint(run, "ckpt_path=latest", "leave ckpt_path= out to start at step 0")
    path = expanded(ckpt_path)
    if path.suffix == ".ckpt":
        path = path.resolve() if path.is_symlink() else path  # the user names it, so it may be a link
        load_checkpoint(path)  # raises UserError if the file is missing or damaged
        return path
    other = find_run(ckpt_path)
    checkpoint = newest_checkpoint(other.checkpoint_folder)
    if checkpoint is None:
        is_damaged = other.has_checkpoint
        raise UserError(
            f"ckpt_path={ckpt_path}: "
            + (
                f"every checkpoint in {other.checkpoint_folder} is damaged: restore one from a copy"
                if is_damaged
                else f"{other.folder} has no checkpoint: train it first"
            )
            + ", or name another run"
        )
    return checkpoint


def _refuse_damage(run: Run) -> None:
    """Raise UserError if run.json, metrics.jsonl, samples or provenance.json is damaged; training appends to these files."""
    run.refuse_damaged_facts()
    read_metrics(run.metrics_path)
    read_samples(run)
    read_provenance(run.folder)


def _refuse_other_checkpoint(run: Run, ckpt_path: str | None, newest: Path) -> None:
    """Raise UserError if ckpt_path= names another start than that of the run, which has the checkpoint `newest`.

    The checkpoint from which the run started, or its run, may have been trained further or deleted since, so only names are
    compared. ckpt_path= may also name the newest checkpoint of the run itself.
    """
    if ckpt_path is None or ckpt_path == "latest":
        return
    origin = run.facts().forked_from
    own = [newest, *([expanded(origin)] if origin else [])]
    path = expanded(ckpt_path)
    if path.suffix == ".ckpt":
        named = [path]
    else:
        named, own = [path, OUTPUTS / path], [checkpoint.parent.parent for checkpoint in own]
    if not {path.resolve() for path in named} & {path.resolve() for path in own}:
        raise UserError(
            f"{run.folder} already has the checkpoint {newest.name}: to start from ckpt_path={ckpt_path} instead, give the new "
            "run another name="
        )


def _refuse_lost_checkpoints(run: Run) -> None:
    """Raise UserError if all checkpoints of a run are damaged, or if a finished or pruned run has no checkpoint.

    Call this function only if the run has no readable checkpoint.

    Without this check, a new training would erase the metrics of the run.
    """
    if not run.exists:
        return
    folder = run.checkpoint_folder
    damaged = [path for path in (*checkpoints(folder), folder / BEST) if path.exists()]
    facts = run.facts()
    if damaged:
        reason = f"each of its checkpoints is damaged ({', '.join(path.name for path in damaged)})"
    elif facts.status in ("finished", "pruned"):
        reason = f"its checkpoints are missing, though it was trained to step {facts.step}"
    else:
        return
    raise UserError(
        f"{run.folder} cannot be continued: {reason}. Restore {folder} from a copy, give another name=, or delete "
        f"{run.folder} to train it again from the beginning"
    )


def _refuse_diverged(run: Run) -> None:
    raise Diverged(one_line(str(run.facts().error)))


def _refuse_differences(run: Run, config: RunConfig, step: int) -> None:
    extended = refuse_differences(run, config)
    if run.facts().status == "diverged":
        _refuse_diverged(run)
    if extended:
        before, after = run.resolved().max_steps, config.train.max_steps
        logger.info(
            f"extending the training from {before} to {after} steps: the learning rate follows the schedule of {after} steps"
        )
