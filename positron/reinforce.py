"""Train a run on its own answers, weighted by a reward: `positron reinforce init_from=sft-story_instruct`.

The training loop is the same as in pretraining, but each step first samples the answers that it learns from. The base run is
never changed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.hydra_app import run_hydra
from positron.cli.sweeps import run_job
from positron.cli.tuning import configure_tuning
from positron.cli.unused_settings import no_batch_tokens
from positron.config import RunConfig, seconds
from positron.run.base import with_origin
from positron.run.facts import Facts
from positron.run.folder import REINFORCE, Run
from positron.system.callable_module import make_callable
from positron.system.errors import UserError
from positron.system.formatting import counted

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from positron.data.conversations import Conversation
    from positron.data.windows import Windows
    from positron.model.gpt import GPT
    from positron.text.tokenizer import Tokenizer
    from positron.training.objective.reinforce import Question, ReinforceObjective
    from positron.training.objective.validation_text import ValidationText
    from positron.training.resolve import Plan
    from positron.training.resume import Start

logger = logging.getLogger("positron.reinforce")  # under `python -m` the module is called __main__

DEFAULT_STEPS = 100  # number of steps for train.max_steps=auto without budget=
# A prompt is left out if fewer tokens of the context are free after it, unless reinforce.max_tokens is smaller.
MIN_ANSWER_TOKENS = 8


def reinforce(config: RunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> Facts:
    """Train the run in `folder` up to its last step, from its last checkpoint if it has one; return what run.json records.

    `callbacks` are Lightning callbacks. Raises the errors of `train`, and UserError if the reward cannot be computed or if the
    base run has changed since the run began.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator(config.train.max_steps)

    from positron.data.conversations import read_conversations
    from positron.rewards import open_reward
    from positron.training.objective.reinforce import ReinforceObjective, RewardRule, fingerprint_of, trial_loss
    from positron.training.resolve import log_plan, make_plan
    from positron.training.resume import open_session
    from positron.training.tuning import (
        and_replayed,
        base_model,
        base_run,
        initial_model,
        record_beginning,
        refuse_changed_base,
        train_further,
        validation_text,
    )

    config = with_origin(Run(folder), config)
    settings = config.reinforce
    assert settings is not None
    assert config.reward is not None
    with open_session(folder, config, started) as session:
        start = session.start
        model, tokenizer, began_with = base_model(session)
        base = base_run(config)
        known = session.run.facts().data_fingerprint

        def questions_of(conversations: list[Conversation]) -> tuple[list[Question], list[Question]]:
            free = min(MIN_ANSWER_TOKENS, settings.max_tokens)
            return _questions(conversations, tokenizer, base.is_chat, model.config.context_length, free)

        conversations = read_conversations(
            config.data, lambda former: known is not None and fingerprint_of(questions_of(former)) == known
        )
        questions = questions_of(conversations)
        reward = open_reward(config.reward, (question.text for question in (*questions[0], *questions[1])))
        initial = functools.cache(lambda: initial_model(session, model))
        trial = functools.partial(trial_loss, initial=initial, config=settings)
        plan = make_plan(config, model, session.machine, start, lambda _: DEFAULT_STEPS, trial)
        if start.step < plan.last_step:
            refuse_changed_base(session)
        objective = ReinforceObjective(
            questions,
            RewardRule(reward, sum(max(0.0, term.weight) for term in reward.terms), reward.decided),
            tokenizer,
            settings,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            initial=initial(),
            text=validation_text(session, plan, tokenizer, "let the run validate on the answers of the data instead")
            or _answers(config, conversations, tokenizer),
            replay=_replay(config, start, tokenizer),
            is_exact=plan.machine.precision == "fp32" and settings.weights == "fp32",
        )
        has_budget = config.budget is not None and config.train.max_steps == "auto" and start.resolved is None
        measured: dict[str, float] = {}
        if has_budget or not start.is_own:
            before = time.perf_counter()
            measured = objective.measures(model.to(plan.machine.device), 0, 1)
            if has_budget:
                plan = _within_budget(config, plan, model, objective, started, time.perf_counter() - before)
        asked = f"{counted(settings.prompts, 'prompt')} with {counted(settings.samples, 'answer')} each"
        at_once = f"training on {counted(plan.micro_batch_size, 'sequence')} at a time"
        log_plan(plan, f"{asked}{and_replayed(objective.replay)} ({at_once})")

        def prepare() -> None:
            if session.is_first_rank and not start.is_own:
                bpb = record_beginning(session.run, objective, model, measured)
                logger.info(
                    f"before the first step: reward {measured['val/reward']:.3f} ± {measured['val/reward_se']:.3f} for new "
                    f"prompts, {bpb:.4f} bits per byte"
                )

        return train_further(
            session,
            plan,
            model,
            objective,
            tokenizer,
            callbacks,
            began_with=began_with,
            replay=objective.replay,
            is_chat=base.is_chat,
            prepare=prepare,
        )


