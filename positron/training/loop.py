"""The loop: Lightning's trainer with our step, our callbacks and our files. Pretraining and SFT share it."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from itertools import takewhile
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment

from positron.config import RunConfig, seconds
from positron.data.modules import InstructData, PretrainData
from positron.model.gpt import GPT
from positron.run.folder import Run
from positron.run.history import cut_after
from positron.run.metrics import best_so_far, read_metrics
from positron.run.provenance import record_start
from positron.system.errors import Diverged, Interrupted, LeftAtOnce, UserError
from positron.system.voice import Voice
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.callbacks.checkpoints import Checkpoints, WholeCheckpointIO
from positron.training.callbacks.clock import Clock
from positron.training.callbacks.divergence import Divergence
from positron.training.callbacks.metrics_log import MetricsLog
from positron.training.callbacks.overfitting import Overfitting
from positron.training.callbacks.patience import Patience
from positron.training.callbacks.progress import Progress
from positron.training.callbacks.pruning import Pruning
from positron.training.callbacks.samples import Samples
from positron.training.callbacks.stopping import Stopping
from positron.training.callbacks.validation import Validation
from positron.training.compiling import compile_in_place
from positron.training.conclude import conclude, say_where_it_continues
from positron.training.device import (
    LIGHTNING_PRECISION,
    is_out_of_memory,
    smaller_batch,
    smaller_memory,
)
from positron.training.module import PretrainModule, SFTModule
from positron.training.monitors import open_monitors
from positron.training.resolve import Plan
from positron.training.resume import Start
from positron.training.signals import Signals
from positron.training.timing import MatmulPeak, SpeedFacts
from positron.training.trackers.open import open_trackers
from positron.training.trackers.tracker import Tracker


def fit(
    run: Run,
    config: RunConfig,
    plan: Plan,
    model: GPT,
    data: PretrainData | InstructData,
    tokenizer: Tokenizer,
    start: Start,
    *,
    begun: float,
    say: Voice,
) -> dict[str, Any]:
    """Train from `start` to `plan.last_step`; keeps run.json true however this ends. Returns the run's facts.

    `begun`: when the process took up the run, by time.monotonic, from which `train.max_time` counts.
    """
    limit = None if config.train.max_time is None else seconds(config.train.max_time)
    trackers: list[Tracker] = []
    status, error = "failed", None
    with Signals(say) as signals:
        try:
            stopping = Stopping(last_step=plan.last_step, max_seconds=limit, begun=begun, signals=signals)
            pruning = (
                Pruning(run, config.sweep.startup_jobs, plan.last_step) if config.sweep.prune == "median" else None
            )
            was_pruned = pruning is not None and run.facts().get("status") == "pruned"
            if say.is_first_rank:
                cut_after(run, start.step)  # also what a run wrote that was killed before its first checkpoint
                facts = {"data_fingerprint": data.train.fingerprint, "floor_bpb": data.val.floor_bpb}
                run.update(status="running", step=start.step, resolved=plan.resolved(), **facts)
            trackers = _trackers(run, config, start, say)
            _without_notices()
            patience = _patience(run, config)
            if patience is not None and patience.is_over:
                say(f"nothing to do: {run.folder} stopped early at step {start.step}, {patience.why}")
            elif was_pruned:
                say(f"nothing to do: {run.folder} was pruned at step {start.step}")
            elif start.step < plan.last_step:
                if say.is_first_rank:
                    _record_start(run, config, plan, data, tokenizer, start)
                if config.device.compile:
                    _compile(plan, model, data, say)
                module = _module(config, plan, model, data, tokenizer)
                trainer = _trainer(
                    run, config, plan, data, tokenizer, start, stopping, patience, pruning, trackers, say
                )
                trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint)
            else:
                say(f"nothing to do: {run.folder} is at step {start.step} of {plan.horizon}")
            status = _status(plan, stopping, patience, was_pruned or (pruning is not None and pruning.pruned))
        except (Interrupted, LeftAtOnce) as interruption:
            status, error = "stopped", str(interruption)
            raise
        except KeyboardInterrupt:  # where signals belong to who called us
            status, error = "stopped", "SIGINT"
            raise
        except Diverged as fault:
            status, error = "diverged", str(fault)
            raise
        except BaseException as fault:
            error = " ".join(str(fault).split()) or type(fault).__name__
            if is_out_of_memory(fault):
                size = plan.micro_batch_size
                remedy = smaller_memory(config.device.checkpoint_activations, smaller_batch(size, max(1, size // 2)))
                raise UserError(f"out of memory: try {remedy}") from fault
            raise
        finally:
            signals.can_save = False
            data.train.close()
            try:
                if say.is_first_rank:
                    try:
                        conclude(run, status, error, signals, say)
                    finally:  # also where a second signal ends the writing of the report
                        if status == "stopped" and error is not None:
                            say_where_it_continues(run, say)
            finally:
                for tracker in trackers:
                    tracker.finish(1 if status in ("failed", "diverged") else 0)
    return run.facts()


def _status(plan: Plan, stopping: Stopping, patience: Patience | None, pruned: bool) -> str:
    """Of a run whose training came to its end without an error."""
    if pruned:
        return "pruned"
    early = patience is not None and patience.is_over
    cut = plan.last_step < plan.horizon or stopping.out_of_time
    return "stopped" if cut and not early else "finished"


def _record_start(
    run: Run, config: RunConfig, plan: Plan, data: PretrainData | InstructData, tokenizer: Tokenizer, start: Start
) -> None:
    record_start(
        run.folder,
        step=start.step,
        seed=config.seed,
        resolved=plan.resolved(),
        weights=None if start.is_own else start.weights or start.checkpoint,
        text=data.train.fingerprint,
        tokenizer=tokenizer.hash,
    )


def _trackers(run: Run, config: RunConfig, start: Start, say: Voice) -> list[Tracker]:
    if not say.is_first_rank:
        return []
    settings = {**dataclasses.asdict(config), "resolved": run.resolved()}  # and what `auto` became
    return open_trackers(config.logger, run.folder, settings, start.step + 1, say)


def _module(
    config: RunConfig, plan: Plan, model: GPT, data: PretrainData | InstructData, tokenizer: Tokenizer
) -> PretrainModule:
    apart = config.data.document_mask or (config.sft is not None and config.sft.packing)
    return (PretrainModule if config.sft is None else SFTModule)(
        model,
        data.token_bytes if isinstance(data, PretrainData) else tokenizer.token_bytes(),
        optimizer=config.optimizer,
        schedule=config.schedule,
        horizon=plan.horizon,
        grad_clip=config.train.grad_clip,
        micro_batch_size=plan.micro_batch_size,
        max_bad_steps=config.train.max_bad_steps,
        seed=config.seed,
        document_start=tokenizer.special_id(END_OF_TEXT) if apart else None,
        identity={"tokenizer_hash": tokenizer.hash, "gpt_config": dataclasses.asdict(model.config)},
    )


def _compile(plan: Plan, model: GPT, data: PretrainData | InstructData, say: Voice) -> None:
    """Checked beside eager where one process can do it alone; SFT's batches change their widths, and several ranks'
    devices are not known yet."""
    if plan.world_size == 1 and isinstance(data, PretrainData):
        compile_in_place(model, data.train.batch(1)[: plan.micro_batch_size], plan.machine, say)
    else:
        model.compile()


def _trainer(
    run: Run,
    config: RunConfig,
    plan: Plan,
    data: PretrainData | InstructData,
    tokenizer: Tokenizer,
    start: Start,
    stopping: Stopping,
    patience: Patience | None,
    pruning: Pruning | None,
    trackers: list[Tracker],
    say: Voice,
) -> L.Trainer:
    """Lightning runs the loop and the devices. Intervals, validation, files and logs are our callbacks'."""
    train, gpt = config.train, plan.gpt
    rows = read_metrics(run.metrics_path)
    speed = SpeedFacts(
        batch_tokens=plan.batch_tokens,
        flops_per_token=gpt.flops_per_token(),
        bytes_per_token=data.train.bytes_per_token,
        peak=MatmulPeak(gpt, plan.machine, plan.micro_batch_size, plan.world_size),
    )
    clock = Clock(train.log_every)

    def is_last(trainer: L.Trainer) -> bool:
        """Whether the run ends with this step, not only this process."""
        return trainer.global_step >= plan.horizon or (patience is not None and patience.is_over)

    samples = Samples(
        run.folder,
        tokenizer,
        trackers,
        say,
        every=train.sample_every,
        tokens=train.sample_tokens,
        **_sample_prompt(config, data, tokenizer),
    )
    saving = Checkpoints(
        run.checkpoint_folder,
        every=train.save_every,
        keep_last=train.keep_last,
        best=best_so_far(rows, run.facts(), start.step),
        note_best=lambda step, bpb: run.update(**{"best/step": step, "best/bpb": bpb}),
    )
    monitors = open_monitors(config.monitor, data, tokenizer.vocab_size, config.device.strategy, say)
    intervals = {train.log_every, *(monitor.every for monitor in monitors)}
    callbacks: list[L.Callback] = [
        clock,
        stopping,
        Validation(data, every=train.val_every, say=say),
        Overfitting(rows, say),
        *[callback for callback in (patience, pruning) if callback is not None],
        *monitors,
        MetricsLog(run.folder, clock, trackers, intervals=intervals, speed=speed),
        Divergence(vocab_size=tokenizer.vocab_size, batches=data.val_dataloader, is_last=is_last, say=say),
        samples,
        saving,
        Progress(clock, say, last_step=plan.last_step, speed=speed),
    ]
    return L.Trainer(
        accelerator=plan.machine.accelerator,
        devices=config.device.devices,
        num_nodes=config.device.num_nodes,
        strategy=config.device.strategy,
        precision=LIGHTNING_PRECISION[plan.machine.precision],  # type: ignore[arg-type]
        max_epochs=-1,  # the loader has no end: `Stopping` ends the run
        limit_val_batches=0,  # `Validation` validates
        callbacks=callbacks,
        plugins=[WholeCheckpointIO(), *([OnlyProcess()] if config.device.processes == 1 else [])],
        default_root_dir=run.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class OnlyProcess(LightningEnvironment):
    """One process on one device, whatever variables a launcher, a notebook or SLURM has left in the environment."""

    @property
    def creates_processes_externally(self) -> bool:
        return False

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def _patience(run: Run, config: RunConfig) -> Patience | None:
    if config.sft is None or config.sft.patience == 0:
        return None
    return Patience(config.sft.patience, read_metrics(run.metrics_path))


def _sample_prompt(config: RunConfig, data: PretrainData | InstructData, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the samples begin with, as they are shown and as ids, and the ids that end them."""
    end = tokenizer.special_id(END_OF_TEXT)
    if isinstance(data, PretrainData):
        text = config.train.sample_prompt or "Once upon a time"
        return {"prompt": text, "ids": [end, *tokenizer.encode(text)], "stop_ids": [end]}
    messages = data.example.messages
    if config.train.sample_prompt:
        asked = [Message("user", config.train.sample_prompt)]
    else:  # all up to the first answer, a system message too
        asked = list(takewhile(lambda message: message.role != "assistant", messages)) or list(messages[:1])
    ids = conversation.prompt(asked, tokenizer)
    return {"prompt": f"{asked[-1].content}\n\n", "ids": ids, "stop_ids": conversation.stop_ids(tokenizer)}


def _without_notices() -> None:
    """Lightning's notices tell of its own ways of logging, saving and counting, which are not in use here."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
