"""Start or continue a run: `positron train model=tinygpt device=mps`.

`main` composes the configuration with Hydra. `train` can be imported and called with a configuration.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.hydra_app import run_hydra
from positron.cli.sweeps import run_job
from positron.config import Asked, RunConfig
from positron.run.base import with_origin
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.callable_module import make_callable
from positron.system.errors import UserError

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from positron.training.objective.pretrain import PretrainObjective


def train(
    config: RunConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    asked: Asked | None = None,
    objective: type[PretrainObjective] | None = None,
) -> Facts:
    """Train the run in `folder` up to its last step, from its last checkpoint if it has one; return what run.json records.

    `callbacks` are called after each step with the metrics of the step, before these are written. `asked` holds the keys that
    the user gave; `budget=` does not change these. `objective` is the class of the training objective (None:
    PretrainObjective).

    Raises UserError if the run cannot start or continue. After Ctrl-C, SIGTERM or SIGHUP, saves the last complete step and
    raises Interrupted. Raises Diverged if the loss diverges.
    """
    started = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator()

    from positron.data.corpus import prepare
    from positron.model.gpt import GPT
    from positron.run.load import restore
    from positron.text.factory import load_tokenizer
    from positron.training.budget.choose import choose, restore_choice
    from positron.training.loop import fit
    from positron.training.objective.pretrain import PretrainObjective
    from positron.training.resolve import make_plan
    from positron.training.resume import open_session, refuse_before_start, refuse_untrainable

    asked = asked or Asked()
    config = with_origin(Run(folder), restore_choice(config, asked, Run(folder)))
    with open_session(folder, config, started) as session:
        run, start, machine = session.run, session.start, session.machine
        saved_tokenizer = load_tokenizer(start.tokenizer_from.tokenizer_folder) if start.tokenizer_from else None
        tokenizer, tokens = prepare(config.data, config.tokenizer, saved_tokenizer, run.facts().data_fingerprint)
        if config.budget is not None and config.train.max_steps == "auto":
            config = choose(config, asked, machine, tokenizer, tokens).applied(config, asked)
            session = dataclasses.replace(session, config=config)
        refuse_untrainable(config, machine, vocab_size=tokenizer.vocab_size)
        model = GPT(config.model.with_vocab(tokenizer.vocab_size), seed=config.seed)
        model.checkpoint_activations = config.device.checkpoint_activations
        plan = make_plan(config, model, machine, start)
        task = (objective or PretrainObjective)(
            config.data,
            tokens,
            tokenizer,
            context=model.config.context_length,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            val_tokens=config.train.val_tokens,
        )
        source = start.weights or start.checkpoint
        if source is not None:
            restore(model, tokenizer, source)  # Lightning restores the optimizer and the loops, if the run continues
        refuse_before_start(run, start, last_step=plan.last_step, fingerprint=task.fingerprint)
        if session.is_first_rank:
            run.begin(config, tokenizer, kind=task.kind, new=not start.is_own, forked_from=start.checkpoint)
        return fit(session, plan, model, task, tokenizer, callbacks)


def job(cfg: DictConfig) -> float:
    """Run one Hydra job and return its val/bpb, which a sweeper minimises. See `run_job`."""
    return run_job(cfg, configure, train)


def configure(values: dict[str, Any]) -> RunConfig:
    """Build the configuration of a run. Raises UserError if settings contradict each other."""
    config = from_dict(RunConfig, values)
    if config.budget is not None and config.train.max_steps != "auto" and not config.train.extend:
        raise UserError(
            f"budget={config.budget} chooses the number of steps: give only one of budget= and train.max_steps="
        )
    return config


def main() -> None:
    """Run `positron train` with the options in `sys.argv`."""
    run_hydra(job, "train")


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
