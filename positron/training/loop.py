"""Run the training loop, which all kinds of training share: Lightning's Trainer with Positron's step, callbacks and files."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import lightning as L
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins import Precision as LightningPrecision

from positron.config import DeviceConfig, Precision, RunConfig
from positron.model.gpt import GPT
from positron.run.checkpoint import checkpoints
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.run.history import cut_after
from positron.run.metrics import best_so_far, read_metrics
from positron.run.provenance import read_provenance, record_start
from positron.system.children import end_with
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, Unreachable, UserError
from positron.system.formatting import counted
from positron.system.paths import without_home
from positron.system.ranks import STARTER, STARTERS_PRECISION, variables_of_places
from positron.text.tokenizer import Tokenizer
from positron.training.callbacks.agreement import Agreement
from positron.training.callbacks.checkpoints import Checkpoints, WholeCheckpointIO, complete_best
from positron.training.callbacks.clock import Clock
from positron.training.callbacks.divergence import Divergence
from positron.training.callbacks.kept_weights import WeightHistory
from positron.training.callbacks.metrics_log import MetricsLog
from positron.training.callbacks.overfitting import Overfitting
from positron.training.callbacks.progress import Progress
from positron.training.callbacks.samples import Samples
from positron.training.callbacks.stopping import CommonEnd
from positron.training.callbacks.validation import Validation
from positron.training.compiling import compile_in_place
from positron.training.conclude import conclude, log_how_to_continue
from positron.training.device import (
    Machine,
    batch_remedy,
    is_lost_connection,
    is_out_of_memory,
    memory_remedy,
)
from positron.training.ends import Ends, is_pruned, open_ends, status_at_end, why_it_is_over
from positron.training.module import TrainingModule
from positron.training.monitors import open_monitors
from positron.training.objective.base import Objective, Part
from positron.training.resolve import Plan, too_long_warmup
from positron.training.resume import Session
from positron.training.sharding import FullyShardedStrategy
from positron.training.signals import Signals
from positron.training.timing import MatmulPeak, SpeedFacts
from positron.training.trackers.open import open_trackers
from positron.training.trackers.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """Hold the metrics from before this process started, and the trackers, such as wandb, that receive the new metrics."""

    rows: list[dict[str, Any]]  # the rows of metrics.jsonl up to the step after which this training begins
    trackers: list[Tracker]


def fit(
    session: Session,
    plan: Plan,
    model: GPT,
    objective: Objective,
    tokenizer: Tokenizer,
    callbacks: Sequence[L.Callback] = (),
) -> Facts:
    """Train a run up to step `plan.last_step`, unless something ends it earlier, and return the content of its run.json.

    The training begins in the state `session.start`. It ends earlier after a signal, at its time limit, by early stopping, or
    if the run belongs to a sweep and is worse than most other runs. If the run has already reached its end, nothing is trained.
    run.json records how the run ended, also after an error.

    `callbacks` are the user's own callbacks. After each step, they run after validation and the monitors (measurements inside
    the model), and before metrics, samples and checkpoints are written. So values that they add to `module.metrics` are
    recorded.

    Raises Interrupted or LeftAtOnce after a signal, Diverged if the loss diverges, and UserError if the memory is too small.
    If another process of the run ended, all processes but the first raise Unreachable. Any other error that ends the training
    is raised again.
    """
    run = session.run
    trackers: list[Tracker] = []
    status, error, reason = "failed", None, None
    with Signals(has_others=session.config.device.processes > 1) as signals:
        try:
            was_pruned, reason = is_pruned(session, plan), why_it_is_over(session, plan, objective)
            if session.is_first_rank:
                # a killed run may have written rows after its last checkpoint; without a checkpoint, all rows are such rows
                cut_after(run, session.start.step if session.start.is_own else 0)
                if session.start.is_own and session.start.checkpoint in checkpoints(run.checkpoint_folder):
                    complete_best(run, session.start.checkpoint, keeps_best=objective.keeps_best)
                if reason is None:
                    _record_beginning(session, plan, objective)
                # also if nothing is trained: wandb, asked for afterwards, gets the rows of the run
                trackers = _open_trackers(session)
            # the other processes may read the file before the first has cut it, but all of them must begin with the same rows
            rows = [row for row in read_metrics(run.metrics_path) if row["step"] <= session.start.step]
            records = Records(rows, trackers)
            ends = open_ends(session, plan, objective, records.rows, signals)
            if reason is not None:
                logger.info(reason)
                step = session.start.step
            else:
                step = _train(session, plan, model, objective, tokenizer, records, ends, callbacks)
            status = "pruned" if was_pruned else status_at_end(plan, ends, step)
        except (Interrupted, LeftAtOnce) as interruption:
            status, error = "stopped", str(interruption)
            raise
        except KeyboardInterrupt:  # when the calling program handles signals
            status, error = "stopped", "SIGINT"
            raise
        except Diverged as fault:
            status, error = "diverged", str(fault)
            raise
        except BaseException as fault:
            error = " ".join(str(fault).split()) or type(fault).__name__
            if is_out_of_memory(fault):
                size = plan.micro_batch_size
                remedy = memory_remedy(
                    session.config.device.checkpoint_activations, batch_remedy(size, max(1, size // 2))
                )
                raise UserError(f"out of memory: try {remedy}") from fault
            if not session.is_first_rank and is_lost_connection(fault):
                raise Unreachable("another process of this run ended; see its message") from fault
            raise
        finally:
            signals.can_save = False
            _unwatch_other_processes()
            objective.close()
            try:
                if session.is_first_rank:
                    try:
                        conclude(run, status, error, signals, keeps_best=objective.keeps_best, is_new=reason is None)
                    finally:  # also if a second signal interrupts the report
                        if status == "stopped" and error is not None:
                            log_how_to_continue(run)
            finally:
                for tracker in trackers:
                    tracker.finish(1 if status in ("failed", "diverged") else 0)
    return run.facts()


def _record_beginning(session: Session, plan: Plan, objective: Objective) -> None:
    """Record in run.json that the run is being trained."""
    facts = {"data_fingerprint": objective.fingerprint, "floor_bpb": floor_bpb(objective), **objective.dependencies}
    session.run.update(status="running", step=session.start.step, resolved=plan.resolved(), **facts)


def _open_trackers(session: Session) -> list[Tracker]:
    """Open the trackers of the run, such as wandb."""
    run, config = session.run, session.config
    settings = without_home({**dataclasses.asdict(config), "resolved": dataclasses.asdict(run.resolved())})
    return open_trackers(config.logger, run.folder.absolute(), settings, session.start.step + 1)


def _train(
    session: Session,
    plan: Plan,
    model: GPT,
    objective: Objective,
    tokenizer: Tokenizer,
    records: Records,
    ends: Ends,
    callbacks: Sequence[L.Callback],
) -> int:
    """Train with Lightning, from the state `session.start` until a callback stops the trainer; return the last step."""
    warmup_steps = session.config.schedule.warmup_steps
    # a reproduction has to repeat the warmup of its original, so the warning could not help
    if warmup_steps >= plan.horizon and "reproduces" not in read_provenance(session.run.folder):
        logger.warning(too_long_warmup(warmup_steps, plan.horizon, is_own=session.start.is_own))
    if session.is_first_rank:
        _record_start(session, plan, objective, tokenizer)
    if session.config.device.compile:
        _compile(session, plan, model, objective)
    _without_notices()
    module = _module(session.config, plan, model, objective, tokenizer)
    # a callback may change the current folder: the run is written to its folder nevertheless
    here, checkpoint = Path.cwd(), session.start.checkpoint
    located = dataclasses.replace(session, run=Run(session.run.folder.absolute()))
    objective.interruption = ends.stopping.signals.interruption
    trainer = _trainer(session, plan, _callbacks(located, plan, objective, tokenizer, records, ends, callbacks))
    others = plan.world_size - 1
    if others:
        _end_with_starter(trainer, plan.machine.precision)
        variables = variables_of_places()
        reason = f" (the environment has {variables})" if variables else ""
        logger.info(f"waiting for {counted(others, 'other process', 'other processes')}{reason}; Ctrl-C ends the run")
        ends.stopping.signals.release()
    if session.config.device.strategy != "auto":
        # if this variable were not set, Lightning would change the number of threads
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    try:
        path = None if checkpoint is None else checkpoint.absolute()
        trainer.fit(module, Steps(objective, trainer, plan.last_step, ends.stopping.signals), ckpt_path=path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # the user deleted it, which has ended the training
            os.chdir(here)
    return trainer.global_step


def _end_with_starter(trainer: L.Trainer, precision: Precision) -> None:
    """Make this process exit when the process that has started it with Lightning ends.

    In the process that starts the others, only set the environment variables from which they know its id and its `precision`.
    If torchrun or SLURM starts the processes, do nothing.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    starter = os.environ.get(STARTER)
    if environment is not None and not environment.creates_processes_externally:
        os.environ[STARTER], os.environ[STARTERS_PRECISION] = str(os.getpid()), precision
    elif starter is not None and starter != str(os.getpid()):
        end_with(int(starter))


