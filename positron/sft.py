"""Fine-tune a run on conversations: `positron sft init_from=outputs/quickstart data=story_instruct`.

The training loop is the same as in pretraining; data, loss mask and initial weights differ. The base run is never changed.
"""

from __future__ import annotations

import dataclasses
import functools
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
from positron.run.folder import OUTPUTS, SFT, TUNED, Run
from positron.system.errors import UserError
from positron.system.formatting import counted

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig


logger = logging.getLogger("positron.sft")  # under `python -m` the module is called __main__


def sft(config: RunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> Facts:
    """Fine-tune the run in `folder` up to its last step, from its last checkpoint if it has one; return what run.json records.

    `callbacks` are Lightning callbacks. Raises the errors of `train`.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator(config.train.max_steps)

    from positron.data.conversations import read_conversations
    from positron.training.objective.sft import SFTObjective, fingerprint_of, usable_conversations
    from positron.training.resolve import log_plan, make_plan, next_token_loss
    from positron.training.resume import open_session
    from positron.training.tuning import (
        and_replayed,
        base_model,
        is_trained_inside_documents,
        replayed_run,
        replayed_text,
        train_further,
    )

    config = with_origin(Run(folder), config)
    assert config.sft is not None
    with open_session(folder, config, started) as session:
        start = session.start
        model, tokenizer, began_with = base_model(session)
        context = model.config.context_length
        known = session.run.facts().data_fingerprint
        conversations = read_conversations(config.data, lambda former: fingerprint_of(former) == known)
        epochs, key = config.sft.epochs, "sft.replay_ratio"
        base = replayed_run(config, start, key) if config.sft.replay_ratio else None
        ratio = 0.0 if base is None else config.sft.replay_ratio
        usable = usable_conversations(conversations, tokenizer, context)

        def steps(batch_size: int) -> int:
            return math.ceil(epochs * len(usable[0]) / (batch_size - _replayed_rows(ratio, batch_size)))

        is_masked = config.sft.packing or (base is not None and is_trained_inside_documents(base))
        trial = functools.partial(next_token_loss, is_masked=is_masked)
        plan = make_plan(config, model, session.machine, start, steps, trial)
        replay = None
        if base is not None:
            if plan.batch_size == 1:
                raise UserError(
                    "a batch of one sequence has no room for replayed pretraining text: "
                    f"give train.batch_tokens={2 * context} or more, or {key}=0"
                )
            rows = _replayed_rows(ratio, plan.batch_size)
            replay = replayed_text(base, config, start, key, tokenizer, rows=rows, context=context)
        objective = SFTObjective(
            conversations,
            tokenizer,
            context=context,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            packing=config.sft.packing,
            val_tokens=config.train.val_tokens,
            replay=replay,
            patience=config.sft.patience,
            usable=usable,
        )
        learned = counted(objective.train.n_conversations, "conversation")
        log_plan(plan, f"{learned}{and_replayed(replay)} ({counted(plan.micro_batch_size, 'sequence')} at a time)")
        return train_further(
            session, plan, model, objective, tokenizer, callbacks, began_with=began_with, replay=replay
        )


def _replayed_rows(ratio: float, batch_size: int) -> int:
    """Return how many of the `batch_size` sequences of a batch are pretraining text, so that the model forgets less of it.

    They are the fraction `ratio` (sft.replay_ratio), rounded, but at least one sequence and at most `batch_size` - 1. Returns 0
    if `ratio` is 0.
    """
    return min(batch_size - 1, max(1, round(ratio * batch_size))) if ratio else 0


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a fine-tuned run, with the architecture and tokenizer of its base run.

    `values` are the settings as nested dicts. A run that exists keeps its architecture and tokenizer. Without init_from=, it
    also keeps its base run. Raises UserError if there is no base run, if the data has no conversations, or if the settings
    choose a model or tokenizer.
    """
    config = configure_tuning(values, "sft", SFT, lambda run: run.exists and run.kind not in TUNED)
    own_run = Run(OUTPUTS / config.name)
    # a run that an older version started continues without trained markers
    if own_run.exists and own_run.kind == SFT and not own_run.config()["sft"]["lora"]["markers"]:
        assert config.sft is not None
        lora = dataclasses.replace(config.sft.lora, markers=False)
        return dataclasses.replace(config, sft=dataclasses.replace(config.sft, lora=lora))
    return config


def job(cfg: DictConfig) -> float:
    """Run one Hydra job with `run_job`, and return the validation bits per byte, which a hyperparameter search minimises."""
    return run_job(cfg, configure, lambda config, folder, callbacks, _: sft(config, folder, callbacks))


def main() -> None:
    """Run `positron sft` with the options in `sys.argv`."""
    run_hydra(job, "sft")


if __name__ == "__main__":
    main()