def _answers(config: RunConfig, conversations: list[Conversation], tokenizer: Tokenizer) -> ValidationText:
    """Return the answers in the validation conversations, up to train.val_tokens tokens, as a text whose loss is measured.

    If no answer of a validation conversation fits the context, the text consists of the answers of all conversations. Raises
    UserError if none of these fits either.
    """
    from positron.data.instruct import answer_bytes, to_parts, to_row
    from positron.text.tokenizer import END_OF_TEXT
    from positron.training.objective.validation_text import ANSWERS, ValidationText

    context = config.model.context_length
    usable = [(example, row) for example in conversations if (row := to_row(example, tokenizer, context)) is not None]
    validated = [(example, row) for example, row in usable if example.is_val] or usable
    if not validated:
        raise UserError(
            f"no conversation has an answer that fits the context of {context} tokens, on which the run could validate: give "
            "shorter answers, or give init_from= a run that was trained with a larger model.context_length="
        )
    validated = validated[: max(1, config.train.val_tokens // context)]
    rows = [row for _, row in validated]
    ((x, y),) = to_parts(rows, context, len(rows), tokenizer.special_id(END_OF_TEXT))
    return ValidationText(x, y, None, *answer_bytes(validated, tokenizer), ANSWERS)


def _replay(config: RunConfig, start: Start, tokenizer: Tokenizer) -> Windows | None:
    """Return windows of the pretraining text, on which each step also trains: one window for each prompt of the step.

    `start` is the state from which the run starts, and `tokenizer` the tokenizer of the run. Returns None if `reinforce.replay`
    is 0, or if the base model was imported and its training text is unknown. Raises UserError if the text is not available.
    """
    from positron.training.tuning import replayed_run, replayed_text

    assert config.reinforce is not None
    key = "reinforce.replay"
    if not config.reinforce.replay or (base := replayed_run(config, start, key)) is None:
        return None
    # their number must not depend on the devices or the micro-batch, and each device gets a share of the prompts
    rows = config.reinforce.prompts
    return replayed_text(base, config, start, key, tokenizer, rows=rows, context=config.model.context_length)


def _questions(
    conversations: list[Conversation], tokenizer: Tokenizer, is_chat: bool, context: int, free: int
) -> tuple[list[Question], list[Question]]:
    """Return the prompts for training and the prompts for validation.

    A prompt consists of the messages of a conversation before its first answer. If the base run was not fine-tuned on
    conversations (`is_chat` is False), a prompt is only the text of the last of these messages. A conversation that begins with
    an answer has no prompt. A prompt is left out if it leaves less than `free` of the `context` tokens for an answer. Raises
    UserError if no prompt is left.
    """
    from itertools import takewhile

    from positron.data.splits import usable_splits
    from positron.text import conversation
    from positron.text.tokenizer import END_OF_TEXT
    from positron.training.objective.reinforce import Question

    begin, stops = tokenizer.special_id(END_OF_TEXT), tuple(tokenizer.end_ids)
    if is_chat:
        stops = tuple(conversation.stop_ids(tokenizer))

    def question(example: Conversation) -> Question | None:
        turns = list(takewhile(lambda message: message.role != "assistant", example.messages))
        if not turns:
            return None
        text = turns[-1].content
        ids = conversation.prompt_ids(turns, tokenizer) if is_chat else [begin, *tokenizer.encode(text)]
        return Question(text, ids, stops) if len(ids) + free <= context else None

    train, val = usable_splits(
        conversations,
        question,
        "prompt",
        unusable=f"are empty, begin with an answer or are too long: the context has {context} tokens, and an answer needs at "
        f"least {free}",
        remedy="give shorter prompts that begin with a message of the user, or give init_from= a run that was trained with a "
        "larger model.context_length=",
        instead="the reward shows how well they are memorised, and not how well new prompts are answered",
    )
    if not is_chat:
        logger.info("the base run was not fine-tuned on conversations: prompts are continued as plain text")
    logger.info(f"{counted(len(train), 'prompt')} to answer, {len(val):,} for validation")
    return [question for _, question in train], [question for _, question in val]


def _within_budget(
    config: RunConfig, plan: Plan, model: GPT, objective: ReinforceObjective, started: float, validation: float
) -> Plan:
    """Time one step, and return `plan` with the number of steps that can be computed in the time `config.budget`.

    `plan` holds the sizes and the number of steps of the training. The timed step does not change the weights. `started` is the
    value of time.monotonic() at the beginning of the budget. `validation` is the duration of one validation in seconds; the
    number of steps leaves time for the validations.
    """
    from positron.training.device import wait_for

    assert config.budget is not None
    budget = seconds(config.budget, "budget")
    logger.info(f"budget={config.budget}: measuring how long a step takes")
    wait_for(plan.machine.device)
    before = time.perf_counter()
    _try_step(plan, model, objective)
    wait_for(plan.machine.device)
    step = time.perf_counter() - before
    left = budget - (time.monotonic() - started) - 2 * validation  # without the last validation and the report
    steps = max(1, int(left / (step + validation / config.train.val_every)))
    logger.info(
        f"the budget allows {steps} steps of {step:.1f} s, and a validation of {validation:.1f} s every "
        f"{config.train.val_every} steps"
    )
    return dataclasses.replace(plan, horizon=steps, last_step=min(steps, config.train.stop_at or steps))


def _try_step(plan: Plan, model: GPT, objective: ReinforceObjective) -> None:
    """Compute one step without the update of the weights, so that the caller can measure its duration.

    The step samples answers, and computes the loss and its gradients. The gradients are then discarded.
    """
    device = plan.machine.device
    asked = [tuple(tensor.to(device) for tensor in part) for part in objective.batch(1, 0, 1)]
    for part in objective.examples(model, asked, 1, 0, 1, lambda: None):
        with plan.machine.autocast():
            loss = objective.loss(model, part)
        loss.backward()
    model.zero_grad(set_to_none=True)


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a run that learns from rewards, with the architecture and tokenizer of its base run.

    `values` are the settings as nested dicts. Dropout is set to 0, and train.batch_tokens to prompts * samples *
    context_length. Raises the errors of `configure_tuning`, and UserError if the settings do not fit together, for example if 8
    prompts cannot be divided equally among 3 devices.
    """
    config = configure_tuning(values, "reinforce", REINFORCE, lambda run: run.exists and run.chat_path.exists())
    settings = config.reinforce
    assert settings is not None
    world = config.device.processes
    if settings.prompts % world:
        raise UserError(
            f"{settings.prompts} prompts cannot be divided equally among {world} devices: give a multiple of {world} as "
            "reinforce.prompts="
        )
    if config.train.batch_tokens != "auto":
        raise UserError(no_batch_tokens("train.batch_tokens"))
    tokens = settings.prompts * settings.samples * config.model.context_length
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_tokens=tokens),
        model=dataclasses.replace(config.model, dropout=0.0),
    )


def job(cfg: DictConfig) -> float:
    """Run one Hydra job with `run_job`, and return the validation bits per byte, which a hyperparameter search minimises."""
    return run_job(cfg, configure, lambda config, folder, callbacks, _: reinforce(config, folder, callbacks))


def main() -> None:
    """Run `positron reinforce` with the options in `sys.argv`."""
    run_hydra(job, "reinforce")


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