def _unwatch_other_processes() -> None:
    """Prevent Lightning from killing this process if one that it has started ends with an error.

    The kill is meant for a process that would wait for the ended one forever. After a signal, a divergence or an error, each
    process ends with an exit code other than 0, and the first one still writes the weights and the report.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":  # Lightning's; it calls its method `_run` every five seconds
            vars(thread)["_run"] = lambda: True


class Steps:
    """Iterate over the batches of the steps that follow the trainer's current step.

    Each item is the list of this rank's micro-batches for one optimizer step. An iterator has no state except the step. After
    `last_step`, the last batch is repeated endlessly: Lightning reads a batch ahead, whose text may not be available.

    A signal ends the wait for a batch, because a streamed text may come very late. If the training has several processes,
    `Objective.batch` ends it in all of them together.
    """

    def __init__(self, objective: Objective, trainer: L.Trainer, last_step: int, signals: Signals) -> None:
        self.objective, self.trainer, self.last_step, self.signals = objective, trainer, last_step, signals

    def __iter__(self) -> Iterator[list[Part]]:
        trainer = self.trainer
        step, to_cuda = trainer.global_step, trainer.strategy.root_device.type == "cuda"
        while True:
            step = min(step + 1, self.last_step)
            with self.signals.ending_wait() if trainer.world_size == 1 else contextlib.nullcontext():
                parts = self.objective.batch(step, trainer.global_rank, trainer.world_size)
            if to_cuda:  # from pinned memory, Lightning copies to the GPU without waiting
                parts = [tuple(tensor.pin_memory() for tensor in part) for part in parts]
            yield parts


def floor_bpb(objective: Objective) -> float | None:
    """Return the entropy of the validation text in bits per byte, or None if it is unknown.

    A model that has not seen the text cannot have a lower expected loss.
    """
    return None if objective.val_bits is None else objective.val_bits / objective.val_bytes


def _record_start(session: Session, plan: Plan, objective: Objective, tokenizer: Tokenizer) -> None:
    start = session.start
    record_start(
        session.run.folder,
        step=start.step,
        seed=session.config.seed,
        device=session.config.device,
        resolved=plan.resolved(),
        weights=None if start.is_own else start.weights or start.checkpoint,
        text=objective.fingerprint,
        tokenizer=tokenizer.hash,
        **objective.dependencies,
    )


def _module(config: RunConfig, plan: Plan, model: GPT, objective: Objective, tokenizer: Tokenizer) -> TrainingModule:
    return TrainingModule(
        model,
        objective,
        optimizer=config.optimizer,
        schedule=config.schedule,
        horizon=plan.horizon,
        grad_clip=config.train.grad_clip,
        max_bad_steps=config.train.max_bad_steps,
        seed=config.seed,
        identity={"tokenizer_hash": tokenizer.hash, "gpt_config": dataclasses.asdict(model.config)},
    )


def _compile(session: Session, plan: Plan, model: GPT, objective: Objective) -> None:
    """Compile the model, compare it with eager mode, and undo the compilation if it fails or if the results differ.

    Each process does this on its own device, with a micro-batch of the next step. If the weights are sharded, the comparison is
    left out: one device may be too small for all weights.
    """
    if plan.machine.shards_weights:
        model.compile()
    else:
        # a streamed text of earlier steps may be deleted; only the first rank fetches text
        parts = objective.batch(session.start.step + 1, 0 if session.is_first_rank else 1, plan.world_size)
        compile_in_place(model, parts[0], plan.machine, objective.loss)


def _callbacks(
    session: Session,
    plan: Plan,
    objective: Objective,
    tokenizer: Tokenizer,
    records: Records,
    ends: Ends,
    of_the_user: Sequence[L.Callback],
) -> list[L.Callback]:
    """Return the callbacks in the order in which Lightning calls them.

    The order matters: after a step, the callbacks first measure and decide whether the run ends, then MetricsLog writes the
    metrics, and Divergence stops a diverged run before samples, weights and checkpoints are written.
    """
    run, config, train = session.run, session.config, session.config.train
    speed = SpeedFacts(
        flops_per_token=plan.gpt.flops_per_token(),
        peak=MatmulPeak(plan.gpt, plan.machine, plan.micro_tokens, plan.world_size),
    )
    monitors = open_monitors(config.monitor, objective, tokenizer.vocab_size, config.device.shards_weights)
    intervals = {train.log_every, train.save_every, *(monitor.every for monitor in monitors)}
    clock = Clock({*intervals, train.val_every}, plan.last_step, plan.batch_tokens)

    def is_last(trainer: L.Trainer) -> bool:
        """Tell whether the run is finished after this step; False if it only stops here and can be continued."""
        return trainer.global_step >= plan.horizon or ends.is_out_of_patience

    samples = Samples(
        run.folder,
        tokenizer,
        records.trackers,
        every=train.sample_every,
        tokens=train.sample_tokens,
        prompt=objective.sample_prompt(train.sample_prompt),
    )
    history = WeightHistory(run.history_folder, count=train.keep_history, horizon=plan.horizon, is_last=is_last)
    saving = Checkpoints(
        run.checkpoint_folder,
        every=train.save_every,
        keep_last=train.keep_last,
        best=best_so_far(records.rows, run.facts(), session.start.step)[0] if objective.keeps_best else None,
        note_saved=lambda step: run.update(step=step, tokens=clock.tokens, time_s=round(clock.time_s, 3)),
        note_best=lambda step, bpb: run.update(best_step=step, best_bpb=bpb),
    )
    return [
        *([Agreement(plan.resolved())] if plan.world_size > 1 else []),
        clock,
        ends.stopping,
        Validation(objective, every=train.val_every, note_length=lambda length: run.update(val_bytes=length)),
        *([Overfitting(records.rows)] if objective.keeps_best else []),
        *[callback for callback in (ends.patience, ends.pruning) if callback is not None],
        *monitors,
        *of_the_user,
        *([CommonEnd(bool(of_the_user))] if plan.world_size > 1 else []),
        MetricsLog(run.folder, clock, records.trackers, intervals=intervals, speed=speed),
        Divergence(vocab_size=tokenizer.vocab_size, objective=objective, is_last=is_last),
        samples,
        *([history] if train.keep_history else []),
        saving,
        Progress(clock, last_step=plan.last_step, speed=speed, is_alone=config.device.share == 1),
    ]


def _trainer(session: Session, plan: Plan, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a Lightning Trainer that only runs the training steps; Positron's callbacks validate, log and write files.

    Raises UserError if the environment gives this process another place among the processes than the settings do. Otherwise
    the processes would wait for each other forever, or no process or each of them would write the run.
    """
    device = session.config.device
    try:
        trainer = _new_trainer(session, plan, callbacks)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if environment is not None:
            environment.validate_settings(num_devices=device.devices, num_nodes=device.num_nodes)
    except (ValueError, RuntimeError) as error:
        if plan.world_size == 1 or not variables_of_places():
            raise
        raise _misplaced(device) from error
    is_one_of_them = trainer.global_rank < trainer.world_size == plan.world_size
    if not is_one_of_them or trainer.is_global_zero != session.is_first_rank:
        raise _misplaced(device)
    return trainer


