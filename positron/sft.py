"""Fine-tune a run on conversations: `python -m positron.sft init_from=outputs/quickstart data=story_instruct`.

The training loop is the same as in pretraining; data, loss mask and initial weights differ. The base run is never changed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.hydra_app import run_hydra
from positron.cli.sweeps import run_job
from positron.config import RunConfig
from positron.run.base import portable, pretrained_run, tokens_seen, with_origin
from positron.run.facts import Facts
from positron.run.folder import OUTPUTS, Run, find_run
from positron.run.load import load_model
from positron.settings import from_dict
from positron.system.disk import write_json
from positron.system.errors import Unreachable, UserError

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from positron.data.windows import Windows
    from positron.text.tokenizer import Tokenizer
    from positron.training.resume import Start

logger = logging.getLogger("positron.sft")  # under `python -m` the module is called __main__


def sft(config: RunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> Facts:
    """Fine-tune the run in `folder` up to its last step, from its last checkpoint if it has one; return its facts.

    Raises the errors of `train`.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator()

    from positron.data.conversations import read_conversations
    from positron.model.gpt import GPT
    from positron.model.lora import add_lora
    from positron.run.load import restore
    from positron.text.conversation import END, MARKERS, TEMPLATE
    from positron.text.factory import load_tokenizer
    from positron.training.loop import fit
    from positron.training.objective.sft import SFTObjective
    from positron.training.resolve import make_plan
    from positron.training.resume import open_session, refuse_before_start, refuse_untrainable

    config = with_origin(Run(folder), config)
    assert config.sft is not None
    with open_session(folder, config, started) as session:
        run, start, machine = session.run, session.start, session.machine
        assert start.tokenizer_from is not None
        tokenizer = load_tokenizer(start.tokenizer_from.tokenizer_folder)
        refuse_untrainable(config, machine, vocab_size=tokenizer.vocab_size)
        model = GPT(config.model.with_vocab(tokenizer.vocab_size))
        if start.weights is not None:
            restore(model, tokenizer, start.weights)
        if config.sft.lora.rank:
            lora, markers = config.sft.lora, [tokenizer.special_id(token) for token in (END, *MARKERS)]
            add_lora(model, lora.rank, config.seed, markers if lora.markers else ())
        model.checkpoint_activations = config.device.checkpoint_activations
        context = model.config.context_length
        conversations = read_conversations(config.data)
        count = sum(not each.is_val for each in conversations) or len(conversations)
        epochs = config.sft.epochs
        plan = make_plan(config, model, machine, start, lambda batch: math.ceil(epochs * count / batch))
        objective = SFTObjective(
            conversations,
            tokenizer,
            context=context,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            packing=config.sft.packing,
            val_tokens=config.train.val_tokens,
            replay=_replay(config, start, plan.batch_size, context),
            patience=config.sft.patience,
        )
        refuse_before_start(run, start, last_step=plan.last_step, fingerprint=objective.fingerprint)
        if session.is_first_rank:
            run.begin(config, tokenizer, kind=objective.kind, new=not start.is_own, forked_from=start.weights)
            if not start.is_own:
                run.update(base_tokens=tokens_seen(_base(config)))
            write_json(run.chat_path, TEMPLATE)
        facts = fit(session, plan, model, objective, tokenizer, callbacks)
        if session.is_first_rank and facts.status == "finished" and facts.base_bpb_after is None:
            _measure_forgetting(run, tokenizer, config)
        return run.facts()


