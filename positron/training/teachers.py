"""Load the teachers of a distillation, and refuse teachers whose weights have changed since the run began."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from positron.run.base import pretrained_run
from positron.run.ensemble import common_tokenizer
from positron.run.find import named_run
from positron.run.folder import Run
from positron.run.load import load_with_weights
from positron.run.teachers import find_teachers, is_finished_student, refuse_shorter_context
from positron.system.console import one_line
from positron.system.disk import expanded
from positron.system.errors import UserError
from positron.system.formatting import counted, parameter_count
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import Tokenizer
from positron.training.from_text import Lesson
from positron.training.objective.distill import DistillObjective, Teachers, trial_loss
from positron.training.resume import Session
from positron.training.tuning import hash_of_stored

logger = logging.getLogger(__name__)


def lesson_of_teachers(session: Session) -> Lesson:
    """Load the teachers of a student, and return the objective and the tokenizer with which it is trained.

    Raises the errors of `open_teachers`.
    """
    settings = session.config.distill
    assert settings is not None
    teachers, tokenizer = open_teachers(session)
    is_masked = session.config.data.document_mask
    trial = functools.partial(trial_loss, teachers=teachers, settings=settings, is_masked=is_masked)
    return Lesson(functools.partial(DistillObjective, settings=settings, teachers=teachers), tokenizer, trial)


def open_teachers(session: Session) -> tuple[Teachers, Tokenizer]:
    """Load the best checkpoint of each teacher of the session's run, and return the teachers and their tokenizer.

    If the run continues, the teachers have the same order as when the run began, because the order changes the rounding of
    the mean of their probabilities. For a finished run that is not extended, no models are loaded, because none are needed.
    Raises UserError if a teacher does not exist, does not fit the run, or has changed since the run began.
    """
    config, start = session.config, session.start
    assert config.distill is not None
    if _nothing_is_left(session):
        hashes = (session.run.facts().teachers or "").split()
        return Teachers([], hashes, []), load_tokenizer(session.run.tokenizer_folder)
    runs = find_teachers(config.distill.teachers)
    refuse_shorter_context(runs, config.model.context_length)
    loaded = [load_with_weights(run) for run in runs]
    tokenizers = [(run, tokenizer) for run, (_, tokenizer, *_) in zip(runs, loaded, strict=True)]
    if start.tokenizer_from is not None:
        tokenizers.append((start.tokenizer_from, load_tokenizer(start.tokenizer_from.tokenizer_folder)))
    tokenizer = common_tokenizer(tokenizers)
    models = [model.requires_grad_(False).to(session.machine.device) for model, *_ in loaded]
    recorded = (session.run.facts().teachers or "").split() if start.is_own else []
    hashes = [hash_of_stored(weights, recorded) for *_, weights in loaded]
    masks = [is_masked(run) for run in runs]
    for run, model in zip(runs, models, strict=True):
        facts = run.facts()
        step = facts.best_step or facts.step or 0
        logger.info(f"teacher {run.folder}: {parameter_count(model.config.n_params())}, step {step}")
        if not start.is_own and facts.status in ("running", "stopped"):
            logger.warning(
                f"the training of the teacher {run.folder} has not ended, so its weights may still change; keep a "
                f"copy of this folder, because {session.run.folder} can be continued only with the present weights"
            )
    if start.is_own:
        known = _refuse_changed(session.run, runs, hashes)
        order = [hashes.index(before) for before in known]
        models, masks, hashes = [models[i] for i in order], [masks[i] for i in order], known
    return Teachers(models, hashes, masks), tokenizer


def is_masked(run: Run) -> bool:
    """Tell whether attention stayed inside documents when the model of `run` was pretrained (data.document_mask).

    If the pretrained run is missing, this is unknown: a warning is logged, and the result is False.
    """
    try:
        return pretrained_run(run).settings().data.document_mask
    except UserError as error:
        logger.warning(f"the teacher {run.folder} reads the text with attention across documents: {error}")
        return False


def _nothing_is_left(session: Session) -> bool:
    """Tell whether there is no step to train.

    This is so if the run is a finished distillation from the teachers that `teachers=` names, and train.max_steps is `auto` or
    not larger than the number of steps that the run has trained.
    """
    config, run = session.config, session.run
    assert config.distill is not None
    if not session.start.is_own or not is_finished_student(run, config.distill.teachers):
        return False
    # the start lies before the end if the newest checkpoint is damaged
    horizon = run.resolved().max_steps if config.train.max_steps == "auto" else config.train.max_steps
    return horizon <= session.start.step


def _refuse_changed(run: Run, teachers: Sequence[Run], hashes: list[str]) -> list[str]:
    """Return the hashes of the teachers' weights that the run recorded when it began, in the recorded order.

    `hashes`: the hashes of the current weights of `teachers`. Raises UserError if they differ from the recorded hashes; only
    the order may differ.
    """
    known = (run.facts().teachers or "").split()
    recorded = run.settings().distill
    assert recorded is not None
    names = ",".join(one_line(name, 80) for name in recorded.teachers)
    if len(known) != len(hashes):
        raise UserError(
            f"{run.folder} began with {counted(len(known), 'teacher')}, not {len(hashes)}: give teachers={names}, or another "
            "name="
        )
    changed = [
        teacher.folder for teacher, now in zip(teachers, hashes, strict=True) if hashes.count(now) != known.count(now)
    ]
    if changed:
        recorded_runs = [named_run(str(expanded(name))) for name in recorded.teachers]
        if any(teacher is not None and teacher.folder.resolve() == changed[0].resolve() for teacher in recorded_runs):
            raise UserError(
                f"the weights of the teacher {changed[0]} have changed since {run.folder} began: restore the teacher from a "
                "copy, or give another name="
            )
        raise UserError(
            f"{run.folder} did not begin with the teacher {changed[0]}: give teachers={names}, or another name="
        )
    return known
