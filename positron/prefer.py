"""Train a run to prefer the better one of two answers: `positron prefer init_from=outputs/sft data=story_preference`.

The training loop is the same as in pretraining. The training starts from the weights of the base run, which is never changed.
The model of the base run is also the reference model: the losses dpo and ipo compare the trained model with the reference
model, and the divergence between the two is measured. The log-probabilities of the reference model are computed once and
stored, so that only one model is in memory during training.
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
from positron.cli.tuning import configure_tuning
from positron.config import RunConfig
from positron.run.base import with_origin
from positron.run.facts import Facts
from positron.run.folder import PREFERENCE, Run
from positron.system.callable_module import make_callable
from positron.system.commands import command
from positron.system.errors import UserError
from positron.system.formatting import counted

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from positron.training.resolve import Plan

logger = logging.getLogger("positron.prefer")  # under `python -m` the module is called __main__


def prefer(config: RunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> Facts:
    """Train the run in `folder` on pairs of answers, from its last checkpoint if it has one; return what run.json records.

    `callbacks` are Lightning callbacks. Raises the errors of `train`, and UserError if the log-probabilities of the base run
    can be neither read nor computed.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator(config.train.max_steps)

    from positron.data.preferences import read_pairs
    from positron.training.objective.preference import PreferenceObjective, fingerprint_of, usable_pairs
    from positron.training.reference import open_reference
    from positron.training.resolve import log_plan, make_plan
    from positron.training.resume import open_session
    from positron.training.tuning import base_model, base_run, record_beginning, train_further, validation_text

    config = with_origin(Run(folder), config)
    settings = config.preference
    assert settings is not None
    with open_session(folder, config, started) as session:
        model, tokenizer, began_with = base_model(session)
        known = session.run.facts().data_fingerprint
        pairs = read_pairs(config.data, lambda former: fingerprint_of(former) == known)
        usable = usable_pairs(pairs, tokenizer, model.config.context_length)
        plan = make_plan(
            config,
            model,
            session.machine,
            session.start,
            lambda batch: math.ceil(settings.epochs * len(usable[0]) / max(1, batch // 2)),
        )
        _refuse_too_small_batch(plan)
        objective = PreferenceObjective(
            pairs,
            tokenizer,
            settings,
            context=model.config.context_length,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            val_tokens=config.train.val_tokens,
            usable=usable,
        )
        at_once = counted(objective.micro_pairs, "pair")
        log_plan(plan, f"{counted(objective.batch_pairs, 'pair')} of answers ({at_once} at a time)")
        text = validation_text(session, plan, tokenizer, "let the run validate on the chosen answers instead")
        if text is not None:
            objective.validate_on_text(text)

        def prepare() -> None:
            objective.reference = open_reference(session, plan, objective, model, began_with)
            if session.is_first_rank and not session.start.is_own:
                _notice_untaught(base_run(config))
                model.eval()  # without dropout, as in every validation
                measured = objective.measures(model, 0, 1)
                bpb = record_beginning(session.run, objective, model, measured)
                model.train()
                chosen, rejected = measured["preference/chosen_tokens"], measured["preference/rejected_tokens"]
                logger.info(
                    f"before the first step: loss {measured['preference/loss']:.4f}, chosen answers of {chosen:.0f} and "
                    f"rejected answers of {rejected:.0f} tokens on average, {bpb:.4f} bits per byte"
                )

        return train_further(
            session, plan, model, objective, tokenizer, callbacks, began_with=began_with, prepare=prepare
        )


def _notice_untaught(base: Run) -> None:
    """Log a notice if the base run was not fine-tuned on conversations and so has not learned to answer."""
    if not base.is_chat:
        logger.info(
            f"the base run {base.folder} was not fine-tuned on conversations, so the new run learns which answers are better, "
            f"but not how to answer: fine-tune the base run with {command('sft')} first"
        )


def _refuse_too_small_batch(plan: Plan) -> None:
    """Raise UserError if a batch does not have at least one pair of answers for each process.

    `plan` holds the sequences per batch and the number of processes. The two answers of a pair are two sequences.
    """
    if plan.batch_size // 2 < plan.world_size:
        needed = 2 * plan.world_size * plan.gpt.context_length
        devices = "" if plan.world_size == 1 else f" for each of {plan.world_size} devices"
        raise UserError(
            f"a batch of {counted(plan.batch_size, 'sequence')} is too small for a pair of answers{devices}: "
            f"give train.batch_tokens={needed} or more"
        )


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a preference-tuned run, with the architecture and tokenizer of its base run.

    `values` are the settings as nested dicts. A run that exists keeps its architecture and tokenizer. Without init_from=, it
    also keeps its base run. Raises UserError if there is no base run, if the data has no pairs, or if the settings choose a
    model or tokenizer.
    """
    return configure_tuning(values, "prefer", PREFERENCE, lambda run: run.exists and run.kind != PREFERENCE)


def job(cfg: DictConfig) -> float:
    """Run one Hydra job with `run_job`, and return the validation bits per byte, which a hyperparameter search minimises."""
    return run_job(cfg, configure, lambda config, folder, callbacks, _: prefer(config, folder, callbacks))


def main() -> None:
    """Run `positron prefer` with the options in `sys.argv`."""
    run_hydra(job, "prefer")


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