def _replay(config: RunConfig, start: Start, batch_size: int, context: int) -> Windows | None:
    """Return the windows of the base run's pretraining text that are part of each batch, or None without replay.

    Each batch has sft.replay_ratio of its rows from them, at least one. Raises UserError if the text is not available.
    """
    from positron.data.windows import Windows
    from positron.evaluation.eval_texts import token_files

    assert config.sft is not None
    if not config.sft.replay_ratio:
        return None
    remedy = (
        "give another name= and sft.replay_ratio=0 to fine-tune again without it"
        if start.is_own
        else "give sft.replay_ratio=0 to fine-tune without its pretraining text"
    )
    try:
        base = pretrained_run(_base(config))
    except UserError as error:
        why = "each batch of this run contains some of its pretraining text (sft.replay_ratio)"
        raise UserError(f"{error}; {why}" if start.is_own else f"{error}, or {remedy}") from error
    if base.config()["data"].get("source") == "imported":
        logger.info("the training text of the imported model is unknown, so no text is replayed")
        return None
    if base.config()["data"].get("tokens_per_epoch") is not None:
        raise UserError(
            f"{base.folder} streamed its text and did not keep it, so it cannot be replayed: give sft.replay_ratio=0"
        )
    share = min(batch_size - 1, max(1, round(config.sft.replay_ratio * batch_size)))
    if share < 1:
        raise UserError(
            f"a batch of {batch_size} sequences has no room for replayed pretraining text: "
            "give a larger train.batch_tokens=, or sft.replay_ratio=0"
        )
    return Windows(token_files(base, "train", remedy), context=context, batch_size=share, seed=config.seed)


def _measure_forgetting(run: Run, tokenizer: Tokenizer, config: RunConfig) -> None:
    """Write the bits per byte of the base run's validation text, before and after fine-tuning, into run.json."""
    import torch

    from positron.data.windows import validation_windows
    from positron.evaluation.eval_texts import token_files
    from positron.evaluation.scoring import score
    from positron.text.tokenizer import END_OF_TEXT

    try:
        base = _base(config)
        files = token_files(base, "val", "fine-tuning does not need it")
    except (UserError, Unreachable) as error:
        logger.info(f"the loss on the pretraining text was not measured: {error}")
        return
    logger.info("measuring the loss on the pretraining text before and after fine-tuning")
    context = from_dict(type(config.model), base.config()["model"]).context_length
    x, y = validation_windows(files, context=context, end_id=tokenizer.special_id(END_OF_TEXT), limit=100_000)
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    before, after = (score(load_model(measured)[0], x, y, token_bytes).bpb for measured in (base, run))
    run.update(base_bpb_before=before, base_bpb_after=after)


def _base(config: RunConfig) -> Run:
    try:
        return find_run(config.init_from)
    except UserError as error:
        raise UserError(
            f"the run init_from={config.init_from}, from which this fine-tuning started, was not found: restore its folder"
        ) from error


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a fine-tuned run, with the architecture and tokenizer of its base run.

    An existing run keeps its architecture and tokenizer. It also keeps its base run unless init_from= is given.
    Raises UserError if there is no base run, if the data has no conversations, or if the settings choose a model or tokenizer.
    """
    for key in ("model", "tokenizer"):
        if values.get(key) is not None:
            raise UserError(f"SFT takes the architecture and tokenizer of the base run: leave {key}= out")
    own = Run(OUTPUTS / str(values["name"]))
    if own.exists and own.kind == "sft" and any(own.checkpoint_folder.glob("*.ckpt")):
        known, origin = own.config(), values["init_from"] or own.config().get("init_from")
        if not known["sft"]["lora"]["markers"]:  # a run that an older version started continues without trained markers
            values = {**values, "sft": {**values["sft"], "lora": {**values["sft"]["lora"], "markers": False}}}
    else:
        base = find_run(values["init_from"], which=lambda run: run.exists and run.kind != "sft")
        known, origin = base.config(), portable(base.folder)
    values = {**values, "model": known["model"], "tokenizer": known["tokenizer"], "init_from": origin}
    config = from_dict(RunConfig, values)
    if not config.data.holds_conversations:
        raise UserError("SFT learns from conversations: give data=story_instruct, or data=instruct data.path=my.jsonl")
    return config


def job(cfg: DictConfig) -> float:
    """Run one Hydra job and return its val/bpb, which a sweeper minimises. See `run_job`."""
    return run_job(cfg, configure, lambda config, folder, callbacks, _: sft(config, folder, callbacks))


def main() -> None:
    """Run the command with the options of the command line."""
    run_hydra(job, "sft")


if __name__ == "__main__":
    main()
