"""Train a model on a text, by pretraining or by distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import Callback

from positron.config import Asked, RunConfig
from positron.data.corpus import prepare
from positron.model.gpt import GPT
from positron.run.base import with_origin
from positron.run.budget_choice import restore_choice
from positron.run.facts import Facts
from positron.run.folder import Run
from positron.run.load import restore
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import Tokenizer
from positron.training.budget.choose import choose
from positron.training.ends import why_it_is_over
from positron.training.loop import fit
from positron.training.objective.pretrain import PretrainObjective
from positron.training.resolve import TrialLoss, log_plan, make_plan
from positron.training.resume import Session, open_session, refuse_before_start, refuse_untrainable


@dataclass(frozen=True)
class Lesson:
    """Hold the objective with which a run learns its text, and the tokenizer.

    `objective` is called with the arguments of `PretrainObjective`. If `tokenizer` is None, the run uses the tokenizer of the
    checkpoint or run from which it starts. If it starts from none, the tokenizer is trained on the text, or a tokenizer with a
    fixed vocabulary is loaded (see `prepare`). `trial_loss` is the loss of the trial steps that `make_plan` takes; None: the
    loss of pretraining.
    """

    objective: Callable[..., PretrainObjective] = PretrainObjective
    tokenizer: Tokenizer | None = None
    trial_loss: TrialLoss | None = None


def train_on_text(
    config: RunConfig,
    folder: Path,
    callbacks: Sequence[Callback],
    asked: Asked,
    started: float,
    lesson_of: Callable[[Session], Lesson],
) -> Facts:
    """Train the run in `folder` to its last step, from its last checkpoint if there is one; return the content of run.json.

    `callbacks` are the user's own Lightning callbacks. `asked` holds the settings that the user gave, which `budget=` does not
    change. `started`: time.monotonic() at the start of the command. `lesson_of` returns the objective and the tokenizer; it is
    called after the run folder has been locked. Raises the errors of `positron.train.train`.
    """
    config = with_origin(Run(folder), restore_choice(config, asked, Run(folder)))
    with open_session(folder, config, started) as session:
        run, start, machine = session.run, session.start, session.machine
        lesson = lesson_of(session)
        saved_tokenizer = lesson.tokenizer
        if saved_tokenizer is None and start.tokenizer_from is not None:
            saved_tokenizer = load_tokenizer(start.tokenizer_from.tokenizer_folder)
        tokenizer, tokens = prepare(config.data, config.tokenizer, saved_tokenizer, run.facts().data_fingerprint)
        if config.budget is not None and config.train.max_steps == "auto":
            choice = choose(config, asked, machine, tokenizer, tokens, lesson.objective)
            config = choice.applied(config, asked)
            session = dataclasses.replace(session, config=config)
        refuse_untrainable(config, machine, vocab_size=tokenizer.vocab_size)
        model = GPT(config.model.with_vocab(tokenizer.vocab_size), seed=config.seed)
        model.checkpoint_activations = config.device.checkpoint_activations
        plan = make_plan(config, model, machine, start, trial_loss=lesson.trial_loss)
        log_plan(plan)
        task = lesson.objective(
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
        refuse_before_start(session, last_step=plan.last_step, fingerprint=task.fingerprint)
        if session.is_first_rank and why_it_is_over(session, plan, task) is None:
            run.begin(config, tokenizer, kind=task.kind, new=not start.is_own, forked_from=start.checkpoint)
        return fit(session, plan, model, task, tokenizer, callbacks)
