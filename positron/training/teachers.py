"""Load the teachers of a distillation, and refuse teachers whose weights have changed since the run began."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from positron.run.ensemble import common_tokenizer
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.teachers import find_teachers, refuse_shorter_context
from positron.system.errors import UserError
from positron.system.formatting import counted, parameter_count
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import Tokenizer
from positron.training.objective.distill import Teachers
from positron.training.objective.reference import hash_of_weights
from positron.training.resume import Session

logger = logging.getLogger(__name__)


def open_teachers(session: Session) -> tuple[Teachers, Tokenizer]:
    """Load the best checkpoint of each teacher of the session's run, and return the teachers and their tokenizer.

    Raises UserError if a teacher does not exist, does not fit the run, or has changed since the run began.
    """
    config, start = session.config, session.start
    assert config.distill is not None
    runs = find_teachers(config.distill.teachers)
    refuse_shorter_context(runs, config.model.context_length)
    loaded = [load_model(run) for run in runs]
    tokenizers = [(run, tokenizer) for run, (_, tokenizer, _) in zip(runs, loaded, strict=True)]
    if start.tokenizer_from is not None:
        tokenizers.append((start.tokenizer_from, load_tokenizer(start.tokenizer_from.tokenizer_folder)))
    tokenizer = common_tokenizer(tokenizers)
    models = [model.requires_grad_(False).to(session.machine.device) for model, _, _ in loaded]
    hashes = [hash_of_weights(model.state_dict()) for model in models]
    if start.is_own:
        _refuse_changed(session.run, runs, hashes)
    for run, model in zip(runs, models, strict=True):
        step = run.facts().best_step or run.facts().step or 0
        logger.info(f"teacher {run.folder}: {parameter_count(model.config.n_params())}, step {step}")
    return Teachers(models, hashes), tokenizer


def _refuse_changed(run: Run, teachers: Sequence[Run], hashes: list[str]) -> None:
    """Raise UserError if the hashes of the teachers' weights differ from those that the run recorded when it began."""
    known = (run.facts().teachers or "").split()
    if len(known) != len(hashes):
        raise UserError(
            f"{run.folder} began with {counted(len(known), 'teacher')}, not {len(hashes)}: give the same teachers=, or another "
            "name="
        )
    for teacher, before, now in zip(teachers, known, hashes, strict=True):
        if before != now:
            raise UserError(
                f"the weights of {teacher.folder} are not those of the teacher with which {run.folder} began: give the same "
                "teachers= in the same order, with unchanged weights, or another name="
            )
