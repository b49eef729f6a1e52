"""Train the model of another run (init_from=, the base run) on other data: conversations, pairs of answers, or prompts.

The pretraining text of the base run is loaded, too, to measure how much the loss on this text rises (forgetting).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from positron.config import RunConfig
from positron.data.shards import TokenFiles
from positron.data.windows import Windows, validation_windows
from positron.evaluation.eval_texts import token_files
from positron.evaluation.scoring import score
from positron.model.gpt import GPT
from positron.model.lora import add_lora
from positron.run.base import pretrained_run, tokens_seen
from positron.run.checkpoint import best_or_newest, load_checkpoint
from positron.run.facts import Facts
from positron.run.find import find_run, named_run
from positron.run.folder import Run
from positron.run.load import bare_names, load_model, restore, stored_names
from positron.run.metrics import append_row
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.disk import write_json
from positron.system.errors import Unreachable, UserError
from positron.system.formatting import counted
from positron.text.conversation import END, MARKERS, TEMPLATE
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.ends import why_it_is_over
from positron.training.loop import fit
from positron.training.objective.base import Objective
from positron.training.objective.pretrain import windows_start_after
from positron.training.objective.reference import hash_of_weights
from positron.training.objective.validation_text import ANSWERS, ValidationText, entropy_of
from positron.training.resolve import Plan
from positron.training.resume import Session, Start, refuse_before_start, refuse_untrainable

logger = logging.getLogger(__name__)


def base_model(session: Session) -> tuple[GPT, Tokenizer, str | None]:
    """Return the model to train, its tokenizer, and the hash of the weights of the base run with which the run began.

    If the run is new, the model has the weights of the base run; otherwise the training loop restores the weights later. With
    LoRA, low-rank matrices are added to the model. The file of the weights is read only once, because the base run may still
    train, and then replaces the file. The hash is None if a run of an older version did not record it. Raises UserError if the
    model is too large to be trained on this machine, or if init_from= names another run than the recorded base run, which was
    not found, and this run has other weights.
    """
    config, start = session.config, session.start
    assert start.tokenizer_from is not None
    if start.is_own and config.init_from != session.run.base:
        refuse_changed_base(session)
    tokenizer = load_tokenizer(start.tokenizer_from.tokenizer_folder)
    refuse_untrainable(config, session.machine, vocab_size=tokenizer.vocab_size)
    model = GPT(config.model.with_vocab(tokenizer.vocab_size))
    began_with = session.run.facts().reference if start.is_own else None
    if start.weights is not None:
        began_with = hash_of_stored(restore(model, tokenizer, start.weights))
    if config.lora.rank:
        markers = [tokenizer.special_id(token) for token in (END, *MARKERS)]
        trained = markers if config.lora.markers else ()
        add_lora(model, config.lora.rank, config.seed, trained, key=f"{config.tuning_group}.lora.rank")
    model.checkpoint_activations = config.device.checkpoint_activations
    return model, tokenizer, began_with


def initial_model(session: Session, model: GPT) -> GPT:
    """Return the model before this training, in eval mode; call this function before the first step.

    `model`: the model to train, as `base_model` returns it. In a new run, it still has the weights of the base run; otherwise
    the base run is loaded.
    """
    if session.start.is_own:
        return load_model(base_run(session.config))[0]
    initial = GPT(model.config)
    initial.load_state_dict(bare_names(model.state_dict()))
    return initial.eval()


def train_further(
    session: Session,
    plan: Plan,
    model: GPT,
    objective: Objective,
    tokenizer: Tokenizer,
    callbacks: Sequence[Callback],
    *,
    began_with: str | None,
    replay: Windows | None = None,
    is_chat: bool = True,
    prepare: Callable[[], None] | None = None,
) -> Facts:
    """Train the run of the session up to the last step of the plan, and return the content of its run.json.

    `began_with`: the hash of the weights with which the run began (see `base_model`), which a new run records. `replay`: the
    pretraining text that is mixed into the batches. `is_chat`: the model learns to answer messages, so the chat template is
    written to the run folder. `prepare` is called in every process, after the files of the run are written and before the
    first step. If there is nothing to train, neither of the two happens. Raises the errors of `refuse_before_start` and `fit`,
    and UserError if the run continues with another pretraining text.
    """
    run, config, start = session.run, session.config, session.start
    refuse_before_start(session, last_step=plan.last_step, fingerprint=objective.fingerprint)
    replayed = None if replay is None else f"{replay.fingerprint} {replay.starts is None} {replay.document_start}"
    known = run.facts().replayed if start.is_own else None
    if known not in (None, replayed):
        raise UserError(
            f"{run.folder} learns again from the text of its base run, but init_from={config.init_from} was trained on another "
            "text or in another way since the run began: restore the base run from a copy, or give another name="
        )
    if why_it_is_over(session, plan, objective) is None:
        if session.is_first_rank:
            run.begin(config, tokenizer, kind=objective.kind, new=not start.is_own, forked_from=start.weights)
            if not start.is_own:
                run.update(base_tokens=tokens_seen(base_run(config)), reference=began_with, replayed=replayed)
            run.update(base_bpb_before=None, base_bpb_after=None)  # measured for other weights, if the run is extended
            if is_chat:
                write_json(run.chat_path, TEMPLATE)
        if prepare is not None:
            prepare()
    facts = fit(session, plan, model, objective, tokenizer, callbacks)
    if session.is_first_rank and facts.status == "finished" and facts.base_bpb_after is None:
        _measure_forgetting(run, tokenizer, config)
    return run.facts()


@torch.no_grad()
def record_beginning(run: Run, objective: Objective, model: GPT, measured: dict[str, float]) -> float:
    """Start metrics.jsonl anew with a row for step 0, before the first update; return the validation bits per byte at step 0.

    Older rows are deleted: they are from an earlier start of the run, which saved no checkpoint. `measured` is the result of
    `objective.measures`. The model must be on the device of the training.
    """
    device = model.wte.weight.device
    token_bytes = torch.from_numpy(objective.token_bytes).float().to(device)
    model.eval()
    parts = [tuple(tensor.to(device) for tensor in part) for part in objective.validation(0, 1)]
    sums = torch.stack([objective.score(model, part, token_bytes).cpu().double() for part in parts]).sum(0)
    model.train()
    nats, n_bytes, tokens = sums.tolist()
    bpb: float = nats / math.log(2) / n_bytes
    scores = {"val/loss": nats / tokens, "val/bpb": bpb, "val/perplexity": math.exp(nats / tokens)}
    run.metrics_path.unlink(missing_ok=True)
    append_row(run.metrics_path, {"step": 0, "tokens": 0, "time_s": 0.0, "train/loss": None, **scores, **measured})
    return bpb


def base_run(config: RunConfig) -> Run:
    """Return the base run, whose model `config` trains further (init_from=). Raises UserError if this run does not exist."""
    if config.init_from is not None and named_run(config.init_from) is None:
        raise UserError(
            f"the base run init_from={config.init_from} was not found: correct init_from=, or restore the folder of the run"
        )
    return find_run(config.init_from)


def hash_of_checkpoint(path: Path, known: Collection[str] = ()) -> str:
    """Return the SHA-256 hash of the weights in a checkpoint; see `hash_of_stored`."""
    return hash_of_stored(load_checkpoint(path)["state_dict"], known)


def hash_of_stored(weights: dict[str, Any], known: Collection[str] = ()) -> str:
    """Return the SHA-256 hash of the weights of a checkpoint as they are stored, LoRA matrices included.

    Earlier versions merged LoRA matrices into the weights first. The last bits of this product depend on the processor, so the
    hash of unchanged weights could differ on another machine. If one of the hashes `known` is the hash of the merged weights,
    it is returned.
    """
    former = hash_of_weights(bare_names(weights)) if known else None
    return former if former is not None and former in known else hash_of_weights(stored_names(weights))


def is_base_changed(config: RunConfig, began_with: str | None) -> bool | None:
    """Return True if the weights of the base run have changed, False if they have not, and None if they cannot be read.

    `began_with`: the hash of the weights when the run began, as recorded in its run.json. If run.json has no hash, `began_with`
    is None; then weights that can be read count as changed.
    """
    try:
        weights = best_or_newest(base_run(config).checkpoint_folder)
        known = () if began_with is None else (began_with,)
        return None if weights is None else hash_of_checkpoint(weights, known) != began_with
    except UserError:
        return None


def refuse_changed_base(session: Session) -> None:
    """Raise UserError if a run continues although init_from= names a run without the weights with which the run began.

    A run of an older version, which did not record these weights, is not refused.
    """
    run, config, began_with = session.run, session.config, session.run.facts().reference
    if session.start.is_own and began_with is not None and is_base_changed(config, began_with) is not False:
        raise UserError(
            f"the weights of init_from={config.init_from} are not those with which {run.folder} began: restore the base run "
            "from a copy, or give another name="
        )


def replayed_run(config: RunConfig, start: Start, key: str) -> Run | None:
    """Return the pretrained run whose text can be replayed, or None if the model was imported and its text is unknown.

    To replay means to mix pretraining text into each batch, so that the model forgets less of it. `key` is the setting that
    asks for replay, such as sft.replay_ratio. `start`, the state from which the training starts, only affects the advice in an
    error message. Raises UserError if the pretrained run is missing, or kept no copy of its text.
    """
    remedy = _without_replay(start, key)
    try:
        base = pretrained_run(base_run(config))
    except UserError as error:
        reason = f"{key} mixes the text of the pretraining into each batch"
        raise UserError(f"{error} ({reason})" if start.is_own else f"{error}, or {remedy}") from error
    if base.config()["data"].get("source") == "imported":
        logger.info(
            "the training text of the imported model is unknown, so no pretraining text is mixed into the batches"
        )
        return None
    if base.config()["data"].get("tokens_per_epoch") is not None:
        raise UserError(
            f"{base.folder} streamed its training text and kept no copy, so {key} cannot mix this text into the batches: give "
            f"{key}=0"
        )
    return base


def _pretraining_text(base: Run, split: str, tokenizer: Tokenizer, instead: str) -> TokenFiles:
    """Return the tokens of the pretraining text of `base`, as `token_files` does.

    Also raises UserError, whose message ends with the advice `instead`, if `tokenizer` did not make these tokens. This happens
    if another run was trained under the name of the base run.
    """
    files = token_files(base, split, instead)
    pretrained = pretrained_run(base)
    if load_tokenizer(pretrained.tokenizer_folder).hash != tokenizer.hash:
        raise UserError(
            one_line(f"the text of {pretrained.folder} cannot be used, because that run has another tokenizer: ")
            + instead
        )
    return files


def replayed_text(
    base: Run, config: RunConfig, start: Start, key: str, tokenizer: Tokenizer, *, rows: int, context: int
) -> Windows:
    """Return windows of `context` tokens of the training text of `base`, with `rows` windows in each batch.

    `base`: the pretrained run, which `replayed_run` returns. `tokenizer`: the tokenizer of the run to train. `key`: the setting
    that asks for this text, such as sft.replay_ratio. The windows begin where those of the pretraining began, and if attention
    stayed inside documents there, it does so in the windows, too. Otherwise the model would have to learn something new from
    them. Raises UserError if the text is not available. The message says how to train without it: `key`=0 or, if the run
    already has a checkpoint (`start`), a new run with `key`=0.
    """
    files = _pretraining_text(base, "train", tokenizer, _without_replay(start, key))
    end_id = windows_start_after(base.settings().data.packing, tokenizer.special_id(END_OF_TEXT))
    return Windows(
        files,
        window=context,
        batch_size=rows,
        seed=config.seed,
        end_id=end_id,
        document_start=_document_start(base, tokenizer),
    )


def _document_start(base: Run, tokenizer: Tokenizer) -> int | None:
    """Return the id that begins a document if attention stayed inside documents when `base` was pretrained, otherwise None."""
    return tokenizer.special_id(END_OF_TEXT) if is_trained_inside_documents(base) else None


def is_trained_inside_documents(base: Run) -> bool:
    """Tell whether attention stayed inside documents when the model of `base` was pretrained (data.document_mask)."""
    return pretrained_run(base).settings().data.document_mask


def and_replayed(replay: Windows | None) -> str:
    """Return the end of a text that describes a batch, such as " and 2 pieces of the pretraining text"; "" without replay."""
    return "" if replay is None else f" and {counted(replay.batch_size, 'piece')} of the pretraining text"


def _without_replay(start: Start, key: str) -> str:
    """Return the advice for a user whose pretraining text is not available: turn replay off by `key`=0.

    If the run continues, `key` cannot change, so the advice is to start a new run without replay.
    """
    if start.is_own:
        return f"give another name= and {key}=0 to start a new run without replay"
    return f"give {key}=0 to train without the pretraining text"


def validation_text(session: Session, plan: Plan, tokenizer: Tokenizer, instead: str) -> ValidationText | None:
    """Return the validation part of the pretraining text, at most train.val_tokens tokens.

    The pretraining text is the text on which the base run (init_from=) was trained. If the base run is itself a fine-tuned run,
    it is the text of the pretrained run from which the base run descends. If the text is not available, returns None and logs
    the reason and `instead`, which tells the user what is done instead.

    A run that continues is validated on the same text as before. So the result is None if the run was validated on answers, and
    otherwise UserError is raised if the text is not available. This is not checked if `plan` has no step to train, or if an
    older version started the run.
    """
    run, config, start = session.run, session.config, session.start
    known = run.facts().validated_on if start.is_own and start.step < plan.last_step else None
    if known == ANSWERS:
        return None
    instead = instead if known is None else "give another name= to start a new run"
    try:
        base = base_run(config)
        files = _pretraining_text(base, "val", tokenizer, instead)
        if files.n_tokens < 2:
            raise UserError(f"the text has no validation part: {instead}")
        if known not in (None, files.fingerprint):
            raise UserError(f"init_from={config.init_from} was trained on another text: {instead}")
    except (UserError, Unreachable) as error:
        if known is not None:
            raise type(error)(f"{error} ({run.folder} is validated on the text of its base run)") from error
        logger.info(f"the text of the base run cannot be used for validation: {error}")
        return None
    x, y = validation_windows(
        files,
        context=config.model.context_length,
        end_id=tokenizer.special_id(END_OF_TEXT),
        limit=config.train.val_tokens,
    )
    document_start = _document_start(base, tokenizer)
    token_bytes = files.token_bytes(tokenizer)
    bits, n_bytes = entropy_of(files, tokenizer, config.train.val_tokens)
    return ValidationText(x, y, bits, n_bytes, token_bytes, files.fingerprint, document_start)


def _measure_forgetting(run: Run, tokenizer: Tokenizer, config: RunConfig) -> None:
    """Write the bits per byte of the base run and of this run, on the validation text of the pretraining, into run.json."""
    try:
        base = base_run(config)
        files = _pretraining_text(
            base, "val", tokenizer, "ignore this message, because the training does not need the text"
        )
    except (UserError, Unreachable) as error:
        logger.info(f"the loss on the pretraining text was not measured: {error}")
        return
    began_with = run.facts().reference
    if began_with is not None and is_base_changed(config, began_with):
        logger.info(
            "the loss on the pretraining text before and after this training was not measured: the weights of "
            f"init_from={config.init_from} have changed since this run began"
        )
        return
    known = base.facts()
    before = known.base_bpb_after if known.status == "finished" else None  # the base run, too, may be a fine-tuned run
    logger.info(
        f"measuring the loss on the pretraining text {'before and ' if before is None else ''}after this training"
    )
    context = from_dict(type(config.model), base.config()["model"]).context_length
    x, y = validation_windows(files, context=context, end_id=tokenizer.special_id(END_OF_TEXT), limit=100_000)
    token_bytes, document_start = torch.from_numpy(files.token_bytes(tokenizer)), _document_start(base, tokenizer)

    def bpb(scored: Run) -> float:
        return score(load_model(scored)[0], x, y, token_bytes, document_start).bpb

    run.update(base_bpb_before=bpb(base) if before is None else before, base_bpb_after=bpb(run))