def _misplaced(device: DeviceConfig) -> UserError:
    """Return the error for a process whose environment does not fit `device.devices` and `device.num_nodes`."""
    return UserError(
        f"device.devices={device.devices} device.num_nodes={device.num_nodes} do not fit the environment of this process "
        f"({variables_of_places()}): start one process for each device with torchrun --nproc-per-node={device.devices} or srun "
        f"--ntasks-per-node={device.devices}, or unset these variables"
    )


def _new_trainer(session: Session, plan: Plan, callbacks: list[L.Callback]) -> L.Trainer:
    device = session.config.device
    return L.Trainer(
        accelerator=plan.machine.accelerator,
        devices=device.devices,
        num_nodes=device.num_nodes,
        strategy=FullyShardedStrategy() if device.shards_weights else device.strategy,
        max_epochs=-1,  # no limit: the callback `Stopping` ends the run
        limit_val_batches=0,  # the callback `Validation` validates instead
        callbacks=callbacks,
        plugins=[_precision(plan.machine), WholeCheckpointIO(), *_environment(device)],
        default_root_dir=session.run.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _precision(machine: Machine) -> LightningPrecision:
    """Return Lightning's plugin for the precision of the machine.

    If Lightning got the name of the precision instead, it would use bf16 in place of fp16 on a CPU.
    """
    match machine.precision:
        case "fp32":
            return LightningPrecision()
        case "bf16":
            return MixedPrecision("bf16-mixed", machine.accelerator)
        case "fp16":
            return MixedPrecision("16-mixed", machine.accelerator)
        case _:
            assert_never(machine.precision)


def _environment(device: DeviceConfig) -> list[ClusterEnvironment]:
    """Return the cluster environment that Lightning is to use, or an empty list if Lightning detects the right one."""
    if device.processes == 1:
        return [OnlyProcess()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # at a signal of SLURM, Lightning would otherwise write a checkpoint of its own and submit the job again
        return [SLURMEnvironment(auto_requeue=False)]
    return []


class OnlyProcess(LightningEnvironment):
    """Tell Lightning to run one process on one device, whatever environment variables a launcher, notebook or SLURM has set."""

    @property
    def creates_processes_externally(self) -> bool:
        """Return False, because no launcher starts other processes."""
        return False

    def local_rank(self) -> int:
        """Return 0, the rank of the only process."""
        return 0

    def node_rank(self) -> int:
        """Return 0, the rank of the only machine."""
        return 0


def _without_notices() -> None:
    """Hide Lightning's notices about its own logging, checkpoints and counters, which Positron does not use."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
