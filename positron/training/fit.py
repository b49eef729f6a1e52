"""The loop: Lightning's trainer with our step, our callbacks and our files. Pretraining and SFT share it."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L

from positron.config import RunConfig, UserError, seconds
from positron.data.instruct import InstructData
from positron.data.pretrain import PretrainData
from positron.disk import make_folder, whole_file, write_json
from positron.door import Voice
from positron.evaluation.metrics import best_bpb, read_metrics
from positron.evaluation.report import write_report
from positron.model.gpt import GPT
from positron.provenance import record_start
from positron.runs import Run, bare_names
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.callbacks import Clock, Interrupted, Patience, Stopping, Validation
from positron.training.checkpoint import BEST, checkpoint_fault, load_checkpoint
from positron.training.compiling import compile_in_place
from positron.training.device import (
    LIGHTNING_PRECISION,
    is_out_of_memory,
    smaller_batch,
    smaller_memory,
)
from positron.training.journal import Journal, Samples, cut_after
from positron.training.loggers import Dashboard, open_dashboards
from positron.training.module import PretrainModule, SFTModule
from positron.training.monitors import open_monitors
from positron.training.plan import Plan
from positron.training.progress import Progress
from positron.training.pruning import Pruning
from positron.training.saving import Checkpoints, WholeCheckpointIO
from positron.training.start import Start
from positron.training.timing import MatmulPeak, SpeedFacts


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
    _refuse_other_data(run, data)
    limit = None if config.train.max_time is None else seconds(config.train.max_time)
    stopping = Stopping(last_step=plan.last_step, max_seconds=limit, begun=begun, say=say)
    pruning = Pruning(run, config.sweep.startup_jobs, plan.last_step) if config.sweep.prune == "median" else None
    was_pruned = pruning is not None and run.facts().get("status") == "pruned"
    if say.is_first_rank:
        cut_after(run.folder, start.step)  # also what a run wrote that was killed before its first checkpoint
        facts = {"data_fingerprint": data.train.fingerprint, "floor_bpb": data.val.floor_bpb}
        run.update(status="running", step=start.step, resolved=plan.resolved(), **facts)
    dashboards = _dashboards(run, config, start, say)
    _without_notices()
    status, error = "failed", None
    try:
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
            module = _module(config, plan, model, tokenizer)
            deciding = [callback for callback in (patience, pruning) if callback is not None]
            trainer = _trainer(run, config, plan, data, tokenizer, stopping, deciding, dashboards, say)
            trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint)
        else:
            say(f"nothing to do: {run.folder} is at step {start.step} of {plan.horizon}")
        status = _status(plan, stopping, patience, was_pruned or (pruning is not None and pruning.pruned))
    except Interrupted as interruption:
        status, error = "stopped", str(interruption)
        raise
    except BaseException as fault:
        error = " ".join(str(fault).split()) or type(fault).__name__
        if is_out_of_memory(fault):
            size = plan.micro_batch_size
            remedy = smaller_memory(config.device.checkpoint_activations, smaller_batch(size, max(1, size // 2)))
            raise UserError(f"out of memory: try {remedy}") from fault
        raise
    finally:
        data.train.close()
        try:
            if say.is_first_rank:
                _conclude(run, status, error, say)
        finally:
            for dashboard in dashboards:
                dashboard.finish(0 if status != "failed" else 1)
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


def _refuse_other_data(run: Run, data: PretrainData | InstructData) -> None:
    """Law 2 holds for the data too: a text that was edited since is another text."""
    known = run.facts().get("data_fingerprint")
    if known and known != data.train.fingerprint:
        raise UserError(
            f"the text behind {run.folder} has changed since it was begun: restore it, or give another name="
        )


def _dashboards(run: Run, config: RunConfig, start: Start, say: Voice) -> list[Dashboard]:
    if not say.is_first_rank:
        return []
    settings = {**dataclasses.asdict(config), "resolved": run.facts()["resolved"]}  # and what `auto` became
    return open_dashboards(config.logger, run.folder, settings, start.step + 1, say)


def _module(config: RunConfig, plan: Plan, model: GPT, tokenizer: Tokenizer) -> PretrainModule:
    apart = config.data.document_mask or (config.sft is not None and config.sft.packing)
    return (PretrainModule if config.sft is None else SFTModule)(
        model,
        tokenizer.token_bytes(),
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
    stopping: Stopping,
    deciding: Sequence[L.Callback],
    dashboards: list[Dashboard],
    say: Voice,
) -> L.Trainer:
    """Lightning runs the loop and the devices. Intervals, validation, files and logs are our callbacks'."""
    train, gpt = config.train, plan.gpt
    speed = SpeedFacts(
        batch_tokens=plan.batch_tokens,
        flops_per_token=gpt.flops_per_token(),
        bytes_per_token=data.train.bytes_per_token,
        peak=MatmulPeak(gpt, plan.machine, plan.micro_batch_size, plan.world_size),
    )
    clock = Clock(train.log_every)
    samples = Samples(
        run.folder,
        tokenizer,
        dashboards,
        say,
        every=train.sample_every,
        tokens=train.sample_tokens,
        **_sample_prompt(config, data, tokenizer),
    )
    saving = Checkpoints(
        run.checkpoint_folder,
        every=train.save_every,
        keep_last=train.keep_last,
        best=best_bpb(read_metrics(run.folder / "metrics.jsonl")),
    )
    monitors = open_monitors(config.monitor, data, tokenizer.vocab_size, config.device.strategy, say)
    intervals = {train.log_every, *(monitor.every for monitor in monitors)}
    callbacks = [
        clock,
        stopping,
        Validation(data, every=train.val_every, say=say),
        *deciding,
        *monitors,
        Journal(run.folder, clock, dashboards, intervals=intervals, speed=speed),
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
        plugins=[WholeCheckpointIO()],
        default_root_dir=run.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _patience(run: Run, config: RunConfig) -> Patience | None:
    if config.sft is None or config.sft.patience == 0:
        return None
    return Patience(config.sft.patience, read_metrics(run.folder / "metrics.jsonl"))


def _sample_prompt(config: RunConfig, data: PretrainData | InstructData, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the samples begin with, as they are shown and as ids, and the ids that end them."""
    end = tokenizer.special_id(END_OF_TEXT)
    if isinstance(data, PretrainData):
        text = config.train.sample_prompt or "Once upon a time"
        return {"prompt": text, "ids": [end, *tokenizer.encode(text)], "stop_ids": [end]}
    asked = Message("user", config.train.sample_prompt) if config.train.sample_prompt else data.example.messages[0]
    ids = conversation.prompt([asked], tokenizer)
    return {"prompt": f"{asked.content}\n\n", "ids": ids, "stop_ids": conversation.stop_ids(tokenizer)}


def _without_notices() -> None:
    """Lightning's notices tell of its own ways of logging, saving and counting, which are not in use here."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _conclude(run: Run, status: str, error: str | None, say: Voice) -> None:
    """run.json, the exported weights, the picture and the report, for a run that ended in any way but `kill -9`."""
    rows = read_metrics(run.folder / "metrics.jsonl")
    val = [row for row in rows if row.get("val/bpb") is not None]  # null where it was NaN
    facts = {"step": rows[-1]["step"], "tokens": rows[-1]["tokens"], "time_s": rows[-1]["time_s"]} if rows else {}
    if val:
        facts |= {"val/bpb": val[-1]["val/bpb"], "val/loss": val[-1]["val/loss"], "best/bpb": best_bpb(rows)}
    try:
        run.update(status=status, error=error, **facts)
        if rows:
            say("writing the weights and the report")
            export_weights(run)
            write_report(run)
    except UserError as unwritable:  # a full disk: what ended the run is the news, not this
        say(f"WARNING: {unwritable}")


def export_weights(run: Run) -> None:
    """The best weights as `model/weights.safetensors` with `model/config.json`: what other programs read."""
    from safetensors.torch import save

    path = run.checkpoint_folder / BEST
    if checkpoint_fault(path) is not None:
        return
    saved = load_checkpoint(path)
    weights = {name: tensor.float().contiguous() for name, tensor in bare_names(saved["state_dict"]).items()}
    folder = make_folder(run.folder / "model")
    with whole_file(folder / "weights.safetensors") as file:
        file.write(save(weights))
    write_json(folder / "config.json", saved["gpt_config"])
